"""Patching: what is counted, per-layer policies, shadow mode, torch.compile, and what is refused."""
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

import adaptive_k  # noqa: E402
from adaptive_k import AdaptiveKRouter, Gating, Policy, RoutingConfig  # noqa: E402
from adaptive_k.integrations import experts  # noqa: E402
from adaptive_k.integrations import transformers as integration  # noqa: E402
from adaptive_k.integrations.gatings import UnsupportedModel  # noqa: E402


def logits_of(model, ids, **options):
    with torch.no_grad():
        return model(ids, **options).logits


def test_each_layer_has_its_policy_and_its_counters():
    model, ids = tiny_models.make("Qwen3Moe"), tiny_models.tokens(2, 10)
    policy = Policy.per_layer([Policy.fixed(1), Policy.fixed(3)])
    router = AdaptiveKRouter(gating=Gating(8, 4), policy=policy)
    router.patch(model)
    logits_of(model, ids)
    assert [m.mean_k for m in router.layers] == [1, 3] and router.stats["mean_k"] == 2
    assert router.stats["average_savings"] == 0.5
    router.reset_stats()
    assert router.stats["tokens_processed"] == 0
    model._adaptive_k.set_policy(Policy.fixed(4))
    logits_of(model, ids)
    assert router.stats["mean_k"] == 4
    router.unpatch(model)
    assert router.stats["tokens_processed"] == 40  # kept after the model is gone


def test_shadow_routes_full_k_and_counts_the_policy():
    model, ids = tiny_models.make("Mixtral"), tiny_models.tokens()
    AdaptiveKRouter(policy="full").patch(model)
    full = logits_of(model, ids)
    integration.unpatch(model)
    router = AdaptiveKRouter(policy="fixed:1")
    router.patch(model, shadow=True)
    assert torch.equal(logits_of(model, ids), full)
    assert router.metrics.expert_savings == 0
    assert router.metrics.shadow_expert_savings == pytest.approx(2 / 3)


def test_padding_is_not_counted_and_changes_nothing_for_the_others():
    model, ids = tiny_models.make("Mixtral"), tiny_models.tokens(2, 10)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 7:] = 0
    router = AdaptiveKRouter(policy="top_p:0.6")
    router.patch(model)
    padded = logits_of(model, ids, attention_mask=mask)
    assert router.metrics.padding_tokens == 3 * 2 and router.metrics.tokens == 17 * 2
    alone = logits_of(model, ids[1:, :7])
    torch.testing.assert_close(padded[1, :7], alone[0], rtol=1e-4, atol=1e-5)
    router.unpatch(model)
    router.reset_stats()
    router.patch(model, skip_padding=False)
    logits_of(model, ids, attention_mask=mask)
    assert router.metrics.padding_tokens == 0 and router.metrics.tokens == 40


def test_the_routers_logits_stay_for_the_auxiliary_loss():
    model, ids = tiny_models.make("Mixtral"), tiny_models.tokens()
    AdaptiveKRouter(policy="fixed:1").patch(model)
    with torch.no_grad():
        out = model(ids, output_router_logits=True)
    assert len(out.router_logits) == 2 and out.router_logits[0].shape[-1] == 8


@pytest.mark.parametrize("family", ["Mixtral", "GptOss", "DeepseekV3"])
def test_compiled_as_one_graph(family):
    model, ids = tiny_models.make(family), tiny_models.tokens(1, 8)
    router = AdaptiveKRouter(policy="fixed:2")
    router.patch(model)
    eager = logits_of(model, ids)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        traced = compiled(ids, use_cache=False).logits
    torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-5)
    assert router.stats["mean_k"] == 2


def test_the_operations_meet_torchs_contract():
    model = tiny_models.make("Mixtral")
    AdaptiveKRouter(policy="fixed:2").patch(model)
    block, layer = model._adaptive_k.blocks[0], model._adaptive_k.layers[0]
    x = torch.randn(6, 32)
    with torch.no_grad():
        logits = torch.nn.functional.linear(x, block.router.weight)
        weights, ids = logits.softmax(-1).topk(3)
    torch.library.opcheck(torch.ops.adaptive_k.keep.default, (logits, ids, None, None, layer.number))
    number = experts.number_of(block.experts)
    torch.library.opcheck(torch.ops.adaptive_k.experts.default, (x, ids, weights, number))


def test_a_preset_of_another_model_is_refused():
    model = tiny_models.make("Mixtral")
    with pytest.raises(ValueError, match="made for another model: its num_experts is 32, and the"):
        AdaptiveKRouter.from_pretrained("reference-32x8").patch(model)
    config = RoutingConfig(k_values=[1, 2, 4], entropy_thresholds=[0.6, 1.2], num_experts=8)
    with pytest.raises(ValueError, match="k_values.2. is 4, expected 3..3"):
        AdaptiveKRouter(config=config).patch(model)
    config.num_experts = 16
    with pytest.raises(ValueError, match="its num_experts is 16, and the model's is 8"):
        AdaptiveKRouter(config=config).patch(model)
    layers = Policy.per_layer([Policy.fixed(1)] * 3)
    with pytest.raises(ValueError, match="is for 3 MoE layers, and the model has 2"):
        AdaptiveKRouter(gating=Gating(8, 3), policy=layers).patch(model)
    with pytest.raises(ValueError, match="fixed k is 4, expected 1..top_k = 3"):
        AdaptiveKRouter(policy="fixed:4").patch(model)
    stock = logits_of(model, tiny_models.tokens())
    assert torch.equal(stock, logits_of(tiny_models.make("Mixtral"), tiny_models.tokens()))


def test_models_that_cannot_be_patched_say_why():
    router = AdaptiveKRouter(policy="full")
    config = hf.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM: no MoE layer was found"):
        router.patch(hf.LlamaForCausalLM(config).eval())
    with pytest.raises(TypeError, match="model: str, expected a torch.nn.Module"):
        router.patch("mixtral-8x7b")
    training = tiny_models.make("Mixtral").train()
    with pytest.raises(ValueError, match="training mode: call model.eval"):
        router.patch(training)
    model = tiny_models.make("Mixtral")
    router.patch(model)
    with pytest.raises(ValueError, match="is patched already"):
        AdaptiveKRouter(policy="full").patch(model)
    router.unpatch(model)
    with pytest.raises(ValueError, match="is not patched"):
        router.unpatch(model)
    with pytest.raises(ValueError, match="experts: 'fast'"):
        router.patch(model, experts="fast")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UnsupportedModel, match="its weights are quantised"):
        router.patch(model)


def test_llama_4_and_unknown_routers_are_refused_by_name():
    config = hf.Llama4TextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=32, intermediate_size_mlp=64,
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="Llama4Router: no gating is known for this router"):
        AdaptiveKRouter(policy="full").patch(hf.Llama4ForCausalLM(config).eval())
    with pytest.raises(UnsupportedModel, match="Llama4TextExperts cannot be given"):
        AdaptiveKRouter(policy="full").patch(
            hf.Llama4ForCausalLM(config).eval(), gating=Gating(4, 1, kind="sigmoid")
        )


def test_float8_experts_are_refused():
    model = tiny_models.make("Mixtral")
    for module in model.modules():
        if hasattr(module, "gate_up_proj"):
            weight = module.gate_up_proj.data.to(torch.float8_e4m3fn)
            module.gate_up_proj = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(UnsupportedModel, match="MixtralExperts holds torch.float8_e4m3fn"):
        AdaptiveKRouter(policy="full").patch(model)


def test_a_router_that_computes_something_else_is_refused():
    model = tiny_models.make("Mixtral")
    kind = type(model.model.layers[1].mlp.gate)
    plain = kind.forward

    class MixtralTopKRouter(kind):  # the class whose gating is known, and another computation
        def forward(self, hidden_states):
            logits, weights, ids = plain(self, hidden_states)
            return logits, weights.flip(-1), ids

    model.model.layers[1].mlp.gate.__class__ = MixtralTopKRouter
    with pytest.raises(UnsupportedModel, match=r"layers.1.mlp: MixtralTopKRouter: routes otherwise"):
        AdaptiveKRouter(policy="full").patch(model)
    # Nothing was left behind.
    assert not model.model.layers[0].mlp.gate._forward_hooks


def test_a_block_that_routes_by_itself_is_refused():
    model = tiny_models.make("Mixtral")
    block = model.model.layers[0].mlp
    kind = type(block)

    class Fused(kind):
        def forward(self, hidden_states):
            _, weights, ids = type(self.gate).forward(self.gate, hidden_states[0])
            return self.experts(hidden_states[0], ids, weights)[None]

    block.__class__ = Fused
    before = model.get_experts_implementation()
    with pytest.raises(UnsupportedModel, match="Fused does not call its router"):
        AdaptiveKRouter(policy="full").patch(model)
    assert model.get_experts_implementation() == before


def test_a_gating_that_the_caller_names_is_checked():
    class OwnRouter(torch.nn.Module):
        def __init__(self, gate):
            super().__init__()
            self.gate, self.hidden_dim = gate, gate.hidden_dim

        def forward(self, x):
            return self.gate(x)

    def model():
        made = tiny_models.make("Mixtral")
        for layer in made.model.layers:
            layer.mlp.gate = OwnRouter(layer.mlp.gate)
        return made

    with pytest.raises(UnsupportedModel, match="OwnRouter: no gating is known"):
        AdaptiveKRouter(policy="full").patch(model())
    with pytest.raises(UnsupportedModel, match="routes otherwise than Gating"):
        AdaptiveKRouter(policy="full").patch(model(), gating=Gating(8, 3, kind="sigmoid"))
    router = AdaptiveKRouter(policy="fixed:2")
    router.patch(patched := model(), gating=Gating(8, 3))
    logits_of(patched, tiny_models.tokens())
    assert router.stats["mean_k"] == 2


# --- Facts about transformers that the design relies on ----------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "grouped_mm", "batched_mm"])
def test_canary_minus_one_may_not_reach_a_stock_backend(backend):
    """Why dropped slots hold num_experts and go to experts of our own: -1 raises in one backend, is
    wrong in another without a word, and is right only in the third."""
    model = tiny_models.make("Mixtral")
    module = model.model.layers[0].mlp.experts
    module.config._experts_implementation_internal = backend
    x, weights = torch.randn(5, 32), torch.full((5, 3), 1 / 3)
    ids = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 3, 5], [2, 4, 6]])
    dropped, zero = ids.clone(), weights.clone()
    dropped[:, 2], zero[:, 2] = -1, 0
    with torch.no_grad():
        right = module(x, ids, zero)
        try:
            got = module(x, dropped, zero)
        except (RuntimeError, IndexError):
            outcome = "raises"
        else:
            outcome = "right" if torch.allclose(got, right, atol=1e-5) else "wrong"
    assert outcome == {"eager": "raises", "grouped_mm": "wrong", "batched_mm": "right"}[backend]


def test_canary_our_experts_skip_num_experts_and_nothing_else():
    model = tiny_models.make("Mixtral")
    module = model.model.layers[0].mlp.experts
    x, weights = torch.randn(5, 32), torch.rand(5, 3)
    ids = torch.randint(0, 8, (5, 3))
    dropped, zero = ids.clone(), weights.clone()
    dropped[1:, 1:], zero[1:, 1:] = 8, 0
    with torch.no_grad():
        ours = experts.run_experts(module, x, dropped, weights)
        assert torch.allclose(ours, experts.run_experts(module, x, ids, zero), atol=1e-6)
        module.config._experts_implementation_internal = "eager"
        assert torch.allclose(ours, module(x, ids, zero), atol=1e-5)
        nothing = experts.run_experts(module, x, torch.full_like(ids, 8), weights)
    assert torch.equal(nothing, torch.zeros(5, 32))
    assert adaptive_k.__version__


def test_gradients_pass_through_the_experts_that_ran():
    model = tiny_models.make("Mixtral")
    module = model.model.layers[0].mlp.experts
    x = torch.randn(5, 32, requires_grad=True)
    ids, weights = torch.randint(0, 4, (5, 3)), torch.rand(5, 3)
    ids[:, 2] = 8
    experts.run_experts(module, x, ids, weights).sum().backward()
    used = module.gate_up_proj.grad.abs().amax((1, 2)) > 0
    assert used.tolist() == [e in ids for e in range(8)] and x.grad.abs().sum() > 0
