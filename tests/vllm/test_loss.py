"""Loss, savings and counters of the reference models in vLLM, against transformers on the same tokens."""
import json

import numpy as np
import pytest

pytest.importorskip("vllm")

import models  # noqa: E402

from adaptive_k import Preset, list_presets  # noqa: E402

every_model = pytest.mark.parametrize("name", models.available())
COUNT = 32  # windows: 8,160 predictions


def policies(name):
    """(settings, spec, preset): the calibrated one where the model has a preset, else top-p; and half of K."""
    half = f"fixed:{max(1, models.top_k(name) // 2)}"
    found = [({"policy": half}, half, "")]
    known = [preset.name for preset in list_presets()]
    if name in known and "calibrated" in Preset.load(name).policies:
        found.append(({"preset": name, "policy": "calibrated"}, "calibrated", name))
    else:
        found.append(({"policy": "top_p:0.8"}, "top_p:0.8", ""))
    return found


@every_model
def test_a_folder_has_no_other_safetensors(name):
    """vLLM loads every one as weights of the model."""
    assert [f.name for f in (models.MODELS / name).glob("*.safetensors")] == ["model.safetensors"]


@every_model
def test_full_k_is_the_unpatched_engines_to_the_bit(name):
    tokens = models.windows(name, COUNT)
    with models.Engine(name) as engine:
        stock = engine.likelihoods(tokens)
        texts = engine.generate(tokens[:4, :64], 24)
    with models.Engine(name, {"policy": "full"}) as engine:
        ours = engine.likelihoods(tokens)
        counted = engine.counted()
        assert engine.generate(tokens[:4, :64], 24) == texts
    assert (stock == ours).all()
    assert counted["tokens"] == models.moe_layers(name) * tokens.size
    assert counted["expert_calls"] == counted["full_expert_calls"] == counted["tokens"] * models.top_k(name)


@every_model
def test_loss_and_savings_are_those_of_transformers(name):
    tokens = models.windows(name, COUNT)
    full, _ = models.in_transformers(name, tokens, "full")
    for settings, spec, preset in policies(name):
        theirs, metrics = models.in_transformers(name, tokens, spec, preset)
        with models.Engine(name, settings) as engine:
            ours = engine.likelihoods(tokens)
            counted = engine.counted()
        assert counted["tokens"] == metrics.tokens, spec
        assert abs(counted["expert_savings"] - metrics.expert_savings) < 0.001, spec
        assert metrics.expert_savings > 0.05, spec
        assert abs(ours.mean() - theirs.mean()) < 1e-4, spec
        assert abs(ours.mean() - full.mean()) > 1e-4, spec  # the policy is at work
        print(f"{name} {spec}: loss {-ours.mean():.5f}, saved {counted['expert_savings']:.4%}")


def test_the_recorded_loss_of_the_whole_text():
    name = "reference-32x8"
    recorded = json.loads((models.MODELS / name / "expected_loss.json").read_text())
    expected = recorded["texts"]["heldout_test.txt"]
    tokens = models.windows(name, expected["predictions"] // 255)
    with models.Engine(name, {"preset": name, "policy": "calibrated"}) as engine:
        full = engine.likelihoods(tokens, {"adaptive_k": "off"})
        assert engine.counted()["expert_savings"] == 0
        engine.reset()
        ours = engine.likelihoods(tokens)
        counted = engine.counted()
    assert abs(-full.mean() - expected["nats_per_byte"]) < 1e-4
    # README's table: perplexity 3.4184 at 47.3% saved, by the library's own engine.
    assert abs(np.exp(-ours.mean()) - 3.4184) < 4e-4
    assert abs(counted["expert_savings"] - 0.4734) < 0.001
