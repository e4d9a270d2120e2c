"""The names that users of the published package know: AdaptiveKRouter, RoutingConfig, RoutingMetrics.

What differs, since its promise could not be kept: savings count against the model's own top-k, never
against all experts; K differs from token to token (ids -1 and weight 0 behind a token's own), where the
published one took the batch's largest for all; and presets are the models' own gatings.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Optional, Sequence, Union

from ._core import Gating, Metrics, Policy, Preset
from .router import Router

__all__ = ["AdaptiveKRouter", "RoutingConfig", "RoutingMetrics"]


@dataclasses.dataclass
class RoutingConfig:
    """Thresholds on the entropy of the softmax over all experts, nats: K = k_values[i] where the
    entropy is below entropy_thresholds[i], else the last. The model is taken to be a softmax router of
    num_experts that renormalises, whose own top-k is the last of k_values."""

    k_values: Sequence[int] = (1, 2, 4)
    entropy_thresholds: Sequence[float] = (0.6, 1.2)
    num_experts: int = 8

    def policy(self) -> Policy:
        return Policy.entropy(list(self.k_values), list(self.entropy_thresholds))

    def gating(self) -> Gating:
        if not self.k_values:
            raise ValueError("k_values: none, expected ascending numbers of experts")
        return Gating(self.num_experts, max(self.k_values))


@dataclasses.dataclass
class RoutingMetrics:
    """Of one call. `compute_savings` is the share of the model's own expert calls that were left out
    (the published package counted against all experts, which a top-2 model of 8 starts at 75%)."""

    entropy: float
    """Mean over the tokens, in the policy's signal: nats for entropies."""
    selected_k: Any
    """[num_tokens] int32: k of each token."""
    expert_indices: Any
    """[num_tokens, top_k], -1 past a token's k."""
    expert_weights: Any
    """[num_tokens, top_k], 0 past a token's k."""
    compute_savings: float
    """1 - sum of k / (num_tokens * top_k), in [0, 1)."""


class AdaptiveKRouter:
    """Routes with as many experts as a token needs, alone or inside a model of transformers.

        router = AdaptiveKRouter.from_pretrained("mixtral-8x7b")
        indices, weights, metrics = router.route(router_logits, return_metrics=True)
        model = router.patch(model)
    """

    def __init__(
        self,
        config: Optional[RoutingConfig] = None,
        *,
        gating: Optional[Gating] = None,
        policy: Optional[Union[Policy, str]] = None,
        name: str = "",
    ) -> None:
        """By a RoutingConfig, or by a gating and a policy (a Policy, or text as Policy.parse reads).

        With a policy alone, as AdaptiveKRouter(policy="top_p:0.85"), the gating is the one of the model
        that is patched; `route` then waits for that. Raises ValueError.
        """
        if config is not None and (gating is not None or policy is not None):
            raise ValueError("config: given beside gating or policy, expected one or the other")
        if config is None and policy is None:
            config = RoutingConfig()
        # The published configuration names no top-k: a model that is patched may have another one.
        self._expected = gating
        if config is not None:
            gating, policy = config.gating(), config.policy()
        if isinstance(policy, str) and gating is not None:
            policy = Policy.parse(policy, gating)
        self.config = config
        self.name = name
        self._policy = policy
        self._router = None if gating is None else Router(gating, policy)
        self._metrics = Metrics()
        self._patched: list[Any] = []

    @classmethod
    def from_pretrained(cls, name: str, policy: str = "") -> "AdaptiveKRouter":
        """By a preset's name, alias or .json file; `policy` names one of its policies.

        The default policies of the models that the published package knew are its thresholds,
        published and not reproduced; of others full K. Raises PresetError, which lists the names.
        """
        preset = Preset.load(name)
        return cls(gating=preset.gating, policy=preset.policy(policy), name=preset.name)

    @property
    def router(self) -> Router:
        """The library's router. Raises ValueError before a model gave its gating."""
        if self._router is None:
            raise ValueError(
                "the router has a policy and no gating: give gating=..., or patch a model first"
            )
        return self._router

    @property
    def policy(self) -> Union[Policy, str]:
        return self._policy

    def route(
        self, router_logits: Any, return_metrics: bool = False, **options: Any
    ) -> tuple[Any, Any, Optional[RoutingMetrics]]:
        """(indices, weights, metrics) of logits [num_tokens, num_experts], numpy or torch.

        indices [num_tokens, top_k] int32, best first, -1 past a token's own k; weights float32, 0
        there. metrics is None unless asked for. Options are those of Router.route.
        """
        counted = Metrics()
        routed = self.router.route(router_logits, metrics=counted, **options)
        self._metrics += counted
        if not return_metrics:
            return routed.ids, routed.weights, None
        metrics = RoutingMetrics(
            counted.mean_signal, routed.counts, routed.ids, routed.weights, counted.expert_savings
        )
        return routed.ids, routed.weights, metrics

    # --- models of transformers ------------------------------------------------------------------

    def patch(self, model: Any, **options: Any) -> Any:
        """Patches a model of transformers in place and returns it.

        Every MoE layer then runs the experts that the policy keeps; those dropped are not computed, in
        prefill and in decode. Options: shadow=True routes full K and counts what the policy would have
        taken; experts="stock" leaves the model's own experts implementation, which computes the dropped
        ones with weight 0 (quality without speed); skip_padding=False routes padding like tokens;
        gating=Gating(...) for a router class that is not known. The gating is read from the model and
        checked on random inputs first; at full K every layer's output is its own to the bit, else the
        model is refused. Raises ValueError (UnsupportedModel), which names what is missing.
        """
        from .integrations import transformers as engine

        policy, gating = self._policy, options.get("gating")
        if isinstance(policy, str):
            gating = gating or engine.moe_blocks(model)[0].gating
            layers = sum(1 for _ in engine.moe_blocks(model, gating))
            policy = Policy.parse(policy, gating, layers)
        if self.config is not None:
            own = engine.moe_blocks(model, gating)[0].gating
            if own.num_experts != self.config.num_experts:
                raise ValueError(
                    f"the router is made for another model: its num_experts is "
                    f"{self.config.num_experts}, and the model's is {own.num_experts}"
                )
        patched = engine.patch(model, policy, expected=self._expected, **options)
        if self._router is None:
            self._policy, self._router = policy, Router(patched.gating, policy)
        self._patched.append(patched)
        return model

    def unpatch(self, model: Any) -> Any:
        """The model as it was; what it counted stays in `stats`. Raises ValueError where it is not
        patched."""
        from .integrations import transformers as engine

        patched = getattr(model, "_adaptive_k", None)
        engine.unpatch(model)
        if patched in self._patched:
            self._patched.remove(patched)
            self._metrics += patched.metrics()
        return model

    # --- counts ------------------------------------------------------------------------------------

    @property
    def metrics(self) -> Metrics:
        """All that was routed since the last reset, by `route` and by patched models."""
        total = Metrics()
        total += self._metrics
        for patched in self._patched:
            total += patched.metrics()
        return total

    @property
    def layers(self) -> list[Metrics]:
        """Counters by MoE layer of the models that are patched."""
        layers: list[Metrics] = []
        for patched in self._patched:
            for i, metrics in enumerate(patched.layer_metrics()):
                if i == len(layers):
                    layers.append(Metrics())
                layers[i] += metrics
        return layers

    @property
    def stats(self) -> dict:
        """tokens_processed (of a model: tokens times MoE layers), average_savings in [0, 1),
        estimated_cost_reduction as text, and mean_k. Savings are of expert calls, against the model's
        own top-k: neither time nor money was measured."""
        total = self.metrics
        return {
            "tokens_processed": total.tokens,
            "average_savings": total.expert_savings,
            "estimated_cost_reduction": f"{100 * total.expert_savings:.1f}%",
            "mean_k": total.mean_k,
        }

    def reset_stats(self) -> None:
        """Zero, also for the models that are patched."""
        self._metrics = Metrics()
        for patched in self._patched:
            patched.reset_metrics()

    def __repr__(self) -> str:
        return f"AdaptiveKRouter({self.name or self._policy!r})"
