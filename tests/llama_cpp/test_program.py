"""adaptive-k-llama on a GGUF against adaptive-k on the folder that it was made of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import unittest
from pathlib import Path

import numpy as np

import models
from llama import environment

PROGRAM = models.HOME / "program" / "bin" / "adaptive-k-llama"
OWN = Path(os.environ.get("ADAPTIVE_K_BIN", models.ROOT / "build" / "ci" / "bin")) / "adaptive-k"
FOLDER = models.MODELS / "reference-32x8"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=1800,
                          env=environment(None))


@unittest.skipUnless(PROGRAM.exists(), "adaptive-k-llama was not built: LLAMA_CPP_ALL=1")
class Program(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.model = models.gguf_of(FOLDER)

    def test_benchmark(self) -> None:
        options = ("--dataset", FOLDER / "heldout_test.txt", "--policy", "calibrated", "--context", 256, "--windows", 8,
                   "--json", "-")
        done, own = run(PROGRAM, "benchmark", "--model", self.model, *options), run(OWN, "benchmark", *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        ours, theirs = json.loads(done.stdout), json.loads(own.stdout)
        self.assertAlmostEqual(ours["baseline"]["mean_nll"], theirs["baseline"]["mean_nll"], delta=1e-4)
        self.assertAlmostEqual(ours["policy"]["mean_nll"], theirs["policy"]["mean_nll"], delta=1e-4)
        self.assertAlmostEqual(ours["policy"]["mean_kl"], theirs["policy"]["mean_kl"], delta=1e-4)
        self.assertAlmostEqual(ours["policy"]["expert_savings"], theirs["policy"]["expert_savings"], delta=1e-3)
        for ours_k, theirs_k in zip(ours["controls"]["fixed_k"], theirs["controls"]["fixed_k"]):
            self.assertAlmostEqual(ours_k["mean_kl"], theirs_k["mean_kl"], delta=2e-3 * theirs_k["mean_kl"] + 1e-5)

    def test_calibrate(self) -> None:
        options = ("--dataset", FOLDER / "heldout_calibration.txt", "--context", 256, "--tokens", 4096, "--test-windows", 4,
                   "--max-kl", 0.01, "--date", "2026-11-30")
        presets = []
        for program, model in ((PROGRAM, self.model), (OWN, FOLDER)):
            output = models.WORK / f"{program.name}.json"
            done = run(program, "calibrate", "--model", model, *options, "-o", output)
            self.assertEqual(done.returncode, 0, done.stderr)
            presets.append(json.loads(output.read_text()))
        ours, theirs = (next(policy for policy in preset["policies"] if policy["name"] == "calibrated")
                        for preset in presets)
        self.assertEqual([layer["rule"] for layer in ours["layers"]], [layer["rule"] for layer in theirs["layers"]])
        self.assertAlmostEqual(ours["measured"]["mean_k"], theirs["measured"]["mean_k"], delta=0.02)
        self.assertAlmostEqual(ours["measured"]["mean_kl"], theirs["measured"]["mean_kl"], delta=2e-4)
        for ours_layer, theirs_layer in zip(ours["layers"], theirs["layers"]):
            difference = np.subtract(ours_layer["distortion"]["coefficients"],
                                     theirs_layer["distortion"]["coefficients"])
            self.assertLess(np.abs(difference).max(), 0.01)
        # All figures of the notes, the oracle's among them, which runs layers with fewer and sees the next one.
        numbers = [[float(number) for number in re.findall(r"(\d\.\d+) \+-", policy["notes"])] for policy in (ours, theirs)]
        self.assertEqual(len(numbers[0]), 11)
        np.testing.assert_allclose(numbers[0], numbers[1], rtol=0.02)

    def test_what_is_no_gguf(self) -> None:
        done = run(PROGRAM, "benchmark", "--model", FOLDER)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("expected a .gguf file", done.stderr)


if __name__ == "__main__":
    unittest.main()
