"""Every family of transformers that is integrated, as a tiny random model."""
import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from adaptive_k import AdaptiveKRouter  # noqa: E402
from adaptive_k.integrations import experts, transformers as integration  # noqa: E402

FAMILIES = tiny_models.available()
families = pytest.mark.parametrize("family", FAMILIES)


def logits_of(model, ids, **options):
    with torch.no_grad():
        return model(ids, **options).logits


def test_every_family_of_the_list_is_installed():
    assert FAMILIES == list(tiny_models.FAMILIES)


def by_hand(model, k, exponent):
    """Hooks of the test's own: k of the router's slots by its selection score, the others weight 0;
    written from the definition, with torch alone. The model's own eager experts compute all."""
    model.set_experts_implementation("eager")

    def narrow(router, args, output):
        logits, weights, ids = output
        bias = getattr(router, "e_score_correction_bias", None)
        rank_by = logits.float() if bias is None else logits.float().sigmoid() + bias
        best_first = rank_by.gather(1, ids).argsort(dim=1, descending=True, stable=True)
        keep = torch.zeros_like(ids, dtype=torch.bool).scatter(1, best_first[:, :k], True)
        share = (weights * keep).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return logits, weights * keep * share**-exponent, ids

    for block in integration.moe_blocks(model):
        block.router.register_forward_hook(narrow)
    return model


@families
def test_full_k_is_the_models_own_to_the_bit(family):
    model, ids = tiny_models.make(family), tiny_models.tokens()
    stock = logits_of(model, ids)
    router = AdaptiveKRouter(policy="full")
    assert router.patch(model) is model
    patched = logits_of(model, ids)
    assert router.stats["average_savings"] == 0 and router.stats["tokens_processed"] > 0
    torch.testing.assert_close(patched, stock, rtol=1e-4, atol=2e-5)  # another experts function
    router.unpatch(model)
    assert torch.equal(logits_of(model, ids), stock)
    experts.register()
    model.set_experts_implementation(experts.NAME)
    assert torch.equal(logits_of(model, ids), patched)  # the same experts function


@families
@pytest.mark.parametrize("exponent", [None, 0.5])
def test_fixed_k_is_what_a_direct_computation_gives(family, exponent):
    ids = tiny_models.tokens()
    gating = integration.moe_blocks(tiny_models.make(family))[0].gating
    own = 1.0 if gating.renormalize or gating.kind == "top_k_softmax" else 0.0
    for k in range(1, gating.top_k + 1):
        model = tiny_models.make(family)
        router = AdaptiveKRouter(policy=f"fixed:{k}" + ("" if exponent is None else f",a={exponent}"))
        router.patch(model)
        ours = logits_of(model, ids)
        assert router.stats["mean_k"] == k
        hand = by_hand(tiny_models.make(family), k, own if exponent is None else exponent)
        torch.testing.assert_close(ours, logits_of(hand, ids), rtol=2e-4, atol=5e-5)


@families
def test_dropped_experts_are_not_computed(family, monkeypatch):
    rows = []
    counted = experts._multiply

    def count(x, *others):
        rows.append(len(x))
        return counted(x, *others)

    monkeypatch.setattr(experts, "_multiply", count)
    model, ids = tiny_models.make(family), tiny_models.tokens()
    router = AdaptiveKRouter(policy="fixed:1").patch(model)
    rows.clear()
    logits_of(router, ids)
    layers = len(integration.moe_blocks(model))
    assert sum(rows) == 2 * ids.numel() * layers  # up and down


@families
def test_decode_with_a_cache_is_prefill(family):
    model, ids = tiny_models.make(family), tiny_models.tokens(2, 9)
    AdaptiveKRouter(policy="top_p:0.6").patch(model)
    whole = logits_of(model, ids)
    cache, steps = None, []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            out = model(ids[:, t : t + 1], cache=cache, use_cache=True)
            cache = getattr(out, "cache", None) or out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-3, atol=2e-4)


@families
def test_generate_with_left_padding(family):
    long, short = tiny_models.tokens(1, 12, seed=1), tiny_models.tokens(1, 7, seed=2)
    batch = torch.full((2, 12), 2)
    batch[0], batch[1, 5:] = long[0], short[0]
    mask = (torch.arange(12) >= torch.tensor([[0], [5]])).long()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    model = tiny_models.make(family)
    router = AdaptiveKRouter(policy="top_p:0.6")
    router.patch(model)
    together = model.generate(batch, attention_mask=mask, **options)[:, 12:]
    layers = len(integration.moe_blocks(model))
    counted = router.metrics
    assert counted.padding_tokens == 5 * layers  # once, in prefill
    assert counted.tokens == (24 - 5 + 5 * 2) * layers
    assert model.get_experts_implementation()[""] == experts.NAME  # generate() leaves it there
    alone = [model.generate(row, **options)[0, row.shape[1] :] for row in (long, short)]
    assert together[0].tolist() == alone[0].tolist()
    assert together[1].tolist() == alone[1].tolist()


@families
def test_bf16(family):
    model, ids = tiny_models.make(family).to(torch.bfloat16), tiny_models.tokens(4, 24)
    experts.register()
    model.set_experts_implementation(experts.NAME)
    own = logits_of(model, ids)
    router = AdaptiveKRouter(policy="full")
    router.patch(model)
    assert torch.equal(logits_of(model, ids), own)
    router.unpatch(model)
    half = AdaptiveKRouter(policy="fixed:1")
    half.patch(model)
    narrow = logits_of(model, ids)
    assert torch.isfinite(narrow).all() and half.stats["mean_k"] == 1 and not torch.equal(narrow, own)
    wide = copy.deepcopy(tiny_models.make(family))
    AdaptiveKRouter(policy="fixed:1").patch(wide)
    # The same routing in float32: as near as bf16 is, for most tokens (a tie may fall otherwise).
    off = (narrow.float() - logits_of(wide, ids)).abs().amax(-1)
    assert off.median() < 0.15


@families
@pytest.mark.parametrize("stock", ["eager", "grouped_mm", "batched_mm"])
def test_stock_experts_with_weight_zero_give_the_same(family, stock):
    """ENGINES: a valid id with weight 0 is computed and adds nothing, on every stock backend."""
    ids = tiny_models.tokens()
    skipped = tiny_models.make(family)
    AdaptiveKRouter(policy="fixed:2").patch(skipped)
    model = tiny_models.make(family)
    model.set_experts_implementation(stock)
    AdaptiveKRouter(policy="fixed:2").patch(model, experts="stock")
    assert model.get_experts_implementation()[""] == stock
    torch.testing.assert_close(
        logits_of(model, ids), logits_of(skipped, ids), rtol=1e-3, atol=1e-4
    )
