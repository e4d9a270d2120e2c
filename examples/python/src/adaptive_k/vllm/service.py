"""A worker's running part: steps, what was counted, metrics and the controller."""
from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any, Iterator, Mapping, Optional, Sequence

from .._core import Metrics
from .routing import Arm, Layer
from .settings import Settings
from .steps import Steps

_PUBLISH_SECONDS = 1.0
logger = logging.getLogger("vllm.adaptive_k")


class Service:
    """One a worker process. All ranks count and decide alike; rank 0 alone publishes."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        arms: list[Arm],
        layers: list[Layer],
        steps: Steps,
        publishes: bool,
    ) -> None:
        self.settings = settings
        self.model = model
        self.arms = arms
        self.layers = layers
        self.steps = steps
        self._lock = threading.Lock()
        self._totals = [[Metrics() for _ in arms] for _ in layers]
        self._publisher: Optional[Any] = None
        self._controller: Optional[Any] = None
        if settings.controller is not None:
            from .control import Controller

            self._controller = Controller(settings.controller, arms, writes=publishes)
        if settings.metrics and publishes:
            from .metrics import Publisher

            self._publisher = Publisher(model, arms, len(layers), self._controller)
            threading.Thread(target=self._keep_publishing, name="adaptive_k", daemon=True).start()

    # --- steps ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(
        self, new: Sequence[tuple[str, Optional[Mapping[str, Any]]]], ended: Sequence[str]
    ) -> Iterator[None]:
        """A forward pass that the scheduler asked for."""
        with self._lock:
            self.steps.update(new, ended)
            try:
                yield
            finally:
                self.steps.end()
                self._gather()

    def _gather(self) -> None:
        """What the pass counted, into totals, the publisher and the controller."""
        controlled = Metrics()
        for layer, totals in zip(self.layers, self._totals):
            for arm, counts, total in zip(self.arms, layer.counts, totals):
                metrics, seconds = counts.take()
                if not metrics.calls:
                    continue
                total += metrics
                if self._publisher is not None:
                    self._publisher.add(layer.index, arm, metrics, seconds)
                if arm.controlled and not arm.shadow:
                    controlled += metrics
        if self._controller is not None and controlled.tokens:
            self._controller.observe(controlled)

    # --- what others read ------------------------------------------------------------------------------

    def _keep_publishing(self) -> None:
        while True:
            time.sleep(_PUBLISH_SECONDS)
            try:
                with self._lock:
                    self._publisher.publish()
            except Exception:  # noqa: BLE001: the engine goes on without metrics, and says why
                logger.exception("adaptive_k publishes no more metrics")
                return

    def snapshot(self) -> dict[str, Any]:
        """All that this worker counted: {"model", "layers": [{policy: counters}], "policies": {policy:
        counters of all layers}, "controller"}. By LLM.collective_rpc("adaptive_k_metrics")."""
        with self._lock:
            layers = [self._by_label(totals) for totals in self._totals]
            sums = self._by_label(
                [sum((totals[i] for totals in self._totals), Metrics()) for i in range(len(self.arms))]
            )
            controller = None if self._controller is None else self._controller.state()
        return {"model": self.model, "layers": layers, "policies": sums, "controller": controller}

    def _by_label(self, counted: Sequence[Metrics]) -> dict[str, Any]:
        """Two variants of one label, as full K and a policy that is full, are one."""
        whole: dict[str, Metrics] = {}
        for arm, metrics in zip(self.arms, counted):
            whole[arm.label] = whole.get(arm.label, Metrics()) + metrics
        top_k = self.arms[0].router.gating.top_k
        return {label: metrics.to_dict(top_k) for label, metrics in whole.items()}

    def reset(self) -> None:
        """Zero for `snapshot`; what was published stays, as counters never go back."""
        with self._lock:
            self._totals = [[Metrics() for _ in self.arms] for _ in self.layers]
