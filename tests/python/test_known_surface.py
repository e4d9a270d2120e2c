"""What users of the published package know, line by line: each example of its README, typed as it stands
there, on stand-ins for what it leaves open (`router_logits`, `model`, `execute_experts`)."""
import json
import socket
import urllib.request

import numpy as np
import pytest

import adaptive_k
from adaptive_k import _core

has_observability = pytest.mark.skipif(
    not hasattr(_core, "Recorder"), reason="built without Boost's headers"
)


def some_logits(tokens=400, experts=8, seed=0):
    return np.random.default_rng(seed).normal(0, 2.5, (tokens, experts)).astype(np.float32)


def test_quick_start():
    router_logits = some_logits()

    from adaptive_k import AdaptiveKRouter

    # Load pre-calibrated router
    router = AdaptiveKRouter.from_pretrained("mixtral-8x7b")

    # Route tokens
    indices, weights, metrics = router.route(router_logits, return_metrics=True)

    line = f"Compute savings: {metrics.compute_savings:.1%}"

    # The promise was 47.2%, of all 8 experts' calls; against the model's own two, and at most a half:
    kept = indices >= 0
    assert line == f"Compute savings: {1 - kept.sum() / 800:.1%}"
    assert 0 < metrics.compute_savings < 0.5
    assert (metrics.selected_k == kept.sum(1)).all() and set(metrics.selected_k) == {1, 2}
    assert (weights[~kept] == 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    assert 0 < metrics.entropy < np.log(8)
    assert metrics.expert_indices is indices and metrics.expert_weights is weights


def test_basic_routing():
    class model:  # noqa: N801
        def router(self):
            return self @ matrix

    hidden_states, matrix = some_logits(20, 16), some_logits(16, 8, 1)

    def execute_experts(hidden, indices, weights):
        return sum(
            weights[:, j : j + 1] * np.where(indices[:, j : j + 1] >= 0, hidden, 0)
            for j in range(indices.shape[1])
        )

    from adaptive_k import AdaptiveKRouter

    router = AdaptiveKRouter.from_pretrained("mixtral-8x7b")

    # Your MoE router logits (batch_size, num_experts)
    router_logits = model.router(hidden_states)

    # Adaptive-K routing
    expert_indices, expert_weights, _ = router.route(router_logits)

    # Use selected experts
    output = execute_experts(hidden_states, expert_indices, expert_weights)
    assert _ is None
    np.testing.assert_allclose(output, hidden_states, rtol=1e-5)  # experts that do nothing


def test_check_statistics():
    router = adaptive_k.AdaptiveKRouter.from_pretrained("mixtral-8x7b")
    assert router.stats["tokens_processed"] == 0 and router.stats["average_savings"] == 0
    routed = router.route(some_logits(1000))
    # After processing many tokens
    stats = router.stats
    saved = 1 - (routed[0] >= 0).sum() / 2000
    assert stats["tokens_processed"] == 1000
    assert stats["average_savings"] == pytest.approx(saved)
    assert stats["estimated_cost_reduction"] == f"{100 * saved:.1f}%"
    router.reset_stats()
    assert router.stats["tokens_processed"] == 0


def test_configuration():
    from adaptive_k import AdaptiveKRouter, RoutingConfig

    config = RoutingConfig(
        k_values=[1, 2, 4],           # Available K values
        entropy_thresholds=[0.6, 1.2], # H < 0.6 → K=1, H < 1.2 → K=2, else K=4
        num_experts=8
    )  # fmt: skip

    router = AdaptiveKRouter(config=config)

    logits = some_logits()
    p = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
    p /= p.sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    indices, _, metrics = router.route(logits, return_metrics=True)
    expected = np.where(entropy < 0.6, 1, np.where(entropy < 1.2, 2, 4))
    assert (metrics.selected_k == expected).all() and set(expected) == {1, 2, 4}
    # Each token has its own K; the published one gave all of them the batch's largest.
    assert ((indices >= 0).sum(1) == expected).all()


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen1.5-moe-a2.7b", "olmoe-1b-7b"])
def test_published_models_have_their_published_thresholds(name):
    router = adaptive_k.AdaptiveKRouter.from_pretrained(name)
    assert router.policy.provenance == "published, not reproduced"


def test_names_in_the_wrong_hands():
    with pytest.raises(adaptive_k.PresetError, match="expected one of .*mixtral-8x7b"):
        adaptive_k.AdaptiveKRouter.from_pretrained("gpt-2")
    with pytest.raises(ValueError, match="config: given beside gating or policy"):
        adaptive_k.AdaptiveKRouter(adaptive_k.RoutingConfig(), policy="full")
    with pytest.raises(ValueError, match="k_values: none"):
        adaptive_k.AdaptiveKRouter(adaptive_k.RoutingConfig(k_values=[]))
    with pytest.raises(ValueError, match="num_thresholds|thresholds"):
        adaptive_k.AdaptiveKRouter(adaptive_k.RoutingConfig([1, 2, 4], [0.6]))
    with pytest.raises(ValueError, match="a policy and no gating"):
        adaptive_k.AdaptiveKRouter(policy="top_p:0.9").route(some_logits())


@has_observability
def test_endpoint_serves_what_was_recorded():
    from adaptive_k import Metrics, observability

    router = adaptive_k.AdaptiveKRouter.from_pretrained("mixtral-8x7b")
    router.route(some_logits(100))
    observability.record("mixtral", 3, "published", router.metrics, 0.002)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    observability.start_http_server(port)
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    labels = 'model="mixtral",layer="3",policy="published"'
    for name in ("adaptive_k_latency_seconds_count", "adaptive_k_avg_k", "adaptive_k_compute_saved_ratio"):
        (line,) = [x for x in text.splitlines() if x.startswith(f"{name}{{{labels}")]
        if name == "adaptive_k_compute_saved_ratio":
            assert float(line.split()[-1]) == pytest.approx(router.metrics.expert_savings)
    with pytest.raises(ValueError, match=str(port)):
        observability.start_http_server(port)

    own = observability.Recorder()
    own.record("m", -1, "p", Metrics(), 0.5)
    server = observability.HttpServer()
    server.start(own, port=0)
    assert server.running and server.port > 0
    server.stop()
    assert 'layer="all"' in own.render() and "# EOF" in own.render(openmetrics=True)


@has_observability
def test_log_lines(tmp_path):
    from adaptive_k.observability import InferenceTrace, get_logger

    path = tmp_path / "log.jsonl"
    logger = get_logger("service", str(path))
    assert get_logger("service", str(path)) is logger
    trace = InferenceTrace("r-1", latency_ms=12.5, avg_k=1.4, compute_saved_pct=30.0)
    assert logger.log_inference(trace)
    assert logger.log_inference(avg_k=2.0, latency_ms=3.0, request_id="r-2", model="m")
    logger.warning("slow")
    logger.flush()
    first, second, third = (json.loads(line) for line in path.read_text().splitlines())
    assert first["trace.id"] == "r-1" and first["adaptive_k.avg_k"] == 1.4
    assert first["adaptive_k.savings"] == pytest.approx(0.3) and first["adaptive_k.latency_ms"] == 12.5
    assert second["adaptive_k.model"] == "m" and second["adaptive_k.avg_k"] == 2
    assert third["log.level"] == "warn" and third["message"] == "slow" and logger.dropped == 0


@has_observability
def test_traces_of_the_k_selection():
    from adaptive_k.observability import LayerTrace, PerfettoTrace, TraceCall, get_debugger
    from adaptive_k.observability import trace_k_selection

    router = adaptive_k.AdaptiveKRouter.from_pretrained("mixtral-8x7b")
    logits = some_logits(3)
    lines = trace_k_selection(router, logits).splitlines()
    assert len(lines) == 3 and all("#" in line for line in lines)
    found = get_debugger().trace_k_selection([0.3, 0.6, 2.0], [0.6, 1.2], [1, 2, 4])
    assert found["k_selections"] == [1, 2, 4] and found["compute_savings"] == pytest.approx(1 - 7 / 12)
    bars = get_debugger().visualize_layers([LayerTrace(0, 0.42, k_selected=1), LayerTrace(1, 1.9, k_selected=4)])
    assert len(bars.splitlines()) == 2 and "0.42" in bars
    trace = PerfettoTrace("mixtral")
    trace.add(TraceCall(0, np.array([0.4], np.float32), np.array([1], np.int32), 0.0, 5.0))
    assert json.loads(trace.json())["traceEvents"]
    with pytest.raises(ValueError, match="counts: is of int64"):
        TraceCall(0, np.array([0.4], np.float32), np.array([1], np.int64))


@has_observability
def test_ab_test():
    from adaptive_k.ab_test import ABTest, Variant

    test = ABTest(["full", "adaptive"])
    variants = [test.assign_variant(f"request {i}") for i in range(2000)]
    assert variants == [ABTest(["full", "adaptive"]).assign_variant(f"request {i}") for i in range(2000)]
    assert 900 < variants.count("adaptive") < 1100
    random = np.random.default_rng(0)
    for variant in variants:
        slow, saved = (1.0, 0.0) if variant == "full" else (0.8, 0.4)
        test.record(variant, slow + 0.1 * random.random(), saved, -1 + 0.1 * random.random())
    results = test.compute_results()
    assert results.trustworthy and len(results.comparisons) == 1
    (adaptive,) = results.comparisons
    assert adaptive.latency.found and -0.25 < adaptive.latency.effect < -0.15
    assert adaptive.savings.found and not adaptive.quality.found
    assert "latency" in str(results)
    with pytest.raises(ValueError, match="variant: 'none', expected one of full, adaptive"):
        test.record("none", 1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="weight"):
        ABTest(["full", Variant("b", weight=0.0)])
