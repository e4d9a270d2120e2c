"""The hooks of SGLang and TensorRT-LLM: against SGLang's own functions where they import, and against the interface
of TensorRT-LLM as it was recorded. Neither ran on a GPU.
"""
import importlib
import inspect
import os
import subprocess
import sys
import types
from typing import Optional

import pytest

torch = pytest.importorskip("torch")

from adaptive_k import Gating, Policy, Router  # noqa: E402
from adaptive_k import sglang as plugin  # noqa: E402
from adaptive_k.integrations import c_library  # noqa: E402
from adaptive_k.tensorrt_llm import method_class  # noqa: E402

T, E, K = 40, 32, 8


def logits(dtype=torch.float32):
    return (torch.randn(T, E, generator=torch.Generator().manual_seed(3)) * 2).to(dtype)


# --- SGLang -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def topk():
    """SGLang's own module, its hooks applied as its load_plugins does."""
    folder = os.environ.get("ADAPTIVE_K_SGLANG_FOLDER")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    return pytest.importorskip("sglang.srt.layers.moe.topk")


@pytest.fixture
def hooked(topk, monkeypatch):
    """register() under settings, then the registry's own apply_hooks."""
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    stock = topk._post_process_topk_ids

    def under(text: str):
        monkeypatch.setenv(plugin.ENVIRONMENT, text)
        registry.reset()
        topk._post_process_topk_ids = stock
        plugin.register()
        registry.apply_hooks()
        assert topk._post_process_topk_ids is not stock

    yield under
    registry.reset()
    topk._post_process_topk_ids = stock


def select(topk, given, layer=0, **config):
    made = topk.TopKConfig(top_k=K, torch_native=True, **config)
    out = topk.select_experts(torch.zeros(T, 16), given, made, layer_id=layer)
    return out.topk_weights, out.topk_ids


def dense(weights, ids):
    kept = ids >= 0
    return torch.zeros(len(ids), E).scatter_add_(1, ids.clamp_min(0).long(), weights.float() * kept)


@pytest.mark.parametrize("renormalize", [True, False])
def test_sglangs_select_experts(topk, hooked, renormalize):
    given = logits()
    stock = select(topk, given, renormalize=renormalize)
    hooked("full")
    full = select(topk, given, renormalize=renormalize)
    assert torch.equal(full[0], stock[0]) and torch.equal(full[1], stock[1])
    hooked("top_p:0.8")
    weights, ids = select(topk, given, renormalize=renormalize)
    router = Router(Gating(E, K, renormalize=renormalize), Policy.top_p(0.8, K))
    own = router.route(given)
    assert ((ids >= 0).sum(1) == own.counts).all() and (own.counts < K).any()
    assert (weights[ids < 0] == 0).all()
    torch.testing.assert_close(dense(weights, ids), dense(own.weights, own.ids), rtol=1e-4, atol=1e-6)


def test_sglangs_padding_stays_masked_and_layers_have_their_own_policy(topk, hooked, tmp_path):
    hooked('{"preset": "reference-32x8", "policy": "calibrated", "first_layer": 1}')
    given = logits()
    seen = {layer: (select(topk, given, layer=layer, renormalize=True)[1] >= 0).sum(1) for layer in (1, 2, 3, 4)}
    assert len({tuple(k.tolist()) for k in seen.values()}) > 1
    for layer in (0, 5):
        with pytest.raises(ValueError, match=f"layer {layer}: the policy is for 4 MoE layers from layer 1 on"):
            select(topk, given, layer=layer, renormalize=True)


def test_sglangs_hook_refuses_what_does_not_fit(topk, hooked):
    hooked('{"preset": "mixtral-8x7b"}')
    with pytest.raises(ValueError, match="num_experts is 8, and the model's is 32"):
        select(topk, logits(), renormalize=True)
    hooked("fixed:2")
    with pytest.raises(ValueError, match="custom_routing_function"):
        select(topk, logits(), custom_routing_function=lambda **k: k["gating_output"].softmax(-1).topk(K))


def test_sglangs_hook_checks_what_it_narrows():
    config = types.SimpleNamespace(
        top_k=K, use_grouped_topk=False, topk_group=None, num_expert_group=None, renormalize=True,
        custom_routing_function=None, correction_bias=None, routed_scaling_factor=None,
        apply_routed_scaling_factor_on_output=False, scoring_func="softmax",
    )  # fmt: skip
    values, ids = logits().softmax(-1).topk(K)
    made = plugin.Narrowing({"policy": "fixed:2"})
    with pytest.raises(ValueError, match="routes otherwise than"):
        made.keep(ids, values, config, logits(), 0)  # not renormalised, though the config says so
    kept, factor = made.keep(ids, values / values.sum(1, keepdim=True), config, logits(), 0)
    assert (kept.sum(1) == 2).all() and (factor > 1).all() and made.metrics[0].tokens == T


def test_sglang_is_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv(plugin.ENVIRONMENT, raising=False)
    monkeypatch.setitem(sys.modules, "sglang", None)  # would fail to import
    plugin.register()
    for text, told in (('{"polcy": 1}', "polcy: not known"), ('{"policy": 1}', "expected str"), ("{", "JSON")):
        with pytest.raises(ValueError, match=told):
            plugin.read(text)


# --- TensorRT-LLM ----------------------------------------------------------------------------------------


class RecordedBase(torch.nn.Module):
    """BaseMoeRoutingMethod of TensorRT-LLM 1.2 (tensorrt_llm/_torch/modules/fused_moe/routing.py): names and
    signatures alone."""

    def apply(self, _router_logits) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def get_experts_per_token(self) -> int:
        return self.top_k

    @property
    def experts_per_token(self) -> int:
        return self.get_experts_per_token()

    @property
    def routing_method_type(self) -> int:
        return 6


LIBRARY: Optional[str] = os.environ.get(c_library.ENVIRONMENT)
needs_library = pytest.mark.skipif(not LIBRARY, reason=f"{c_library.ENVIRONMENT} is not set")


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", ["full", "calibrated", "top_p:0.7"])
def test_the_routing_method_of_tensorrt_llm(dtype, policy):
    made = method_class(RecordedBase, 6)("reference-32x8", policy, layer=2)
    assert isinstance(made, RecordedBase) and made.experts_per_token == 8 and made.routing_method_type == 6
    for name in ("apply", "get_experts_per_token"):
        theirs = inspect.signature(getattr(RecordedBase, name)).parameters
        assert len(inspect.signature(getattr(type(made), name)).parameters) == len(theirs)
    given = logits(dtype)
    ids, scales = made.apply(given)
    assert (ids.dtype, scales.dtype) == (torch.int32, torch.float32) and ids.shape == scales.shape == (T, 8)
    own = Router.from_preset("reference-32x8", policy).route(given, layer=2)
    assert torch.equal(ids, own.ids) and torch.equal(scales, own.weights)  # to the bit, -1 and 0 included
    if policy != "full":
        assert (ids == -1).any() and (scales[ids == -1] == 0).all()
    apart = torch.zeros(T, E + 8, dtype=dtype)
    apart[:, :E] = given
    assert torch.equal(made.apply(apart[:, :E])[0], ids)
    assert made.apply(given[:0])[0].shape == (0, 8)


@needs_library
def test_the_c_librarys_refusals_come_through():
    with pytest.raises(ValueError, match="no-such-model"):
        c_library.CRouter("no-such-model")
    with pytest.raises(ValueError, match="fill: 'zero', expected one of"):
        c_library.CRouter("reference-32x8", fill="zero")
    router = c_library.CRouter("reference-32x8")
    with pytest.raises(ValueError, match=r"expected \[num_tokens, 32\]"):
        router.route(torch.zeros(4, 31))
    with pytest.raises(ValueError, match="routing_bias: given"):
        router.route(torch.zeros(4, 32), routing_bias=torch.zeros(32))
    with pytest.raises(ValueError, match="callable_e_score_correction_bias"):
        method_class(RecordedBase, 6)("deepseek-v3", "full")


def test_both_are_importable_without_their_engines():
    code = (
        "import sys\n"
        "for name in ('torch', 'sglang', 'tensorrt_llm'): sys.modules[name] = None\n"
        "import adaptive_k.sglang, adaptive_k.tensorrt_llm"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
