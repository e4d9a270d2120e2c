"""The core binding, with numpy alone: against a direct computation in double precision."""
import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import adaptive_k
from adaptive_k import Gating, Metrics, Policy, Preset, PresetError, Router


def logits_of(tokens: int, experts: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (tokens, experts)).astype(np.float32)


def directly(logits: np.ndarray, top_k: int, k: np.ndarray, renormalize: bool, exponent: float):
    """ids, weights of k experts a token, straight from the definition."""
    x = logits.astype(np.float64)
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    ids = np.argsort(-p, 1, kind="stable")[:, :top_k]
    best = np.take_along_axis(p, ids, 1)
    total = best.sum(1, keepdims=True)
    w = best / total if renormalize else best
    kept = np.arange(top_k) < k[:, None]
    share = (best * kept).sum(1, keepdims=True) / total
    return np.where(kept, ids, -1), np.where(kept, w * share**-exponent, 0)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_fixed_k_against_a_direct_computation(renormalize, exponent):
    logits = logits_of(97, 60)
    for k in range(1, 9):
        router = Router(
            Gating(60, 8, renormalize=renormalize), Policy.fixed(k).adjusted(mass_exponent=exponent)
        )
        routed = router.route(logits)
        ids, weights = directly(logits, 8, np.full(97, k), renormalize, exponent)
        assert (routed.ids == ids).all()
        np.testing.assert_allclose(routed.weights, weights, rtol=2e-6, atol=1e-9)
        assert (routed.counts == k).all()


def test_the_published_rule_counts_in_nats():
    logits = logits_of(500, 8) * 2
    x = logits.astype(np.float64)
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    routed = Router(Gating(8, 4), Policy.entropy([1, 2, 4], [0.6, 1.2])).route(logits)
    expected = np.where(entropy < 0.6, 1, np.where(entropy < 1.2, 2, 4))
    assert set(expected) == {1, 2, 4}
    assert (routed.counts == expected).all()
    np.testing.assert_allclose(routed.signal, entropy, rtol=1e-5, atol=1e-6)


def test_types_rows_apart_and_more_axes_give_the_same():
    router = Router(Gating(64, 8), Policy.top_p(0.8, 8))
    wide = logits_of(33, 70)
    apart = wide[:, :64]
    plain = router.route(np.ascontiguousarray(apart))
    for other in (
        router.route(apart),
        router.route(np.ascontiguousarray(apart).reshape(3, 11, 64)),
        router.route(apart, num_threads=4),
        Router(Gating(64, 8), Policy.top_p(0.8, 8), instructions="scalar").route(apart),
    ):
        assert (other.ids == plain.ids).all()
        assert (other.weights == plain.weights).all()
    half = router.route(apart.astype(np.float16), id_dtype="int64", weight_dtype="float16")
    same = router.route(apart.astype(np.float16).astype(np.float32))
    assert half.ids.dtype == np.int64 and (half.ids == same.ids).all()
    assert (half.weights == same.weights.astype(np.float16)).all()
    bits = (apart.view(np.uint32) if apart.flags.c_contiguous else
            np.ascontiguousarray(apart).view(np.uint32))  # fmt: skip
    bf16 = (bits >> 16).astype(np.uint16)
    from_bits = router.route(bf16, logits_dtype="bfloat16")
    widened = (bf16.astype(np.uint32) << 16).view(np.float32)
    assert (from_bits.weights == router.route(widened).weights).all()


def test_no_copy_is_made_of_what_is_read_only():
    logits = logits_of(4, 8)
    logits.flags.writeable = False
    assert Router(Gating(8, 2), Policy.full()).route(logits).ids.shape == (4, 2)


def test_padding_limits_shadow_and_load():
    router = Router(Gating(16, 4), Policy.fixed(2))
    logits = logits_of(6, 16)
    padding = np.array([0, 1, 0, 0, 1, 0], bool)
    metrics, load = Metrics(), np.zeros(16, np.uint64)
    routed = router.route(logits, padding_mask=padding, metrics=metrics, expert_counts=load)
    assert (routed.counts == np.where(padding, 0, 2)).all()
    assert metrics.tokens == 4 and metrics.padding_tokens == 2 and metrics.expert_calls == 8
    assert metrics.expert_savings == 0.5 and metrics.mean_k == 2 and load.sum() == 8
    limits = np.array([3, 1, 1, 4, 1, 1], np.uint8)
    at_least = router.route(logits, k_min=limits)
    assert (at_least.counts == np.maximum(limits, 2)).all()
    shadow = router.route(logits, shadow=True)
    full = Router(Gating(16, 4), Policy.full()).route(logits)
    assert (shadow.chosen == 2).all() and (shadow.weights == full.weights).all()


def test_metrics_add_up_copy_and_travel():
    router = Router(Gating(16, 4), Policy.top_p(0.7, 4))
    logits = logits_of(64, 16)
    whole, parts = Metrics(), Metrics()
    router.route(logits, metrics=whole)
    for half in (logits[:20], logits[20:]):
        part = Metrics()
        router.route(half, metrics=part)
        parts += pickle.loads(pickle.dumps(part))
    assert parts.expert_calls == whole.expert_calls and parts.tokens == 64
    assert parts.k_histogram == whole.k_histogram and parts.mean_signal == whole.mean_signal
    assert (copy.copy(whole) + whole).tokens == 128
    assert whole.to_dict(4)["k_histogram"] == whole.k_histogram[:5]


def test_keep_leaves_the_engines_choice_its_own():
    gating = Gating(32, 8)
    logits = logits_of(200, 32)
    full = Router(gating, Policy.full()).route(logits)
    router = Router(gating, Policy.top_p(0.7, 8).adjusted(mass_exponent=0.5))
    routed = router.route(logits)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(8), (200, 1)), axis=1)
    shuffled = np.take_along_axis(full.ids, order, 1)
    kept, factor, counts, _ = router.keep(logits, np.ascontiguousarray(shuffled))
    assert (counts == routed.counts).all() and 1 < counts.mean() < 8
    assert (kept == (order < counts[:, None])).all()
    weights = np.take_along_axis(full.weights, order, 1) * kept * factor[:, None]
    expected = np.take_along_axis(routed.weights, order, 1)
    np.testing.assert_allclose(weights, expected, rtol=3e-7)
    assert (factor[counts == 8] == 1).all()
    # A tie that the engine broke the other way: its expert counts as the last, and none is lost.
    tied = np.zeros((1, 32), np.float32)
    own = np.array([[31, 30, 29, 28, 27, 26, 25, 24]], np.int64)
    kept, _, counts, _ = Router(gating, Policy.fixed(3)).keep(tied, own)
    assert counts[0] == 3 and kept.sum() == 3


def test_threads_share_a_router_and_release_the_gil():
    router, logits = Router(Gating(128, 8), Policy.top_p(0.8, 8)), logits_of(2000, 128)
    expected, shared, wrong = router.route(logits), Metrics(), []

    def work():
        for _ in range(5):
            routed = router.route(logits, metrics=shared)
            if not (routed.weights == expected.weights).all():
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and shared.tokens == 20 * 2000


REFUSALS = [
    (lambda r, x: r.route(x[:, :15]), r"logits: has the shape \[6, 15\], expected \[num_tokens, 16\]"),
    (lambda r, x: r.route(x[0]), r"logits: has the shape \[16\]"),
    (lambda r, x: r.route(x.astype(np.float64)), "logits: is of float64, expected float32"),
    (lambda r, x: r.route(x.astype(np.int32)), "logits: is of int32"),
    (lambda r, x: r.route(np.asfortranarray(x)), "logits: has strides of 1 and 6 elements"),
    (lambda r, x: r.route(x, layer=-1), "layer is -1, expected 0 or more"),
    (lambda r, x: r.route(x, padding_mask=np.zeros(5, bool)), r"padding_mask: has the shape \[5\]"),
    (lambda r, x: r.route(x, padding_mask=np.zeros(6)), "padding_mask: is of float64"),
    (lambda r, x: r.route(x, routing_bias=np.zeros(16, np.float32)), "no selection_bias"),
    (lambda r, x: r.route(x, k_min=np.full(6, 5, np.uint8)), "k_min = 5"),
    (lambda r, x: r.route(x, num_threads=0), "num_threads: 0, expected 1 or more"),
    (lambda r, x: r.route(x, id_dtype="int8"), "ids: is of int8"),
    (lambda r, x: r.route(x, logits_dtype="bf16"), "logits_dtype: 'bf16'"),
    (lambda r, x: r.keep(x, np.zeros((6, 3), np.int64)), r"ids: has the shape \[6, 3\]"),
    (lambda r, x: Gating(8, 9), "top_k is 9, expected 1..8"),
    (lambda r, x: Gating(8, 2, kind="softmin"), "kind: 'softmin', expected one of softmax, sigmoid"),
    (lambda r, x: Router(Gating(16, 4), Policy.fixed(5)), "fixed k is 5, expected 1..top_k = 4"),
    (lambda r, x: Router(Gating(16, 4), Policy.full(), fill="zero"), "fill: 'zero'"),
    (lambda r, x: Policy.thresholds("margin", [1, 2], [0.5, 0.4]), None),
    (lambda r, x: Policy.per_layer([]), "layers: none"),
    (
        lambda r, x: Router(Gating(64, 8), Preset.load("reference-32x8").policy("calibrated")),
        "tables for top_k = 8 of 32 experts, expected those of the gating: 8 of 64",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_refusals_name_field_value_and_range(case):
    call, message = REFUSALS[case]
    router = Router(Gating(16, 4), Policy.full())
    if message is None:  # refused where the router is made
        with pytest.raises(ValueError, match="num_k_values|thresholds"):
            Router(Gating(16, 4), call(router, logits_of(6, 16)))
        return
    with pytest.raises(ValueError, match=message):
        call(router, logits_of(6, 16))


def test_what_is_no_array_is_refused():
    with pytest.raises(TypeError, match="logits: list, expected a numpy array or a torch tensor"):
        Router(Gating(16, 4), Policy.full()).route([[0.0] * 16])


def test_presets():
    names = [preset.name for preset in adaptive_k.list_presets()]
    assert "mixtral-8x7b" in names and "reference-32x8" in names
    preset = Preset.load("Reference-32x8")
    assert preset.gating.top_k == 8 and preset.num_moe_layers == 4
    assert preset.policy("calibrated").provenance == "measured"
    assert Preset.load("mixtral-8x7b").policy().provenance == "published, not reproduced"
    router = Router.from_preset("reference-32x8", "calibrated")
    assert router.num_layers == 4
    with pytest.raises(ValueError, match="layer is 4, expected 0..3"):
        router.route(logits_of(2, 32), layer=4)
    with pytest.raises(PresetError, match="mixtral-8x7b"):
        Preset.load("no-such-model")


def test_policies_are_values():
    policy = Policy.parse("top_p:0.9,a=0.5,k_min=2", Gating(16, 4))
    assert policy.spec(0, 4) == "top_p:0.9,a=0.5,k_min=2" and policy.rule() == "thresholds"
    assert "k_max=3" in policy.adjusted(k_max=3).spec() and "k_max" not in policy.spec()
    assert policy.adjusted(super_experts=[3, 0]).spec().endswith(",super_experts=3+0")
    with pytest.raises(ValueError, match="super_experts: 9 experts, expected at most 8"):
        policy.adjusted(super_experts=list(range(9)))
    more = policy.scaled(4.0)
    logits = logits_of(400, 16)
    assert (
        Router(Gating(16, 4), more).route(logits).counts.sum()
        < Router(Gating(16, 4), policy).route(logits).counts.sum()
    )
    layers = Policy.per_layer([Policy.fixed(1), Policy.fixed(3), Policy.full()])
    router = Router(Gating(16, 4), layers)
    assert [router.route(logits, layer=i).counts[0] for i in range(3)] == [1, 3, 4]
    assert layers.layers(1, 2).num_layers == 2 and layers.layers(1, 1).spec() == "fixed:3"


def test_importing_needs_neither_torch_nor_transformers():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import adaptive_k; print(adaptive_k.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == adaptive_k.__version__


def test_a_controller_holds_its_target_and_goes_on_from_its_state():
    gating, base = Gating(24, 6), Policy.top_p(0.75, 6)
    controller = adaptive_k.SavingsController(0.4, decision_tokens=2048)
    router, saved = Router(gating, base), []
    for batch in range(60):
        metrics = Metrics()
        router.route(logits_of(512, 24, batch), metrics=metrics)
        saved.append(metrics.expert_savings)
        moved = controller.observe(metrics)
        state = controller.state()
        controller = adaptive_k.SavingsController(0.4, decision_tokens=2048)
        controller.resume(state)
        assert controller.state() == state
        if moved:
            router = Router(gating, base.scaled(controller.scale))
    assert abs(np.mean(saved[-20:]) - 0.4) < 0.01 < abs(saved[0] - 0.4)
    assert not controller.at_bound and not controller.at_jump


def test_a_controllers_refusals_name_the_field():
    with pytest.raises(ValueError, match="expert_savings"):
        adaptive_k.SavingsController(1.5)
    controller = adaptive_k.SavingsController(0.4)
    state = controller.state()
    for field, wrong in (("scale", 99.0), ("phase", 7), ("tokens", -1), ("scale", "x")):
        with pytest.raises(ValueError, match=field):
            controller.resume({**state, field: wrong})
    with pytest.raises(ValueError, match="reversals: is missing"):
        controller.resume({k: v for k, v in state.items() if k != "reversals"})
    assert controller.state() == state


def test_keep_takes_limits_of_each_token():
    logits = logits_of(64, 32)
    full = Router(Gating(32, 8), Policy.full())
    ids = full.route(logits).ids
    k_max = np.arange(64, dtype=np.uint8) % 8 + 1
    kept, _, counts, _ = full.keep(logits, ids, k_max=k_max)
    assert (counts == k_max).all() and (kept.sum(1) == k_max).all()
    # A token's limit goes before the policy's own least k.
    strict = Router(Gating(32, 8), Policy.top_p(0.9, 8).adjusted(k_min=4))
    _, _, counts, _ = strict.keep(logits, ids, k_max=np.full(64, 2, np.uint8))
    assert (counts == 2).all()
