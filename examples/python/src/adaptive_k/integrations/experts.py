"""An experts implementation for transformers that skips what was dropped, in prefill and in decode.

Slots that hold num_experts are none: their rows are not gathered, not multiplied and not added. The rest
is what every implementation does: rows sorted by expert, one product after the other, added up by token.
"""
from __future__ import annotations

import itertools
import weakref
from typing import Any, Optional, Sequence

import torch
import torch.nn.functional as F

NAME = "adaptive_k"


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], transposed: bool,
    out: Optional[torch.Tensor] = None,
) -> torch.Tensor:  # fmt: skip
    """One expert's matrix on its rows, into `out` where given."""
    matrix = weight if transposed else weight.t()
    if bias is None:
        return torch.mm(x, matrix, out=out)
    return torch.addmm(bias, x, matrix, out=out)


def _each(
    experts: Any, x: torch.Tensor, sizes: Sequence[int], name: str, in_place: bool
) -> torch.Tensor:
    """The matrices `name` of all experts on rows that are sorted by expert."""
    weights = getattr(experts, name)
    biases = getattr(experts, f"{name}_bias") if experts.has_bias else None
    width = weights.shape[-1] if experts.is_transposed else weights.shape[-2]
    made = x.new_empty((x.shape[0], width), dtype=weights.dtype) if in_place else None
    parts, begin = [], 0
    for expert, size in enumerate(sizes):
        if size == 0:
            continue
        end = begin + size
        part = _multiply(
            x[begin:end], weights[expert], None if biases is None else biases[expert],
            experts.is_transposed, made[begin:end] if in_place else None,
        )  # fmt: skip
        if not in_place:
            parts.append(part)
        begin = end
    if in_place:
        return made
    return torch.cat(parts) if parts else x.new_empty((0, width))


def expert_rows(experts: Any, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """What the experts make of rows that are sorted by expert, `sizes` of each, before their weights."""
    learns = torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for p in experts.parameters())
    )
    x = x.to(experts.down_proj.dtype)
    if experts.has_gate:
        hidden = experts._apply_gate(_each(experts, x, sizes, "gate_up_proj", not learns))
    else:
        hidden = experts.act_fn(_each(experts, x, sizes, "up_proj", not learns))
    out = _each(experts, hidden, sizes, "down_proj", not learns)
    # Not every version of transformers 5 has the field.
    normed = getattr(experts, "has_post_expert_norm", False)
    return experts.post_expert_norm(out) if normed else out


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
    made = expert_rows(experts, hidden[tokens], sizes)
    # Each token adds up its own rows, slot by slot: the same order every time.
    by_slot = torch.argsort(live)
    kept = torch.bincount(tokens, minlength=len(hidden))
    factors = weights.reshape(-1)[live[by_slot]].to(made.dtype)
    begins = torch.cumsum(kept, 0) - kept
    out = F.embedding_bag(by_slot, made, begins, mode="sum", per_sample_weights=factors)
    return out.to(hidden.dtype)


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
