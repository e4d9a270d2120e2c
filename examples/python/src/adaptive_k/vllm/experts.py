"""What stands in the slots past a token's k, by backend and version; and experts on the CPU that skip them.

A valid id with weight 0 is a routing like any other, so it is right under every backend; it is computed all
the same, unless a row here says that the backend's experts were replaced by ones that skip.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Optional

import torch


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of one backend's experts."""

    backend: str
    """The class of vLLM that runs them."""
    versions: tuple[str, ...]
    """Of vLLM: those that the row was tested with."""
    skips: bool
    """Dead slots are left out before the kernel sees them."""
    tested: str
    """Where this was run."""


# A row is added with a test of it in tests/vllm/test_experts.py. What ids the kernels themselves would take
# for none (-1, num_experts) is written nowhere here: 0.32's CPU kernel corrupts the heap by them.
SENTINELS = (
    Row("CPUUnquantizedExperts", ("0.32.0",), True, "x86-64 with AVX-512, float32 and bfloat16"),
    Row("X86CPUUnquantizedExperts", ("0.32.0",), True, "the same code on AMX; nowhere"),
    Row("ArmCPUUnquantizedExperts", ("0.32.0",), True, "the same code on NEON; nowhere"),
)


def row_of(backend: str, version: str) -> Optional[Row]:
    """The table's row, or None where there is none."""
    release = version.split("+")[0]
    for row in SENTINELS:
        if row.backend == backend and release in row.versions:
            return row
    return None


def run_live(
    out: torch.Tensor,
    hidden: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    w13_bias: Optional[torch.Tensor],
    w2_bias: Optional[torch.Tensor],
    weights: torch.Tensor,
    ids: torch.Tensor,
    activation: str,
    isa: str,
    skip_weighted: bool,
) -> None:
    """vLLM's CPU kernel on the slots whose weight is not 0: `out` [num_tokens, hidden].

    Where every slot lives, this is the engine's own call, to the bit. Where all tokens run as many, it is
    that call with a smaller top-k; else each live (token, expert) pair is a token with a top-k of 1, and a
    token's pairs are added up in the order of its slots, in float32.
    """

    def kernel(to: torch.Tensor, x: torch.Tensor, w: torch.Tensor, i: torch.Tensor) -> None:
        torch.ops._C.cpu_fused_moe(
            to, x, w13, w2, w13_bias, w2_bias, w, i, skip_weighted, activation, isa
        )

    live = weights != 0
    counts = live.sum(1)
    if counts.numel() == 0:
        return
    least, most = int(counts.min()), int(counts.max())
    if least == weights.shape[1]:
        return kernel(out, hidden, weights, ids)
    if most == 0:
        out.zero_()
        return
    flat = live.reshape(-1).nonzero().squeeze(1)
    kept_weights, kept_ids = weights.reshape(-1)[flat], ids.reshape(-1)[flat]
    if least == most:
        return kernel(out, hidden, kept_weights.view(-1, most), kept_ids.view(-1, most))
    tokens = flat // weights.shape[1]
    pairs = torch.empty((flat.numel(), out.shape[1]), dtype=out.dtype)
    kernel(pairs, hidden[tokens], kept_weights.unsqueeze(1), kept_ids.unsqueeze(1))
    begins = torch.cumsum(counts, 0) - counts
    rows = torch.arange(flat.numel())
    out.copy_(torch.nn.functional.embedding_bag(rows, pairs, begins, mode="sum"))


@torch.library.custom_op("adaptive_k::vllm_cpu_experts", mutates_args=("out",))
def _live_op(
    out: torch.Tensor,
    hidden: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    w13_bias: Optional[torch.Tensor],
    w2_bias: Optional[torch.Tensor],
    weights: torch.Tensor,
    ids: torch.Tensor,
    activation: str,
    isa: str,
    skip_weighted: bool,
) -> None:
    run_live(
        out, hidden, w13, w2, w13_bias, w2_bias, weights, ids, activation, isa, skip_weighted
    )  # fmt: skip


@_live_op.register_fake
def _(out, hidden, w13, w2, w13_bias, w2_bias, weights, ids, activation, isa, skip_weighted):
    return None


def _apply(
    self: Any,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Any,
    global_num_experts: int,
    expert_map: Optional[torch.Tensor],
    a1q_scale: Optional[torch.Tensor],
    a2_scale: Optional[torch.Tensor],
    workspace13: torch.Tensor,
    workspace2: torch.Tensor,
    expert_tokens_meta: Any,
    apply_router_weight_on_input: bool,
) -> None:
    torch.ops.adaptive_k.vllm_cpu_experts(
        output, hidden_states, w1, w2, self.w1_bias, self.w2_bias, topk_weights, topk_ids,
        activation.value, self.isa, apply_router_weight_on_input,
    )  # fmt: skip


def make_skip(experts: Any) -> None:
    """The experts of one layer, replaced in place by ones that skip. Raises ValueError."""
    if getattr(experts, "_use_zentorch", False):
        raise ValueError(f"{type(experts).__name__} runs by zentorch, expected vLLM's own CPU kernel")
    kind = type(experts)
    experts.__class__ = type(f"AdaptiveK{kind.__name__}", (kind,), {"apply": _apply})
