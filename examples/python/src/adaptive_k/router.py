"""The routing call on numpy arrays and torch tensors, without copies.

Importing this needs numpy alone; torch is used where the caller gives tensors of it.
"""
from __future__ import annotations

import sys
from typing import Any, NamedTuple, Optional

import numpy as np

from . import _core
from ._core import Gating, Metrics, Policy, Preset

__all__ = ["Routed", "Router"]

_BF16_BITS = "bfloat16"


class Routed(NamedTuple):
    """What one call gave; arrays of the kind that the logits were."""

    ids: Any
    """[num_tokens, top_k] int32 unless asked otherwise, best first; past a token's count the fill."""
    weights: Any
    """[num_tokens, top_k] float32 unless asked otherwise; 0 past a token's count."""
    counts: Any
    """[num_tokens] int32: k of each token, 0 for padding."""
    signal: Any
    """[num_tokens] float32, in the unit of the policy's signal."""
    chosen: Any = None
    """[num_tokens] int32 in shadow mode: the k that the policy would have taken; else None."""


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


class _NumpyMaker:
    """Makes arrays beside numpy logits; bf16 is its bits in uint16."""

    def empty(self, shape, dtype: str):
        return np.empty(shape, np.uint16 if dtype == _BF16_BITS else dtype)

    def zeros(self, shape, dtype: str):
        return np.zeros(shape, dtype)


class _TorchMaker:
    def __init__(self, tensor) -> None:
        self.torch = sys.modules["torch"]
        self.device = tensor.device

    def empty(self, shape, dtype: str):
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device)

    def zeros(self, shape, dtype: str):
        return self.torch.zeros(shape, dtype=getattr(self.torch, dtype), device=self.device)


def _as_matrix(logits: Any):
    """[num_tokens, num_experts] of what may have more axes in front; without a copy."""
    if is_torch(logits):
        logits = logits.detach()
        if logits.dim() > 2:
            return logits.view(-1, logits.shape[-1]), _TorchMaker(logits)
        return logits, _TorchMaker(logits)
    if not hasattr(logits, "__dlpack__") and not isinstance(logits, np.ndarray):
        raise TypeError(
            f"logits: {type(logits).__name__}, expected a numpy array or a torch tensor "
            "of float32, float16 or bfloat16, [num_tokens, num_experts]"
        )
    if isinstance(logits, np.ndarray) and logits.ndim > 2:
        if not logits.flags.c_contiguous:
            raise ValueError(
                "logits: more than two axes and not contiguous: copy by numpy.ascontiguousarray"
            )
        logits = logits.reshape(-1, logits.shape[-1])
    return logits, _NumpyMaker()


class Router:
    """A model's gating and a K policy, checked once, then applied to batches of logits.

    Immutable; any number of threads may route by it at once (the GIL is released). Outputs have
    the same bits as the C++ library's on every machine. Raises ValueError, which names the field,
    its value and what was expected.
    """

    def __init__(
        self,
        gating: Gating,
        policy: Policy,
        *,
        fill: str = "minus_one",
        instructions: str = "best",
    ) -> None:
        """`fill`: what id slots past a token's count hold: minus_one, num_experts, first_expert."""
        self._core = _core.Router(gating, policy, fill, instructions)
        self.gating = gating
        self.policy = policy
        self.fill = fill

    @classmethod
    def from_preset(cls, name: str, policy: str = "", **options: Any) -> "Router":
        """By a preset's name, alias or file, and the name of one of its policies ('': the default).

        The default policy of the models that the published package knows is its thresholds
        (published, not reproduced); of all others full K, so that quality is never lost unasked.
        """
        preset = Preset.load(name)
        return cls(preset.gating, preset.policy(policy), **options)

    @property
    def num_layers(self) -> int:
        """Layers with a policy of their own; 0 where one serves every layer."""
        return self._core.num_layers

    @property
    def instructions(self) -> str:
        """The instruction set in use; the bits do not depend on it."""
        return self._core.instructions

    def route(
        self,
        logits: Any,
        *,
        layer: int = 0,
        routing_bias: Any = None,
        padding_mask: Any = None,
        k_min: Any = None,
        k_max: Any = None,
        metrics: Optional[Metrics] = None,
        expert_counts: Any = None,
        shadow: bool = False,
        id_dtype: str = "int32",
        weight_dtype: str = "float32",
        logits_dtype: Optional[str] = None,
        num_threads: int = 1,
    ) -> Routed:
        """Routes `logits` [..., num_experts]: float32, float16 or bfloat16, rows of neighbours.

        routing_bias [num_experts] float32, for gatings with a selection bias; padding_mask
        [num_tokens] bool or uint8, true where a token is none; k_min and k_max [num_tokens] uint8;
        metrics, where given, is added to; expert_counts [num_experts] uint64, likewise. shadow
        routes full K and tells in `chosen` what the policy would have taken. numpy has no bfloat16:
        give its bits as uint16 and logits_dtype="bfloat16". Cost: O(T * top_k * E), some 50 ns a
        token of 128 experts by vectors, and about 10 us a call of Python's own.
        """
        matrix, make = _as_matrix(logits)
        if len(matrix.shape) != 2:
            raise ValueError(
                f"logits: has the shape {list(matrix.shape)}, expected [num_tokens, num_experts]"
            )
        if logits_dtype not in (None, _BF16_BITS):
            raise ValueError(f"logits_dtype: {logits_dtype!r}, expected None or 'bfloat16'")
        tokens, top_k = matrix.shape[0], self.gating.top_k
        ids = make.empty((tokens, top_k), id_dtype)
        weights = make.empty((tokens, top_k), weight_dtype)
        counts = make.empty((tokens,), "int32")
        signal = make.empty((tokens,), "float32")
        chosen = make.empty((tokens,), "int32") if shadow else None
        self._core.route(
            layer, matrix, ids, weights, counts, signal, chosen, expert_counts, routing_bias,
            padding_mask, k_min, k_max, metrics, logits_dtype == _BF16_BITS,
            weight_dtype == _BF16_BITS, num_threads,
        )  # fmt: skip
        return Routed(ids, weights, counts, signal, chosen)

    def keep(
        self,
        logits: Any,
        ids: Any,
        *,
        layer: int = 0,
        routing_bias: Any = None,
        padding_mask: Any = None,
        k_min: Any = None,
        k_max: Any = None,
        metrics: Optional[Metrics] = None,
        shadow: bool = False,
    ) -> tuple:
        """For an engine that has chosen `ids` [num_tokens, top_k] already: what it keeps of them.

        Returns (kept [num_tokens, top_k] bool, factor [num_tokens] float32, counts [num_tokens],
        signal [num_tokens]): the engine drops the slots that are not kept and multiplies the
        weights of the others by the factor, r^-a, which is 1 to the bit where nothing is dropped.
        So its own ids, weights and ties stay its own. Slots may be in any order: ranks are the
        library's. With `shadow` everything is kept and counts are what the policy would have taken.
        k_min and k_max [num_tokens] uint8: limits of each token's k.
        """
        matrix, make = _as_matrix(logits)
        tokens = matrix.shape[0]
        kept = make.empty((tokens, self.gating.top_k), "bool")
        factor = make.empty((tokens,), "float32")
        counts = make.empty((tokens,), "int32")
        signal = make.empty((tokens,), "float32")
        self._core.keep(
            layer, matrix, ids, kept, factor, counts, signal, routing_bias, padding_mask, k_min,
            k_max, metrics, shadow,
        )  # fmt: skip
        return kept, factor, counts, signal

    def __repr__(self) -> str:
        return f"Router({self.gating!r}, {self.policy!r})"
