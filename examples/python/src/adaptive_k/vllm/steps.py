"""Whose tokens a forward pass carries: what is counted, and which policy each token is routed by.

A pass that no scheduler asked for (warm-up, profiling, a dummy run) has no step: it is routed at full K
and counted nowhere. Tokens past a step's own are padding, and run no expert.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Iterable, Mapping, Optional, Sequence

import numpy as np

VARIANT = "adaptive_k"
"""The extra arg of a request: 'on', 'off' or a variant's name; afterwards the name that it was given."""
K_MAX = "adaptive_k_k_max"
"""The extra arg that limits k of every token of a request."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one request is routed by."""

    variant: int
    """Index of its variant."""
    k_max: int
    """Most experts of a token; 0: no limit."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The tokens of one forward pass."""

    num_tokens: int
    variant: Optional[np.ndarray]
    """[num_tokens] uint8; None where all are of `only`."""
    only: int
    k_max: Optional[np.ndarray]
    """[num_tokens] uint8; None where no request has a limit."""


class Steps:
    """Requests that are under way, and the step that runs. One a worker process."""

    def __init__(self, variants: Sequence[str], top_k: int) -> None:
        self.variants = list(variants)
        self.top_k = top_k
        self.current: Optional[Step] = None
        self._requests: dict[str, Choice] = {}

    def choice_of(self, extra_args: Optional[Mapping[str, Any]]) -> Choice:
        """Of a request's extra args, whose front end has checked and resolved them."""
        given = extra_args or {}
        name = given.get(VARIANT, self.variants[0])
        return Choice(self.variants.index(name), int(given.get(K_MAX, 0)))

    def update(self, new: Iterable[tuple[str, Optional[Mapping[str, Any]]]], ended: Iterable[str]) -> None:
        """Notes requests that began, by id and extra args, and forgets those that ended."""
        for request in ended:
            self._requests.pop(request, None)
        for request, extra_args in new:
            self._requests[request] = self.choice_of(extra_args)

    def begin(self, requests: Sequence[str], num_tokens: Sequence[int]) -> None:
        """The requests of the pass that follows, in the order of its tokens."""
        plain = self.choice_of(None)
        choices = [self._requests.get(request, plain) for request in requests]
        total = int(sum(num_tokens))
        only = choices[0].variant if choices else 0
        variant = k_max = None
        if any(choice.variant != only for choice in choices):
            variant = np.repeat(np.array([c.variant for c in choices], np.uint8), num_tokens)
        if any(choice.k_max for choice in choices):
            limits = [min(c.k_max or self.top_k, self.top_k) for c in choices]
            k_max = np.repeat(np.array(limits, np.uint8), num_tokens)
        self.current = Step(total, variant, only, k_max)

    def end(self) -> None:
        self.current = None
