"""An experts implementation for transformers that skips what was dropped, in prefill and in decode.

Slots that hold num_experts are none: their rows are not gathered, not multiplied and not added. The rest
is what every implementation does: rows sorted by expert, one product after the other, added up by token.
"""
from __future__ import annotations

import itertools
import weakref
from typing import Any, Optional

import torch
import torch.nn.functional as F

NAME = "adaptive_k"


def _project(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], transposed: bool):
    if transposed:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    return F.linear(x, weight, bias)


def _expert_rows(experts: Any, x: torch.Tensor, expert: int) -> torch.Tensor:
    """What one expert makes of its rows, before their weights."""
    bias = experts.has_bias
    if experts.has_gate:
        up = _project(
            x, experts.gate_up_proj[expert], experts.gate_up_proj_bias[expert] if bias else None,
            experts.is_transposed,
        )  # fmt: skip
        hidden = experts._apply_gate(up)
    else:
        up = _project(
            x, experts.up_proj[expert], experts.up_proj_bias[expert] if bias else None,
            experts.is_transposed,
        )  # fmt: skip
        hidden = experts.act_fn(up)
    out = _project(
        hidden, experts.down_proj[expert], experts.down_proj_bias[expert] if bias else None,
        experts.is_transposed,
    )  # fmt: skip
    return experts.post_expert_norm(out) if experts.has_post_expert_norm else out


def run_experts(
    experts: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[num_tokens, hidden] of `ids` [num_tokens, top_k], num_experts where a slot is none."""
    top_k, num_experts = ids.shape[-1], experts.num_experts
    flat = ids.reshape(-1)
    # The sentinel sorts behind every expert. One transfer tells the host all the sizes.
    order = torch.argsort(flat, stable=True)
    sizes = torch.bincount(flat, minlength=num_experts + 1).tolist()[:num_experts]
    live = order[: sum(sizes)]
    tokens = live // top_k
    rows = hidden[tokens]
    made = torch.empty_like(rows)
    begin = 0
    for expert, size in enumerate(sizes):
        if size != 0:
            made[begin : begin + size] = _expert_rows(experts, rows[begin : begin + size], expert)
            begin += size
    # Each token adds up its own rows, slot by slot: the same order every time.
    by_slot = torch.argsort(live)
    kept = torch.bincount(tokens, minlength=len(hidden))
    factors = weights.reshape(-1)[live[by_slot]].to(made.dtype)
    begins = torch.cumsum(kept, 0) - kept
    return F.embedding_bag(by_slot, made, begins, mode="sum", per_sample_weights=factors)


# torch.compile sees one operation: its module is looked up by a number.
_modules: "weakref.WeakValueDictionary[int, torch.nn.Module]" = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def number_of(experts: Any) -> int:
    """The number by which the compiled graph names a module; the same for the module's life."""
    known = getattr(experts, "_adaptive_k_number", None)
    if known is None:
        known = next(_numbers)
        experts._adaptive_k_number = known
        _modules[known] = experts
    return known


@torch.library.custom_op(f"{NAME}::experts", mutates_args=())
def _experts_op(
    hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, number: int
) -> torch.Tensor:
    return run_experts(_modules[number], hidden, ids, weights)


@_experts_op.register_fake
def _(hidden, ids, weights, number):
    return torch.empty_like(hidden)


def experts_forward(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """The implementation that ExpertsInterface calls."""
    if torch.compiler.is_compiling():
        return _experts_op(hidden_states, top_k_index, top_k_weights, self._adaptive_k_number)
    return run_experts(self, hidden_states, top_k_index, top_k_weights)


def register() -> None:
    """Makes the implementation known to transformers by its name."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
