"""The routing of a patched model as one torch operation, which torch.compile takes as it is."""
from __future__ import annotations

import itertools
import time
import weakref
from typing import Any, Optional

import torch

from .._core import Metrics, Policy
from ..router import Router


class LayerRouting:
    """What one MoE layer of a patched model routes by, and what it counted."""

    def __init__(self, router: Router, layer: int, shadow: bool) -> None:
        self.router = router
        self.layer = layer
        self.shadow = shadow
        self.metrics = Metrics()
        self.seconds = 0.0
        self.counting = True
        self.observer: Optional[Any] = None
        self.number = next(_numbers)
        _layers[self.number] = self

    def set_router(self, router: Router) -> None:
        self.router = router

    def route(self, logits, ids, bias, padding):
        start = time.perf_counter()
        kept, factor, counts, signal = self.router.keep(
            logits, ids, layer=self.layer, routing_bias=bias, padding_mask=padding,
            metrics=self.metrics if self.counting else None, shadow=self.shadow,
        )  # fmt: skip
        self.seconds += time.perf_counter() - start
        if self.observer is not None:
            self.observer(self.layer, counts, signal, time.perf_counter() - start)
        return kept, factor, counts


_layers: "weakref.WeakValueDictionary[int, LayerRouting]" = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


@torch.library.custom_op("adaptive_k::keep", mutates_args=())
def keep(
    logits: torch.Tensor,
    ids: torch.Tensor,
    bias: Optional[torch.Tensor],
    padding: Optional[torch.Tensor],
    number: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """kept [num_tokens, top_k] bool and factor [num_tokens] float32 of layer `number`.

    Decided on the host: tensors of a device make one round trip, which waits for the device.
    """
    device = logits.device
    host = [t if t is None or t.device.type == "cpu" else t.cpu() for t in (logits, ids, bias, padding)]
    host_logits = host[0] if host[0].stride(-1) == 1 else host[0].contiguous()
    if host_logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        host_logits = host_logits.float()
    bias32 = None if host[2] is None else host[2].float().contiguous()
    kept, factor, _ = _layers[number].route(host_logits, host[1].contiguous(), bias32, host[3])
    return kept.to(device), factor.to(device)


@keep.register_fake
def _(logits, ids, bias, padding, number):
    return torch.empty_like(ids, dtype=torch.bool), logits.new_empty(
        (ids.shape[0],), dtype=torch.float32
    )


def layers_of(policy: Policy, count: int) -> None:
    """Refuses a policy with another number of layers than the model has."""
    if policy.num_layers not in (0, count):
        raise ValueError(
            f"policy '{policy.name}' is for {policy.num_layers} MoE layers, and the model has {count}"
        )
