"""Metrics for Prometheus, JSON log lines and traces of the K selection, all by the C++ library.

Built in where Boost's headers were found; otherwise importing this raises ImportError that says so.
"""
from __future__ import annotations

import dataclasses
import time
from typing import Any, Optional, Sequence

import numpy as np

from . import _core
from ._core import Metrics

if not hasattr(_core, "Recorder"):
    raise ImportError(
        "adaptive_k was built without Boost's headers (Debian: libboost-dev), so it has no "
        "observability: install them and build the package again"
    )

from ._core import (  # noqa: E402
    HttpServer,
    JsonLogger,
    PerfettoTrace,
    Recorder,
    TraceCall,
    default_recorder,
    layer_bars,
    token_bars,
)

__all__ = [
    "HttpServer", "InferenceTrace", "JsonLogger", "LayerTrace", "PerfettoTrace", "Recorder",
    "TraceCall", "default_recorder", "get_debugger", "get_logger", "get_metrics", "layer_bars",
    "record", "start_http_server", "token_bars", "trace_k_selection",
]  # fmt: skip


def start_http_server(port: int = 9464) -> None:
    """Serves the default recorder on 127.0.0.1:port/metrics until the process ends.

    Raises ValueError where it cannot listen. HttpServer listens elsewhere, and can be stopped.
    """
    _core.start_http_server(port)


def record(
    model: str, layer: int, policy: str, metrics: Metrics, latency_seconds: float,
    recorder: Optional[Recorder] = None,
) -> None:  # fmt: skip
    """Adds one batch to the default recorder, or to the one given."""
    (recorder or default_recorder()).record(model, layer, policy, metrics, latency_seconds)


@dataclasses.dataclass
class InferenceTrace:
    """One inference, as the published package's log_inference takes it."""

    request_id: str
    timestamp: float = dataclasses.field(default_factory=time.time)
    latency_ms: float = 0.0
    avg_k: float = float("nan")
    compute_saved_pct: float = float("nan")
    """Percent of the model's own expert calls."""
    k_distribution: dict = dataclasses.field(default_factory=dict)
    layer_entropies: Sequence[float] = ()
    used_fallback: bool = False
    error: Optional[str] = None


class Logger:
    """JSON lines by the C++ logger: a thread of its own, a bounded queue, drops that are counted."""

    def __init__(self, component: str, path: str, fields: str) -> None:
        self._lines = JsonLogger(path, name=component, fields=fields)

    def log_inference(
        self, trace: Optional[InferenceTrace] = None, *, metrics: Optional[Metrics] = None,
        latency_ms: Optional[float] = None, avg_k: Optional[float] = None, request_id: str = "",
        model: str = "", policy: str = "", layer: int = -1,
    ) -> bool:  # fmt: skip
        """One line with avg_k, savings and latency: of a trace, of Metrics, or of plain numbers.

        False where the queue was full and the line was dropped."""
        line: dict[str, Any] = {"model": model, "policy": policy, "layer": layer}
        message, level = "routed", "info"
        if trace is not None:
            line.update(
                trace_id=trace.request_id, mean_k=trace.avg_k,
                expert_savings=trace.compute_saved_pct / 100,
                latency_seconds=trace.latency_ms / 1e3,
            )  # fmt: skip
            if trace.error is not None:
                message, level = f"failed: {trace.error}", "error"
        if metrics is not None:
            line.update(
                tokens=metrics.tokens, mean_k=metrics.mean_k, expert_savings=metrics.expert_savings
            )
        if latency_ms is not None:
            line["latency_seconds"] = latency_ms / 1e3
        if avg_k is not None:
            line["mean_k"] = avg_k
        if request_id:
            line["trace_id"] = request_id
        return self._lines.log(message, level=level, **line)

    def debug(self, event: str) -> bool:
        return self._lines.log(event, level="debug")

    def info(self, event: str) -> bool:
        return self._lines.log(event, level="info")

    def warning(self, event: str) -> bool:
        return self._lines.log(event, level="warn")

    def error(self, event: str) -> bool:
        return self._lines.log(event, level="error")

    def flush(self) -> None:
        """Waits until everything is written. Raises ValueError after two seconds."""
        self._lines.flush()

    @property
    def dropped(self) -> int:
        return self._lines.dropped


_loggers: dict[tuple, Logger] = {}


def get_logger(component: str = "adaptive_k", path: str = "", fields: str = "ecs") -> Logger:
    """The logger of that name; `path` "" is stderr, `fields` are Elastic's ("ecs") or "datadog"."""
    key = (component, path, fields)
    if key not in _loggers:
        _loggers[key] = Logger(component, path, fields)
    return _loggers[key]


class MetricsCollector:
    """The published name for the default recorder and its endpoint."""

    def start_http_server(self, port: int = 9464) -> None:
        start_http_server(port)

    def record(self, *arguments: Any, **named: Any) -> None:
        record(*arguments, **named)

    def render(self) -> str:
        """What the endpoint serves."""
        return default_recorder().render()


def get_metrics() -> MetricsCollector:
    return MetricsCollector()


def trace_k_selection(router: Any, logits: Any, *, layer: int = 0, width: int = 24) -> str:
    """One line a token: its signal and its K as bars, `router` being a Router or an AdaptiveKRouter.

    Bars of signals are as long as the largest shown; those of K as the model's own top-k.
    """
    router = getattr(router, "router", router)
    routed = router.route(logits, layer=layer)
    call = TraceCall(layer, np.asarray(routed.signal), np.asarray(routed.counts))
    return token_bars(call, full_k=router.gating.top_k, width=width)


@dataclasses.dataclass
class LayerTrace:
    """One layer, as the published package's visualize_layers takes it."""

    layer_idx: int
    entropy_mean: float
    entropy_std: float = 0.0
    k_selected: float = 0
    experts_used: int = 0
    latency_ms: float = 0.0


class Debugger:
    def trace_k_selection(
        self, entropies: Sequence[float], thresholds: Sequence[float], k_values: Sequence[int]
    ) -> dict:
        """The published rule on entropies (nats) that are known already: the K of each, and the bars.

        The comparison is the library's: H below a threshold takes its K."""
        signal = np.asarray(entropies, np.float32)
        # searchsorted counts the thresholds at or below: the first that is above decides.
        index = np.searchsorted(np.asarray(thresholds, np.float32), signal, side="right")
        selected = np.asarray(k_values, np.int32)[index]
        call = TraceCall(0, signal, selected)
        mean = float(selected.mean()) if len(selected) else 0.0
        return {
            "k_selections": selected.tolist(),
            "avg_k": mean,
            "compute_savings": 1 - mean / max(k_values),
            "bars": token_bars(call, full_k=int(max(k_values))),
        }

    def visualize_layers(self, layer_traces: Sequence[LayerTrace]) -> str:
        """One line a layer: mean entropy and K."""
        calls = [
            TraceCall(
                trace.layer_idx, np.array([trace.entropy_mean], np.float32),
                np.array([round(trace.k_selected)], np.int32),
            )
            for trace in layer_traces
        ]  # fmt: skip
        return layer_bars(calls)


def get_debugger() -> Debugger:
    return Debugger()
