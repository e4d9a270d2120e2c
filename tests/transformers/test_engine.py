"""A model as the program measures one: logits under any routing, and what calibration records."""
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from adaptive_k import AdaptiveKRouter, Policy, Router  # noqa: E402
from adaptive_k.integrations.evaluation import Engine  # noqa: E402

families = pytest.mark.parametrize("family", tiny_models.available())


def by_router(engine: Engine, policy: Policy):
    router = Router(engine.gating, policy)

    def route(layer, logits, ids, weights, counts, bias):
        router._core.route(layer, logits, ids, weights, counts, routing_bias=bias)

    return route


def run(engine: Engine, tokens: torch.Tensor, policy: Policy, observe=None) -> np.ndarray:
    logits = np.full((tokens.numel(), engine.vocab_size), np.nan, np.float32)
    engine.forward(tokens.numpy().astype(np.int32), logits, by_router(engine, policy), observe)
    return logits


@families
def test_logits_are_the_patched_models(family):
    model, tokens = tiny_models.make(family), tiny_models.tokens()
    engine = Engine(model)
    for policy in (Policy.full(), Policy.fixed(2)):
        ours = run(engine, tokens, policy)
        AdaptiveKRouter(gating=engine.gating, policy=policy).patch(model)
        with torch.no_grad():
            patched = model(tokens).logits.reshape(ours.shape).numpy()
        model._adaptive_k.remove()
        np.testing.assert_allclose(ours, patched, rtol=1e-3, atol=1e-4)
    assert not any(block.router._forward_hooks for block in engine.blocks)  # left as it was


@families
def test_what_is_recorded_adds_up_to_the_layer(family):
    """At full K: residual plus the weighted outputs is what the decoder layer puts out."""
    model, tokens = tiny_models.make(family), tiny_models.tokens(1, 9)
    engine, blocks, streams = Engine(model), [], []
    handles = [
        model.get_submodule(b.name.rsplit(".", 1)[0]).register_forward_hook(
            lambda m, a, out: streams.append(out[0] if isinstance(out, tuple) else out)
        )
        for b in engine.blocks
    ]
    run(engine, tokens, Policy.full(), lambda *block: blocks.append(block))
    for handle in handles:
        handle.remove()
    assert [block[0] for block in blocks] == list(range(engine.num_moe_layers))
    full = Router(engine.gating, Policy.full())
    for (_, logits, residual, outputs, bias), stream in zip(blocks, streams):
        routed = full.route(logits, routing_bias=bias)
        total = residual + np.einsum("tk,tkh->th", routed.weights, outputs)
        np.testing.assert_allclose(total, stream.reshape(total.shape).numpy(), rtol=1e-3, atol=2e-4)


def test_facts_of_a_model():
    engine = Engine(tiny_models.make("Qwen2Moe"), name="tiny")
    assert (engine.name, engine.vocab_size, engine.hidden_size) == ("tiny", 96, 32)
    assert engine.intermediate_size == 16 and engine.num_moe_layers == 2
    assert engine.num_shared_experts == 1 and engine.shared_intermediate_size == 32
    assert engine.expert_dtype == "F32" and engine.max_positions == 128
    assert Engine(tiny_models.make("Mixtral").to(torch.bfloat16)).expert_dtype == "BF16"
