"""Mixture-of-Experts inference with fewer experts per token: what it saves, and what it costs.

    from adaptive_k import AdaptiveKRouter
    router = AdaptiveKRouter.from_pretrained("reference-32x8")
    model = router.patch(model)          # any MoE model of transformers
    print(router.stats)

`Router`, `Gating`, `Policy`, `Preset` and `Metrics` are the C++ library's own terms;
`AdaptiveKRouter`, `RoutingConfig` and `Calibrator` the names of the published package.
"""
from __future__ import annotations

import pathlib as _pathlib

from . import _core

_core.set_calibrations_folder(str(_pathlib.Path(__file__).parent / "calibrations"))

from ._core import (  # noqa: E402
    Gating,
    Metrics,
    Policy,
    Preset,
    PresetError,
    SavingsController,
    __version__,
    instructions,
    list_presets,
)
from .calibration import CalibrationResult, Calibrator  # noqa: E402
from .known import AdaptiveKRouter, RoutingConfig, RoutingMetrics  # noqa: E402
from .router import Routed, Router  # noqa: E402

__all__ = [
    "AdaptiveKRouter",
    "CalibrationResult",
    "Calibrator",
    "Gating",
    "Metrics",
    "Policy",
    "Preset",
    "PresetError",
    "Routed",
    "Router",
    "RoutingConfig",
    "RoutingMetrics",
    "SavingsController",
    "__version__",
    "instructions",
    "list_presets",
]
