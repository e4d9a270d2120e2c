"""Which gating a router class of transformers has: what its forward computes, as the library says it.

Told by the router's class, and its numbers by the module and the model's config. A claim that the probe
at patch time checks on the model itself, so that a class that changes is refused and never misread.
"""
from __future__ import annotations

from typing import Any, Callable, Optional

from .._core import Gating


class UnsupportedModel(ValueError):
    """A model that cannot be patched; the message names the class and what is missing."""


def _softmax(router: Any, config: Any, renormalize: bool, scale: float = 1.0) -> Gating:
    return Gating(
        router.num_experts, router.top_k, renormalize=renormalize, routed_scaling_factor=scale
    )


def _always(router: Any, config: Any) -> Gating:
    return _softmax(router, config, True)


def _never(router: Any, config: Any) -> Gating:
    return _softmax(router, config, False)


def _as_told(router: Any, config: Any) -> Gating:
    return _softmax(router, config, bool(router.norm_topk_prob))


def _selected(router: Any, config: Any) -> Gating:
    return Gating(router.num_experts, router.top_k, kind="top_k_softmax")


def _sparsemixer(router: Any, config: Any) -> Gating:
    return Gating(
        router.num_experts, router.top_k, kind="sparsemixer", renormalize=False,
        jitter_epsilon=router.router_jitter_noise,
    )  # fmt: skip


def _deepseek_v2(router: Any, config: Any) -> Gating:
    limited = router.topk_method == "group_limited_greedy"
    if not limited and router.topk_method != "greedy":
        raise UnsupportedModel(
            f"{type(router).__name__}: topk_method is {router.topk_method!r}, expected 'greedy' or "
            "'group_limited_greedy'"
        )
    return Gating(
        router.num_experts, router.top_k, renormalize=False, group_rank="maximum",
        routed_scaling_factor=router.routed_scaling_factor,
        n_group=router.num_group if limited else 1,
        topk_group=router.topk_group if limited else 1,
    )  # fmt: skip


def _sigmoid_with_bias(router: Any, config: Any) -> Gating:
    return Gating(
        router.num_experts, router.top_k, kind="sigmoid", selection_bias=True,
        renormalize=bool(router.norm_topk_prob), n_group=router.num_group,
        topk_group=router.topk_group, routed_scaling_factor=router.routed_scaling_factor,
    )  # fmt: skip


GATINGS: dict[str, Callable[[Any, Any], Gating]] = {
    "MixtralTopKRouter": _always,
    "MiniMaxTopKRouter": _always,
    "HunYuanMoEV1Gate": _always,
    "Qwen2MoeTopKRouter": _as_told,
    "Qwen3MoeTopKRouter": _as_told,
    "OlmoeTopKRouter": _as_told,
    "FlexOlmoTopKRouter": _as_told,
    "JambaTopKRouter": _never,
    "GptOssTopKRouter": _selected,
    "GraniteMoeTopKRouter": _selected,
    "GraniteMoeSharedTopKRouter": _selected,
    "GraniteMoeHybridTopKRouter": _selected,
    "PhimoeTopKRouter": _sparsemixer,
    "DeepseekV2TopkRouter": _deepseek_v2,
    "DeepseekV3TopkRouter": _sigmoid_with_bias,
    "Glm4MoeTopkRouter": _sigmoid_with_bias,
    "NemotronHTopkRouter": _sigmoid_with_bias,
}


def gating_of(router: Any, config: Any) -> Gating:
    """The gating of a router module. Raises UnsupportedModel for a class that is not known."""
    name = type(router).__name__
    if name not in GATINGS:
        raise UnsupportedModel(
            f"{name}: no gating is known for this router class, expected one of "
            f"{', '.join(sorted(GATINGS))}; where its routing is one of the library's, say which by "
            "patch(model, gating=Gating(...)), which is checked on the model"
        )
    try:
        return GATINGS[name](router, config)
    except AttributeError as error:
        raise UnsupportedModel(f"{name}: {error}: not the router that this version knows") from None


def bias_of(router: Any) -> Optional[Any]:
    """The selection bias [num_experts] of a router, or None."""
    return getattr(router, "e_score_correction_bias", None)


def gating_differs(ours: Gating, theirs: Gating) -> str:
    """'' where two gatings route alike, else which field differs."""
    names = ["kind", "num_experts", "top_k", "selection_bias", "n_group", "routed_scaling_factor"]
    if ours.kind != "top_k_softmax":
        names.append("renormalize")
    if ours.n_group > 1:
        names += ["topk_group", "group_rank"]
    for name in names:
        if getattr(ours, name) != getattr(theirs, name):
            return f"{name} is {getattr(ours, name)!r}, and the model's is {getattr(theirs, name)!r}"
    return ""
