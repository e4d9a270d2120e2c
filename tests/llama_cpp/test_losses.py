"""Losses through llama.cpp against the project's own engine, on the same text under the same policies."""

from __future__ import annotations

import json
import os
import subprocess
import unittest
from pathlib import Path

import models
from llama import run_logits

PROGRAM = Path(os.environ.get("ADAPTIVE_K_BIN", models.ROOT / "build" / "ci" / "bin")) / "adaptive-k"
WINDOWS = 16


def own_engine(folder: Path, text: Path, policy: str) -> dict:
    done = subprocess.run([PROGRAM, "benchmark", "--model", folder, "--dataset", text, "--policy", policy,
                           "--windows", str(WINDOWS), "--json", "-"], capture_output=True, text=True, timeout=1200)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


class ReferenceModel(unittest.TestCase):
    folder = models.MODELS / "reference-32x8"
    text = folder / "heldout_test.txt"

    def test_policies(self) -> None:
        model = models.gguf_of(self.folder)
        for policy in ("calibrated", "fixed:5,a=0.5"):
            with self.subTest(policy):
                report = own_engine(self.folder, self.text, policy)
                setting = dict(ADAPTIVE_K_POLICY=policy) if policy == "calibrated" else {}
                ours = run_logits(model, self.text, "auto" if setting else policy, variables=setting,
                                  windows=WINDOWS, length=256, batch=256, exact=1)
                self.assertAlmostEqual(ours.loss, report["policy"]["mean_nll"], delta=1e-4)
                self.assertAlmostEqual(ours.saved, report["policy"]["expert_savings"], delta=1e-3)

    def test_whole_text_at_full_k(self) -> None:
        recorded = json.loads((self.folder / "expected_loss.json").read_text())["texts"][self.text.name]
        ours = run_logits(models.gguf_of(self.folder), self.text, None, windows=512, length=256, batch=256, exact=1)
        self.assertAlmostEqual(ours.loss, recorded["nats_per_byte"], delta=1e-4)


if __name__ == "__main__":
    unittest.main()
