"""What each MoE layer of a worker routes by: the engine's own choice, narrowed by the library.

The engine's ids, weights and ties stay its own. Slots that a token does not keep get weight 0 and the id
of one that it does, which every backend takes; experts.py skips them where it can.
"""
from __future__ import annotations

import dataclasses
import time
from typing import Optional

import numpy as np
import torch

from .._core import Gating, Metrics, Policy
from ..router import Router
from .steps import Step, Steps


@dataclasses.dataclass
class Arm:
    """One variant as it runs: its policy of all layers, at the controller's scale."""

    name: str
    label: str
    """Of its metrics."""
    policy: Policy
    """As it was given."""
    shadow: bool
    router: Router
    controlled: bool = True

    def rescale(self, scale: float) -> None:
        self.router = Router(self.router.gating, self.policy.scaled(scale))


class Counts:
    """What one layer counted for one variant, since the last time that it was taken."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.seconds: list[float] = []

    def take(self) -> tuple[Metrics, list[float]]:
        taken = self.metrics, self.seconds
        self.metrics, self.seconds = Metrics(), []
        return taken


class Layer:
    """One MoE layer."""

    def __init__(self, index: int, arms: list[Arm], steps: Steps) -> None:
        self.index = index
        self.arms = arms
        self.steps = steps
        self.counts = [Counts() for _ in arms]

    def narrow(
        self,
        logits: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        bias: Optional[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(weights, ids) [num_tokens, top_k] that run, on the host. Without a step: as they were."""
        step = self.steps.current
        if step is None:
            return weights.clone(), ids.clone()
        tokens = step.num_tokens
        if tokens > logits.shape[0]:
            raise RuntimeError(
                f"adaptive_k: {logits.shape[0]} tokens come to MoE layer {self.index}, and the step has {tokens}"
            )
        kept, factor = self._keep(logits[:tokens], ids[:tokens].contiguous(), bias, step)
        out = torch.zeros_like(weights)
        torch.mul(weights[:tokens], factor.unsqueeze(-1), out=out[:tokens])
        out[:tokens].masked_fill_(~kept, 0)
        # Any expert that runs for the token anyway: the first slot that is kept.
        first = kept.to(torch.uint8).argmax(1, keepdim=True)
        filled = ids.clone()
        filled[:tokens] = torch.where(kept, ids[:tokens], ids[:tokens].gather(1, first))
        return out, filled

    def _keep(
        self, logits: torch.Tensor, ids: torch.Tensor, bias: Optional[torch.Tensor], step: Step
    ) -> tuple[torch.Tensor, torch.Tensor]:
        k_max = None if step.k_max is None else torch.from_numpy(step.k_max)
        if step.variant is None:
            return self._by(step.only, logits, ids, bias, k_max)
        kept = torch.empty(ids.shape, dtype=torch.bool)
        factor = torch.empty(ids.shape[0])
        for variant in np.unique(step.variant).tolist():
            rows = torch.from_numpy(np.flatnonzero(step.variant == variant))
            limits = None if k_max is None else k_max[rows]
            kept[rows], factor[rows] = self._by(variant, logits[rows], ids[rows], bias, limits)
        return kept, factor

    def _by(
        self,
        variant: int,
        logits: torch.Tensor,
        ids: torch.Tensor,
        bias: Optional[torch.Tensor],
        k_max: Optional[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        arm, counts = self.arms[variant], self.counts[variant]
        start = time.perf_counter()
        kept, factor, _, _ = arm.router.keep(
            logits, ids, layer=self.index, routing_bias=bias, k_max=k_max, metrics=counts.metrics,
            shadow=arm.shadow,
        )  # fmt: skip
        counts.seconds.append(time.perf_counter() - start)
        return kept, factor


_layers: list[Layer] = []


def set_layers(layers: list[Layer]) -> None:
    """The layers that `keep` is called for by their index: those of this process' engine."""
    _layers[:] = layers


@torch.library.custom_op("adaptive_k::vllm_keep", mutates_args=())
def keep(
    logits: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    bias: Optional[torch.Tensor],
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, ids) of MoE layer `layer`, of the types that they were. Decided on the host: tensors of
    a device make a round trip, which waits for the device."""
    device = weights.device
    if device.type == "cpu":
        return _layers[layer].narrow(_readable(logits), ids, weights, _float(bias))
    made = _layers[layer].narrow(
        _readable(logits.cpu()), ids.cpu(), weights.cpu(), None if bias is None else _float(bias.cpu())
    )
    return made[0].to(device), made[1].to(device)


@keep.register_fake
def _(logits, ids, weights, bias, layer):
    return torch.empty_like(weights), torch.empty_like(ids)


def _readable(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.stride(-1) == 1 else logits.contiguous()


def _float(bias: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    return None if bias is None else bias.detach().float().contiguous()


def subclass_of(router_class: type) -> type:
    """`router_class` with its choice narrowed: what a routing backend of vLLM's platforms would return."""
    known = _subclasses.get(router_class)
    if known is not None:
        return known

    class AdaptiveK(router_class):  # type: ignore[misc, valid-type]
        adaptive_k_layer = -1

        def _compute_routing(self, hidden_states, router_logits, *args, **kwargs):
            weights, ids = super()._compute_routing(hidden_states, router_logits, *args, **kwargs)
            bias = getattr(self, "e_score_correction_bias", None)
            return torch.ops.adaptive_k.vllm_keep(
                router_logits, ids, weights, None if bias is None else bias.data, self.adaptive_k_layer
            )

    AdaptiveK.__name__ = AdaptiveK.__qualname__ = f"AdaptiveK{router_class.__name__}"
    _subclasses[router_class] = AdaptiveK
    return AdaptiveK


_subclasses: dict[type, type] = {}


def gating_of(router: object, extra: Optional[dict] = None) -> Gating:
    """The gating that a router of vLLM has, by its fields. Raises ValueError for one that is not known.

    `extra`: Gating's arguments, where the router calls a function of the model's own.
    """
    name = type(router).__name__
    num_experts, top_k = router.global_num_experts, router.top_k
    if getattr(router, "custom_routing_function", None) is not None:
        if extra is None:
            function = getattr(router.custom_routing_function, "__qualname__", "?")
            raise ValueError(
                f"{name} calls the model's own {function}: say what it computes by "
                'adaptive_k.gating, for example {"kind": "sigmoid"}; it is checked'
            )
        return Gating(**{"num_experts": num_experts, "top_k": top_k, **extra})
    if extra is not None:
        raise ValueError(f"{name} calls no function of the model's own, expected no adaptive_k.gating")
    if name not in _KNOWN:
        raise ValueError(f"no gating is known for {name}, expected one of {', '.join(sorted(_KNOWN))}")
    if getattr(router, "_hash_indices_table", None) is not None:
        raise ValueError(f"{name} chooses experts by a table of token ids, expected by logits")
    if getattr(router, "bias_vl", None) is not None:
        raise ValueError(f"{name} has a second bias for images, expected one bias at most")
    if getattr(router, "num_fused_shared_experts", 0):
        raise ValueError(f"{name} appends {router.num_fused_shared_experts} shared experts to the top-k")
    kinds = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrt_softplus"}
    kind = kinds.get(router.scoring_func)
    if kind is None:
        raise ValueError(f"{name}.scoring_func is {router.scoring_func!r}, expected one of {', '.join(kinds)}")
    biased = getattr(router, "e_score_correction_bias", None) is not None
    grouped = bool(getattr(router, "use_grouped_topk", name == "GroupedTopKRouter"))
    groups = int(router.num_expert_group or 1) if grouped else 1
    return Gating(
        num_experts, top_k, kind=kind, renormalize=bool(router.renormalize), selection_bias=biased,
        routed_scaling_factor=float(getattr(router, "routed_scaling_factor", 1.0)),
        n_group=groups, topk_group=int(router.topk_group or 1) if groups > 1 else 1,
        group_rank="top2_sum" if biased else "maximum",
    )  # fmt: skip


_KNOWN = ("CPURouter", "FusedTopKRouter", "FusedTopKBiasRouter", "GroupedTopKRouter")
