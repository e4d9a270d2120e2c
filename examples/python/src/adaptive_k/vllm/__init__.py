"""adaptive K inside vLLM: a plug-in (`vllm.general_plugins`) that does nothing unless it is asked for.

    vllm serve MODEL --additional-config '{"adaptive_k": {"preset": "my-model.json", "policy": "calibrated"}}'
    ADAPTIVE_K_VLLM=top_p:0.85 vllm serve MODEL

Settings are those of settings.Settings. What has been run: vLLM 0.32.0 on CPU; not run on a GPU.
Importing this module imports nothing of vLLM.
"""
from __future__ import annotations

from .settings import Refused, Settings

__all__ = ["Refused", "Settings", "register"]


def register() -> None:
    """What the entry point calls, in every process of vLLM. Idempotent; two small hooks, which ask for
    the settings once an engine starts and leave everything as it is where there are none."""
    from . import hooks

    hooks.install()
