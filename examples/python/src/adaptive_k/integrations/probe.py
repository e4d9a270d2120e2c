"""Whether an engine's own router chooses and weighs as a gating says: the check before anything is replaced."""
from __future__ import annotations

from typing import Optional

import torch

from .._core import Gating, Policy
from ..router import Router


def routing_differs(
    gating: Gating,
    logits: torch.Tensor,
    ids: torch.Tensor,
    weights: Optional[torch.Tensor],
    bias: Optional[torch.Tensor] = None,
) -> str:
    """'' where the engine's ids and weights [num_tokens, top_k] of `logits` [num_tokens, num_experts] are
    those of `gating` at full K, in any order of slots; else the first token that differs, in words.

    Rounded logits tie, and ties are broken either way: what differs by a tie alone is no difference.
    Weights may differ by the rounding of their type; None: the choice alone is compared.
    """
    chosen_alone = weights is None
    weights = torch.ones(ids.shape) if chosen_alone else weights
    logits, ids, weights = (t.detach().cpu() for t in (logits, ids, weights))
    bias = None if bias is None else bias.detach().float().cpu().contiguous()
    own = Router(gating, Policy.full()).route(logits.contiguous(), routing_bias=bias)
    dense = torch.zeros(len(logits), gating.num_experts)
    theirs = dense.scatter(1, ids.long(), weights.float())
    ours = dense.scatter(1, own.ids.long(), torch.ones(ids.shape) if chosen_alone else own.weights)
    exact = logits.dtype == torch.float32 and weights.dtype == torch.float32
    tolerance = 2e-5 if exact else 2e-2
    scale = theirs.abs().amax(1, keepdim=True).clamp_min(1e-20)
    off = ((theirs - ours).abs() / scale).amax(1)
    tied = torch.zeros(len(logits), dtype=torch.bool)
    for t in torch.nonzero(off > tolerance).flatten().tolist():
        only = set(ids[t].tolist()) ^ set(own.ids[t].tolist())
        values = logits[t].float()[sorted(only)] if only else torch.zeros(0)
        tied[t] = bool(only) and bias is None and bool((values - values[0]).abs().max() == 0)
    if not bool(((off > tolerance) & ~tied).any()):
        return ""
    t = int((off * ~tied).argmax())
    return (
        f"routes otherwise than {gating!r}: for a random token it chose "
        f"{ids[t].tolist()} with weights {[round(w, 5) for w in weights[t].float().tolist()]}, "
        f"the gating {own.ids[t].tolist()} with {[round(w, 5) for w in own.weights[t].tolist()]}"
    )
