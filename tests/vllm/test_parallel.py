"""Two processes, tensor parallel: every rank decides alike, and rank 0 alone publishes."""
import numpy as np
import pytest

pytest.importorskip("vllm")

import models  # noqa: E402

NAME = "mixtral-8x2"  # its heads divide by two


def test_tensor_parallel_2():
    tokens = models.windows(NAME, 8)
    settings = {"policy": "top_p:0.8", "controller": {"expert_savings": 0.2, "decision_tokens": 4096}}
    theirs, metrics = models.in_transformers(NAME, tokens, "fixed:1")
    with models.Engine(
        NAME, settings, tensor_parallel_size=2, distributed_executor_backend="mp"
    ) as engine:
        # Whatever the scale, a limit of 1 is one expert: what transformers computes with fixed:1.
        ours = engine.likelihoods(tokens, {"adaptive_k_k_max": 1})
        ranks = engine.workers()
        assert len(ranks) == 2 and ranks[0] == ranks[1]
        counted = engine.counted()
        engine.reset()
        engine.likelihoods(tokens)
        ranks = engine.workers()
    assert counted["tokens"] == metrics.tokens and counted["expert_calls"] == metrics.expert_calls
    assert abs(ours.mean() - theirs.mean()) < 1e-4
    assert ranks[0] == ranks[1] and ranks[0]["controller"]["scale"] != 1
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
