"""A/B tests of policies: which variant a request gets, and what may be concluded.

    test = ABTest(["full", "adaptive"])
    variant = test.assign_variant(request_id)
    test.record(variant, latency_seconds=0.12, expert_savings=0.4, quality=log_likelihood)
    print(test.compute_results().sentence)
"""
from __future__ import annotations

from typing import Sequence, Union

from . import _core

if not hasattr(_core, "ABTest"):
    raise ImportError(
        "adaptive_k was built without Boost's headers (Debian: libboost-dev), so it has no A/B tests: "
        "install them and build the package again"
    )

from ._core import Comparison, Effect, Results, Variant  # noqa: E402

__all__ = ["ABTest", "Comparison", "Effect", "Results", "Variant"]


class ABTest(_core.ABTest):
    """Results may be looked at as often as one likes (planned_requests=0): the intervals stay valid.

    `variants`: names, the first of them the control, or Variants with weights. Raises ValueError.
    """

    def __init__(self, variants: Sequence[Union[str, Variant]], **options) -> None:
        super().__init__([v if isinstance(v, Variant) else Variant(v) for v in variants], **options)
