"""The core binding on torch tensors: the same bits as on numpy arrays, nothing copied."""
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from adaptive_k import Gating, Metrics, Policy, Router  # noqa: E402


def test_tensors_give_what_arrays_give():
    router = Router(Gating(64, 8), Policy.top_p(0.8, 8))
    logits = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    on_torch = router.route(logits)
    on_numpy = router.route(logits.detach().numpy())
    assert isinstance(on_torch.ids, torch.Tensor)
    for ours, theirs in zip(on_torch[:4], on_numpy[:4]):
        assert (ours.numpy() == theirs).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_types(dtype):
    router = Router(Gating(32, 4), Policy.top_p(0.7, 4))
    logits = torch.randn(40, 32, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    metrics = Metrics()
    routed = router.route(logits, weight_dtype=dtype, id_dtype="int64", metrics=metrics)
    wide = router.route(logits.float())
    assert routed.weights.dtype == logits.dtype and routed.ids.dtype == torch.int64
    assert (routed.ids == wide.ids).all() and metrics.tokens == 40
    assert (routed.weights == wide.weights.to(logits.dtype)).all()


def test_what_lies_elsewhere_or_otherwise_is_refused():
    router = Router(Gating(32, 4), Policy.full())
    with pytest.raises((ValueError, BufferError, TypeError)):
        router.route(torch.empty(4, 32, device="meta"))
    with pytest.raises(ValueError, match="strides"):
        router.route(torch.randn(32, 4).t())
    with pytest.raises(ValueError, match="is of float64"):
        router.route(torch.randn(4, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected \[num_tokens, 32\]"):
        router.route(torch.randn(4, 31))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_are_refused_where_there_is_no_device_part():
    with pytest.raises(ValueError, match="is on cuda:0, and this build of adaptive_k has no device"):
        Router(Gating(32, 4), Policy.full()).route(torch.randn(4, 32, device="cuda"))


def test_memory_is_shared_not_copied():
    router = Router(Gating(8, 2), Policy.full())
    logits = torch.zeros(2, 8)
    view = logits.numpy()
    view[0, 5] = 1.0
    assert router.route(logits).ids[0, 0] == 5
    assert np.shares_memory(view, logits.numpy())
