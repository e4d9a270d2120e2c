"""Counters on vLLM's own /metrics, under the names that adaptive-k has everywhere.

vLLM's server collects other processes' metrics from the folder PROMETHEUS_MULTIPROC_DIR, where it is set (the
server sets it itself for more than one front end). Without it the counters stay in the worker.
"""
from __future__ import annotations

from typing import Any, Optional

from .._core import Metrics
from .routing import Arm

_LABELS = ("model", "layer", "policy")
# Those of the C++ library's recorder (include/adaptive_k/observability/prometheus.hpp).
_COUNTERS = {
    "tokens": ("adaptive_k_tokens", "Tokens routed, padding left out."),
    "calls": ("adaptive_k_routing_calls", "Routing calls with at least one token."),
    "expert_calls": ("adaptive_k_expert_calls", "Experts run, summed over tokens."),
    "full_expert_calls": (
        "adaptive_k_full_expert_calls",
        "Experts that the model's own top-k would have run, summed over tokens.",
    ),
    "distinct_experts": (
        "adaptive_k_experts_touched",
        "Distinct experts of each routing call, summed over calls.",
    ),
    "nonfinite_rows": ("adaptive_k_nonfinite_rows", "Tokens with a NaN or infinite router logit."),
    "super_expert_tokens": (
        "adaptive_k_super_expert_tokens",
        "Tokens that got more experts than the rule says, as super experts are never dropped.",
    ),
    "out_of_domain": (
        "adaptive_k_out_of_domain",
        "Tokens that do not look like those that the policy was calibrated on.",
    ),
    "shadow_expert_calls": (
        "adaptive_k_shadow_expert_calls",
        "Experts that the policy of calls in shadow mode would have run, summed over tokens.",
    ),
    "shadow_full_expert_calls": (
        "adaptive_k_shadow_full_expert_calls",
        "Experts that calls in shadow mode did run: the model's own top-k, summed over tokens.",
    ),
}
_LATENCY_BUCKETS = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05,
    0.1, 0.25, 1.0,
)  # fmt: skip
_GAUGES = {
    "mean_k": ("adaptive_k_avg_k", "Mean experts of a token since the start."),
    "expert_savings": (
        "adaptive_k_compute_saved_ratio",
        "Share of the model's own expert calls that were not run, since the start.",
    ),
    "shadow_expert_savings": (
        "adaptive_k_shadow_saved_ratio",
        "Share of expert calls that the policy of calls in shadow mode would have saved.",
    ),
    "mean_distinct_experts": (
        "adaptive_k_distinct_experts",
        "Mean distinct experts of a routing call since the start.",
    ),
}


class Publisher:
    """Gathers each step, and adds to the published counters when asked."""

    def __init__(self, model: str, arms: list[Arm], num_layers: int, controller: Optional[Any]) -> None:
        import prometheus_client

        made = _instruments(prometheus_client)
        self._controller = controller
        self._model = model
        self._counters, self._latency, self._k, self._gauges, self._control = made
        self._pending: dict[tuple[int, str], Metrics] = {}
        self._seconds: dict[tuple[int, str], list[float]] = {}
        self._totals: dict[tuple[int, str], Metrics] = {}

    def add(self, layer: int, arm: Arm, metrics: Metrics, seconds: list[float]) -> None:
        key = (layer, arm.label)
        self._pending.setdefault(key, Metrics()).__iadd__(metrics)
        self._seconds.setdefault(key, []).extend(seconds)

    def publish(self) -> None:
        for key, metrics in self._pending.items():
            labels = (self._model, str(key[0]), key[1])
            for field, counter in self._counters.items():
                counter.labels(*labels).inc(getattr(metrics, field))
            for k, count in enumerate(metrics.k_histogram):
                if count:
                    self._k.labels(*labels, str(k)).inc(count)
            latency = self._latency.labels(*labels)
            for value in self._seconds[key]:
                latency.observe(value)
            total = self._totals.setdefault(key, Metrics())
            total += metrics
            for field, gauge in self._gauges.items():
                gauge.labels(*labels).set(getattr(total, field))
        self._pending.clear()
        self._seconds.clear()
        if self._controller is not None:
            state = self._controller.state()
            self._control["scale"].labels(self._model).set(state["scale"])
            self._control["target"].labels(self._model).set(self._controller.settings.expert_savings)
            self._control["at_bound"].labels(self._model).set(float(state["at_bound"]))


_made: Optional[tuple] = None


def _instruments(client: Any) -> tuple:
    """Made once a process: a registry takes each name once."""
    global _made
    if _made is not None:
        return _made
    counters = {
        field: client.Counter(name, text, _LABELS) for field, (name, text) in _COUNTERS.items()
    }
    latency = client.Histogram(
        "adaptive_k_latency_seconds", "Time of a routing call.", _LABELS, buckets=_LATENCY_BUCKETS
    )
    k = client.Counter("adaptive_k_k", "Tokens by how many experts ran for them.", (*_LABELS, "k"))

    def gauge(name: str, text: str, labels: tuple) -> Any:
        return client.Gauge(name, text, labels, multiprocess_mode="mostrecent")

    gauges = {field: gauge(name, text, _LABELS) for field, (name, text) in _GAUGES.items()}
    control = {
        "scale": gauge("adaptive_k_controller_scale", "What multiplies the policies.", ("model",)),
        "target": gauge("adaptive_k_controller_target", "The saving that is held.", ("model",)),
        "at_bound": gauge(
            "adaptive_k_controller_at_bound", "1 where the target cannot be met.", ("model",)
        ),
    }
    _made = (counters, latency, k, gauges, control)
    return _made
