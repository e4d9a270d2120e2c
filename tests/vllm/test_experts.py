"""Rows of the table of sentinels, each against the kernel that it is for; and what may not be given to it."""
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm import __version__, _custom_ops  # noqa: E402

from adaptive_k.vllm import experts  # noqa: E402

E, H, I, T, K = 12, 64, 96, 37, 4


def made(dtype, tokens=T):
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    w13, w2 = draw(E, 2 * I, H) * 0.2, draw(E, H, I) * 0.2
    x = draw(tokens, H)
    weights, ids = draw(tokens, E).softmax(-1).topk(K)
    x, w13, w2 = x.to(dtype), w13.to(dtype), w2.to(dtype)
    packed = [_custom_ops.cpu_prepack_moe_weight(w.clone(), "vec") for w in (w13, w2)]
    return x, w13, w2, packed, weights.contiguous(), ids.int().contiguous()


def run(x, packed, weights, ids):
    out = torch.full_like(x, float("nan"))
    torch.ops.adaptive_k.vllm_cpu_experts(
        out, x, packed[0], packed[1], None, None, weights, ids, "silu", "vec", False
    )
    return out


def stock(x, packed, weights, ids):
    out = torch.full_like(x, float("nan"))
    _custom_ops.cpu_fused_moe(out, x, *packed, None, None, weights, ids, "silu", "vec", False)
    return out


def directly(x, w13, w2, weights, ids):
    """In double precision, from the definition."""
    x, w13, w2 = x.double(), w13.double(), w2.double()
    out = torch.zeros_like(x)
    for t in range(len(x)):
        for weight, e in zip(weights[t].double(), ids[t].tolist()):
            if weight != 0:
                gate, up = (w13[e] @ x[t]).chunk(2)
                out[t] += weight * (w2[e] @ (torch.nn.functional.silu(gate) * up))
    return out


def test_the_installed_backend_has_a_row():
    row = experts.row_of("CPUUnquantizedExperts", __version__)
    assert row is not None and row.skips
    assert experts.row_of("CPUUnquantizedExperts", "0.31.0") is None
    assert experts.row_of("CPUUnquantizedExperts", "0.32.0+cpu") is row
    assert experts.row_of("SomeOtherExperts", __version__) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_k_is_the_kernels_own_call(dtype):
    x, _, _, packed, weights, ids = made(dtype)
    assert torch.equal(run(x, packed, weights, ids), stock(x, packed, weights, ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", ["mixed", "uniform", "with padding", "one token", "none"])
def test_dead_slots_are_no_part_of_the_sum(dtype, counts):
    x, w13, w2, packed, weights, ids = made(dtype, 1 if counts == "one token" else T)
    generator = torch.Generator().manual_seed(8)
    k = torch.randint(1, K + 1, (len(x), 1), generator=generator)
    if counts in ("uniform", "one token"):
        k[:] = 2
    if counts == "with padding":
        k[20:] = 0
    if counts == "none":
        k[:] = 0
    # In any slots, not in the last ones alone.
    order = torch.rand(len(x), K, generator=generator).argsort(1)
    dead = order >= k
    weights = weights.masked_fill(dead, 0)
    first = (~dead).to(torch.uint8).argmax(1, keepdim=True)
    filled = torch.where(dead, ids.gather(1, first), ids)
    ours, exact = run(x, packed, weights, filled), directly(x, w13, w2, weights, ids)
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
    # What this fill is for: the kernel itself takes it too, and computes the dead.
    torch.testing.assert_close(ours, stock(x, packed, weights, filled), rtol=tolerance, atol=tolerance)


def test_no_tokens():
    x, _, _, packed, weights, ids = made(torch.float32)
    assert run(x[:0], packed, weights[:0], ids[:0]).shape == (0, H)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_probe_takes_the_engines_router_for_what_it_is(dtype, renormalize):
    """In every type; of a type whose weights the engine rounds by percents, by the choice alone."""
    from vllm.model_executor.layers.fused_moe.router.cpu_router import _softmax_topk

    from adaptive_k import Gating
    from adaptive_k.integrations.probe import routing_differs

    logits = (torch.randn(32, 64, generator=torch.Generator().manual_seed(4)) * 2).to(dtype)
    weights, ids = _softmax_topk(logits, 8, renormalize)
    gating = Gating(64, 8, renormalize=renormalize)
    assert routing_differs(gating, logits, ids, weights if dtype == torch.float32 else None) == ""
    assert "routes otherwise" in routing_differs(gating, logits, ids, weights * 1.5)
    ids[5, 0] = next(e for e in range(64) if e not in ids[5].tolist())
    assert "routes otherwise" in routing_differs(gating, logits, ids, None)
