"""The savings controller of a worker: fed with what each step routed, it moves the policies' scale.

Every rank sees the same tokens and decides alike; nothing is sent between them. The state is kept in a file,
so that an engine that is started again goes on where the last one stood.
"""
from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from .._core import Metrics, SavingsController
from .routing import Arm
from .settings import ControllerSettings, Refused

_VERSION = 1


class Controller:
    """Holds `expert_savings` over the arms that it controls."""

    def __init__(self, settings: ControllerSettings, arms: list[Arm], *, writes: bool) -> None:
        self.settings = settings
        self._arms = [arm for arm in arms if arm.controlled and not arm.shadow]
        self._writes = writes
        if not self._arms:
            raise Refused("controller: every policy is in shadow mode, expected one that routes")
        for arm in self._arms:
            count = max(1, arm.policy.num_layers)
            if all(arm.policy.rule(layer) in ("full", "fixed") for layer in range(count)):
                raise Refused(
                    f"controller: the policy '{arm.label}' has nothing to scale, expected thresholds or distortion"
                )
        self._controller = SavingsController(
            settings.expert_savings, hysteresis=settings.hysteresis,
            decision_tokens=settings.decision_tokens, gain=settings.gain,
            lowest_scale=settings.lowest_scale, highest_scale=settings.highest_scale,
        )  # fmt: skip
        if settings.state and os.path.exists(settings.state):
            self._resume()

    @property
    def scale(self) -> float:
        return self._controller.scale

    @property
    def at_bound(self) -> bool:
        return self._controller.at_bound

    def observe(self, since_last: Metrics) -> None:
        """What one step routed."""
        before = self._controller.state()
        moved = self._controller.observe(since_last)
        if moved:
            self._apply()
        if self._controller.state()["tokens"] < before["tokens"] + since_last.tokens and self._writes:
            self._write()  # a decision was taken: what it gathered began anew

    def state(self) -> dict[str, Any]:
        return dict(self._controller.state(), at_bound=self.at_bound, at_jump=self._controller.at_jump)

    def _apply(self) -> None:
        for arm in self._arms:
            arm.rescale(self._controller.scale)

    def _of_file(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "policies": [arm.label for arm in self._arms],
            "expert_savings": self.settings.expert_savings,
            "state": self._controller.state(),
        }

    def _resume(self) -> None:
        path = self.settings.state
        where = f"controller.state: {path}: "
        try:
            with open(path) as file:
                stored = json.load(file)
        except (OSError, json.JSONDecodeError) as error:
            raise Refused(f"{where}{error}") from None
        if not isinstance(stored, dict) or stored.get("version") != _VERSION:
            raise Refused(f"{where}no state of this version, expected version {_VERSION}")
        labels = [arm.label for arm in self._arms]
        if stored.get("policies") != labels:
            raise Refused(f"{where}policies is {stored.get('policies')!r}, expected {labels!r}")
        if not isinstance(stored.get("state"), dict):
            raise Refused(f"{where}state is {stored.get('state')!r}, expected an object")
        try:
            self._controller.resume(stored["state"])
        except ValueError as error:
            raise Refused(f"{where}{error}") from None
        self._apply()

    def _write(self) -> None:
        """Whole or not at all: a reader never sees half a file."""
        path = self.settings.state
        if not path:
            return
        folder = os.path.dirname(os.path.abspath(path))
        handle, made = tempfile.mkstemp(dir=folder, prefix=".adaptive_k")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self._of_file(), file)
            os.replace(made, path)
        except BaseException:
            os.unlink(made)
            raise
