"""adaptive K inside SGLang: a plug-in (`sglang.srt.plugins`) that does nothing unless ADAPTIVE_K_SGLANG is set.

    ADAPTIVE_K_SGLANG=top_p:0.85 python -m sglang.launch_server ...
    ADAPTIVE_K_SGLANG='{"preset": "my-model.json", "policy": "calibrated", "first_layer": 1}' ...

It stands around `_post_process_topk_ids`, which every standard top-k passes: SGLang's own capture, padding masks
and EPLB mapping see the model's own choice; then slots past a token's k get id -1 and weight 0, which its
align kernels take as none. Formats that route elsewhere (BYPASSED, TRITON_KERNEL) do not pass there: then
nothing is saved. On the host the engine's weights stay its own, times r^-a; the decision of tensors on a GPU
makes a round trip to the host, so CUDA graphs are refused. Run: SGLang 0.5.23's own select_experts on CPU; not
run on a GPU. Importing this needs neither SGLang nor torch.
"""
from __future__ import annotations

import inspect
import json
import os
from typing import Any, Callable, Optional

from ._core import Gating, Metrics, Policy, Preset

ENVIRONMENT = "ADAPTIVE_K_SGLANG"
TARGET = "sglang.srt.layers.moe.topk._post_process_topk_ids"
_FIELDS = ("preset", "policy", "first_layer", "num_layers")


def read(text: str) -> dict[str, Any]:
    """The settings of the environment: JSON, or the text of a policy. Raises ValueError."""
    if not text.startswith("{"):
        return {"policy": text}
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{ENVIRONMENT}: {error}, expected JSON or the text of a policy") from None
    for field, value in given.items():
        if field not in _FIELDS:
            raise ValueError(f"{ENVIRONMENT}.{field}: not known, expected one of {', '.join(_FIELDS)}")
        kind = str if field in ("preset", "policy") else int
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{ENVIRONMENT}.{field}: {value!r}, expected {kind.__name__}")
    if not (given.get("preset") or given.get("policy")):
        raise ValueError(f"{ENVIRONMENT}: neither preset nor policy, expected one of them")
    return given


def gating_of(config: Any, num_experts: int) -> Gating:
    """The gating of a TopKConfig. Raises ValueError for one that is not the library's."""
    if config.custom_routing_function is not None:
        raise ValueError("TopKConfig.custom_routing_function is the model's own, expected None")
    kinds = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrt_softplus"}
    if config.scoring_func not in kinds:
        raise ValueError(f"TopKConfig.scoring_func is {config.scoring_func!r}, expected one of {list(kinds)}")
    biased = config.correction_bias is not None
    # Groups without a bias are scored by a softmax, with one by a sigmoid, whatever the field says.
    kind = kinds[config.scoring_func]
    if config.use_grouped_topk and biased:
        kind = "sigmoid"
    groups = int(config.num_expert_group or 1) if config.use_grouped_topk else 1
    scaled = config.apply_routed_scaling_factor_on_output and config.routed_scaling_factor
    return Gating(
        num_experts, config.top_k - int(getattr(config, "num_shared_topk_slots", 0)), kind=kind,
        renormalize=bool(config.renormalize), selection_bias=biased, n_group=groups,
        topk_group=int(config.topk_group or 1) if groups > 1 else 1,
        group_rank="top2_sum" if biased else "maximum",
        routed_scaling_factor=float(scaled or 1.0),
    )  # fmt: skip


class Narrowing:
    """What the hook keeps: its policy for the gating that it meets, and what it counted by layer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.first_layer = int(settings.get("first_layer", 0))
        self.router: Optional[Any] = None
        self.metrics: dict[int, Metrics] = {}
        self._checked: set[int] = set()

    def _router_of(self, config: Any, num_experts: int) -> Any:
        from .router import Router

        gating = gating_of(config, num_experts)
        if self.router is None:
            preset, spec = self.settings.get("preset"), self.settings.get("policy", "")
            if preset:
                from .integrations.gatings import gating_differs

                loaded = Preset.load(preset)
                if differs := gating_differs(loaded.gating, gating):
                    raise ValueError(f"the preset '{loaded.name}' is made for another model: its {differs}")
                policy = loaded.policy(spec)
            else:
                policy = Policy.parse(spec, gating, int(self.settings.get("num_layers", 0)))
            self.router = Router(gating, policy)
        elif repr(self.router.gating) != repr(gating):
            raise ValueError(f"{gating!r}, unlike the first MoE layer's {self.router.gating!r}")
        return self.router

    def keep(self, ids: Any, weights: Any, config: Any, logits: Any, layer: Optional[int]) -> tuple[Any, Any]:
        """(kept [num_tokens, top_k] bool, factor [num_tokens]) of the engine's own choice."""
        import torch

        if logits.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("adaptive_k: a CUDA graph is captured, expected --disable-cuda-graph")
        router = self._router_of(config, logits.shape[1])
        top_k = router.gating.top_k
        bias = config.correction_bias
        host = logits.detach().cpu()
        host = host if host.stride(1) == 1 else host.contiguous()
        bias = None if bias is None else bias.detach().float().cpu().contiguous()
        own = ids[:, :top_k].cpu().contiguous()
        index = (layer or 0) - self.first_layer
        if index not in self._checked:
            self._check(router.gating, host[:32], own[:32], weights[:32, :top_k].cpu(), bias)
            self._checked.add(index)
        which = index if router.num_layers else 0
        if not 0 <= which < max(1, router.num_layers):
            raise ValueError(
                f"layer {layer}: the policy is for {router.num_layers} MoE layers from layer "
                f"{self.first_layer} on: set {ENVIRONMENT}.first_layer"
            )
        counted = self.metrics.setdefault(index, Metrics())
        kept, factor, _, _ = router.keep(host, own, layer=which, routing_bias=bias, metrics=counted)
        return kept.to(ids.device), factor.to(ids.device)

    @staticmethod
    def _check(gating: Gating, logits: Any, ids: Any, weights: Any, bias: Any) -> None:
        from .integrations.probe import routing_differs

        if differs := routing_differs(gating, logits, ids, weights, bias):
            raise ValueError(f"SGLang's top-k {differs}")

    def around(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The AROUND hook of _post_process_topk_ids."""
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        weights = given["topk_weights"]
        kept, factor = self.keep(
            given["topk_ids"], weights, given["topk_config"], given["router_logits"], given["layer_id"]
        )
        width = kept.shape[1]
        made = original(*args, **kwargs)
        ids, weights = made[0].clone(), made[1].clone()
        # Shared experts have columns of their own behind the routed ones, and stay.
        weights[:, :width] *= (factor.unsqueeze(1) * kept).to(weights.dtype)
        ids[:, :width].masked_fill_(~kept, -1)
        return (ids, weights, *made[2:])


def register() -> None:
    """What the entry point calls."""
    text = os.environ.get(ENVIRONMENT, "").strip()
    if not text:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, Narrowing(read(text)).around, HookType.AROUND)
