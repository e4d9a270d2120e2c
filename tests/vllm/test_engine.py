"""How the plug-in lives inside the engine: requests of different policies, caches, chunks, A/B, shadow, the
controller, compiled graphs, and what keeps an engine from starting.
"""
import json

import numpy as np
import pytest

pytest.importorskip("vllm")

import models  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402

from adaptive_k.vllm import Refused, start  # noqa: E402
from adaptive_k.vllm.requests import Chooser  # noqa: E402
from adaptive_k.vllm.settings import read  # noqa: E402

NAME = "reference-32x8"
LAYERS, TOP_K = 4, 8
PRESET = {"preset": NAME, "policy": "calibrated"}


@pytest.fixture(scope="module")
def tokens():
    return models.windows(NAME, 12)


@pytest.fixture(scope="module")
def alone(tokens):
    """Log-likelihoods of each policy by itself."""
    with models.Engine(NAME, {"policy": "fixed:3"}) as engine:
        found = {3: engine.likelihoods(tokens), 8: engine.likelihoods(tokens, {"adaptive_k": "off"})}
        found[2] = engine.likelihoods(tokens, {"adaptive_k_k_max": 2})
    return found


def test_requests_of_one_batch_are_routed_each_by_its_own(tokens, alone):
    asked = [None, {"adaptive_k": "off"}, {"adaptive_k_k_max": 2}]
    each = [asked[i % 3] for i in range(len(tokens))]
    with models.Engine(NAME, {"policy": "fixed:3"}) as engine:
        mixed = engine.likelihoods(tokens, each)
        policies = engine.workers()[0]["policies"]
        with pytest.raises(VLLMValidationError, match="adaptive_k: 'of', expected one of off, on"):
            engine.likelihoods(tokens[:1], {"adaptive_k": "of"})
    for i, k in enumerate([3, 8, 2] * 4):
        np.testing.assert_allclose(mixed[i], alone[k][i], atol=1e-4)
    part = tokens.size // 3 * LAYERS
    assert policies["full"]["tokens"] == part and policies["full"]["expert_calls"] == part * TOP_K
    assert policies["fixed:3"]["tokens"] == 2 * part
    assert policies["fixed:3"]["expert_calls"] == part * (3 + 2)


def test_kv_of_one_policy_is_not_taken_for_another(tokens, alone):
    """With prefix caching: the same prompt under another policy is computed anew, and under its own not."""
    with models.Engine(NAME, {"policy": "fixed:3"}, enable_prefix_caching=True, block_size=32) as engine:

        def first_logprob(extra):
            from vllm import SamplingParams

            params = SamplingParams(
                max_tokens=1, temperature=0, logprobs=1, detokenize=False, extra_args=extra
            )
            engine.reset()
            out = engine.llm.generate([{"prompt_token_ids": tokens[0].tolist()}], params, use_tqdm=False)
            (best,) = [p for p in out[0].outputs[0].logprobs[0].values() if p.rank == 1]
            return best.logprob, engine.counted()["tokens"] // LAYERS

        cold = first_logprob(None)
        assert cold[1] == 256
        off = first_logprob({"adaptive_k": "off"})
        assert off[1] == 256 and off[0] != cold[0]
        again = first_logprob(None)
        assert again[1] < 256 and abs(again[0] - cold[0]) < 1e-4
        limited = first_logprob({"adaptive_k_k_max": 2})
        assert limited[1] == 256 and limited[0] not in (cold[0], off[0])


def test_chunked_prefill_and_decode_count_each_token_once(tokens):
    with models.Engine(NAME, PRESET, max_num_batched_tokens=48, enable_chunked_prefill=True) as engine:
        first = engine.generate(tokens[:5, :200], 20)
        chunked = engine.counted()
    with models.Engine(NAME, PRESET) as engine:
        assert engine.generate(tokens[:5, :200], 20) == first
        whole = engine.counted()
    # The last token that is generated is never read.
    assert chunked["tokens"] == whole["tokens"] == 5 * (200 + 19) * LAYERS
    assert abs(chunked["expert_calls"] - whole["expert_calls"]) < 0.002 * whole["expert_calls"]


def test_shadow_mode_is_full_k_that_counts(tokens, alone):
    with models.Engine(NAME, {"policy": "fixed:3", "shadow": True}) as engine:
        ours = engine.likelihoods(tokens)
        counted = engine.counted()
    np.testing.assert_array_equal(ours, alone[8])
    assert counted["expert_savings"] == 0 and counted["shadow_expert_savings"] == 1 - 3 / TOP_K


def test_an_ab_test_by_request_id(tokens, alone):
    settings = {
        "variants": [
            {"name": "control", "policy": "full"},
            {"name": "three", "policy": "fixed:3", "weight": 2},
        ],
        "salt": 5,
    }  # fmt: skip
    chooser = Chooser(read(settings))
    with models.Engine(NAME, settings) as engine:
        start_of_ids = int(next(engine.llm.request_counter))  # LLM numbers its requests
        ours = engine.likelihoods(tokens)
        policies = engine.workers()[0]["policies"]
        named = engine.likelihoods(tokens[:1], {"adaptive_k": "control"})
    given = [
        chooser.resolve(str(start_of_ids + 1 + i), None)["adaptive_k"] for i in range(len(tokens))
    ]
    assert set(given) == {"control", "three"}
    for i, variant in enumerate(given):
        np.testing.assert_allclose(ours[i], alone[8 if variant == "control" else 3][i], atol=1e-4)
    for variant, k in (("control", TOP_K), ("three", 3)):
        share = given.count(variant) * 256 * LAYERS
        assert policies[variant]["tokens"] == share and policies[variant]["expert_calls"] == share * k
    np.testing.assert_allclose(named[0], alone[8][0], atol=1e-4)


def test_the_controller_holds_its_target_and_resumes(tokens, tmp_path):
    state = tmp_path / "controller.json"
    settings = {
        **PRESET,
        "controller": {"expert_savings": 0.3, "decision_tokens": 4096, "state": str(state)},
    }
    many = models.windows(NAME, 96)
    with models.Engine(NAME, settings) as engine:
        engine.likelihoods(many[:64])
        engine.reset()
        engine.likelihoods(many[64:])
        held, controller = engine.counted(), engine.workers()[0]["controller"]
    assert abs(held["expert_savings"] - 0.3) < 0.01  # 0.47 without it
    stored = json.loads(state.read_text())
    assert stored["state"]["scale"] == controller["scale"] < 1
    with models.Engine(NAME, settings) as engine:
        assert engine.workers()[0]["controller"]["scale"] == controller["scale"]
        engine.likelihoods(many[64:72])
        assert abs(engine.counted()["expert_savings"] - 0.3) < 0.02
    stored["state"]["scale"] = 1e9
    state.write_text(json.dumps(stored))
    with pytest.raises(Refused, match=r"controller.state: .*scale is 1e\+09, expected 0.0625..16"):
        models.Engine(NAME, settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"preset": "mixtral-8x7b"}, "made for another model: its num_experts is 8, and the model's is 32"),
        ({"preset": "no-such-model"}, "no-such-model"),
        ({"policy": "fixed:9"}, "fixed:9"),
        ({"policy": "fixed:2", "gating": {"kind": "sigmoid"}}, "expected no adaptive_k.gating"),
        ({"policy": "fixed:2", "controller": {"expert_savings": 0.3}}, "has nothing to scale"),
    ],
)  # fmt: skip
def test_what_does_not_fit_keeps_the_engine_from_starting(settings, told):
    with pytest.raises(Refused) as refused:
        models.Engine(NAME, settings)
    message = str(refused.value)
    assert told in message and "\n" not in message


def test_an_untested_version_is_refused(monkeypatch):
    monkeypatch.setattr(start, "TESTED_VERSIONS", ("0.1.0",))
    with pytest.raises(Refused, match=r"vLLM 0\.32\.0.* was not tested, expected 0\.1\.0"):
        models.Engine(NAME, {"policy": "fixed:2"})
    models.Engine(NAME, {"policy": "fixed:2", "allow_untested": True}).close()


def test_a_router_that_chooses_otherwise_is_refused(monkeypatch):
    from vllm.model_executor.layers.fused_moe.router import cpu_router

    own = cpu_router._softmax_topk

    def by_raw_logits(router_logits, top_k, renormalize):
        weights, ids = own(router_logits, top_k, renormalize)
        return weights * 1.01, ids

    monkeypatch.setattr(cpu_router, "_softmax_topk", by_raw_logits)
    with pytest.raises(Refused, match="routes otherwise than Gating"):
        models.Engine(NAME, {"policy": "fixed:2"})


def test_kernels_that_route_inside_are_refused(monkeypatch):
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEKernel

    monkeypatch.setattr(FusedMoEKernel, "is_monolithic", True)
    with pytest.raises(Refused, match="routes inside its kernel, expected modular experts"):
        models.Engine(NAME, {"policy": "fixed:2"})


def test_an_unknown_backend_computes_what_is_dropped(monkeypatch, tokens, alone):
    """No row of the table: the safe fill, the same loss, nothing skipped; and it says so."""
    from adaptive_k.vllm import experts

    monkeypatch.setattr(experts, "SENTINELS", ())
    told = []
    monkeypatch.setattr(start.logger, "info", lambda text, *args: told.append(text % args))
    with models.Engine(NAME, {"policy": "fixed:3"}) as engine:
        ours = engine.likelihoods(tokens)
        assert engine.counted()["expert_savings"] == 1 - 3 / TOP_K
    np.testing.assert_allclose(ours, alone[3], atol=1e-4)
    assert "computed with weight 0: no row of the table is for CPUUnquantizedExperts" in told[0]


def test_settings_of_the_environment(monkeypatch, tokens, alone):
    monkeypatch.setenv("ADAPTIVE_K_VLLM", "fixed:3")
    with models.Engine(NAME) as engine:
        np.testing.assert_allclose(engine.likelihoods(tokens[:2]), alone[3][:2], atol=1e-4)
        assert engine.counted()["expert_savings"] == 1 - 3 / TOP_K


def test_off_leaves_everything_as_it_was():
    with models.Engine(NAME) as engine:
        with pytest.raises(Exception, match="adaptive_k_metrics"):
            engine.workers()
        runner = engine.llm.llm_engine.engine_core
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    assert not hasattr(CPURouter, "adaptive_k_layer") and runner is not None


def test_compiled(tokens, alone):
    with models.Engine(NAME, {"policy": "fixed:3"}, enforce_eager=False) as engine:
        ours = engine.likelihoods(tokens)
        # Warm-up and profiling went through the same layers and are counted nowhere.
        counted = engine.counted()
        full = engine.likelihoods(tokens, {"adaptive_k": "off"})
    np.testing.assert_allclose(ours, alone[3], atol=1e-4)
    np.testing.assert_allclose(full, alone[8], atol=1e-4)
    assert counted["tokens"] == tokens.size * LAYERS
    assert counted["expert_calls"] == counted["tokens"] * 3
