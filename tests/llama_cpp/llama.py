"""Runs programs of the unmodified llama.cpp, with the plug-in or without."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import models

STOCK = models.HOME / "stock" / "bin"
PLUGIN = models.HOME / "plugin" / "bin" / "libggml-adaptive-k.so"


def environment(policy: str | None, **variables: str) -> dict[str, str]:
    """As a user sets it: the plug-in's path and a policy. None: llama.cpp alone."""
    result = {name: value for name, value in os.environ.items()
              if not name.startswith(("ADAPTIVE_K", "GGML_", "LLAMA_ARG_"))}
    result["OMP_WAIT_POLICY"] = "passive"
    if policy is not None:
        result["GGML_BACKEND_PATH"] = str(PLUGIN)
        result["ADAPTIVE_K"] = policy
    result.update(variables)
    return result


class Outcome(NamedTuple):
    loss: float
    logits: bytes
    routed: int  # token-layers
    calls: int
    full_calls: int
    said: str

    @property
    def saved(self) -> float:
        return 1.0 - self.calls / self.full_calls


def run_logits(model: Path, text: Path, policy: str | None = None, architecture: str = "llama",
               variables: dict[str, str] | None = None, **options: Any) -> Outcome:
    """tests/llama_cpp/logits.cpp over windows of a text."""
    output = models.WORK / f"logits-{os.getpid()}.bin"
    command = [models.HOME / "plugin" / "bin" / "llama_logits", model, text, output,
               *(f"{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600,
                          env=environment(policy, LLAMA_LOGITS_ARCHITECTURE=architecture, **(variables or {})))
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    loss = re.search(r"^loss (\S+) nats", done.stdout, re.M)
    totals = re.search(r"^routed (\d+), calls (\d+) of (\d+)$", done.stdout, re.M)
    assert loss is not None, done.stdout
    logits = output.read_bytes()
    output.unlink()
    numbers = [int(number) for number in totals.groups()] if totals else [0, 0, 0]
    return Outcome(float(loss[1]), logits, *numbers, said=done.stderr)
