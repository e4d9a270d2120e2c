"""What may go wrong, and what is said: the run goes on at full K, or the plug-in is not loaded."""

from __future__ import annotations

import json
import subprocess
import unittest
from pathlib import Path

import models
from llama import environment, run_logits

TEXT = models.MODELS / "texts" / "technical_test.txt"


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.model = models.gguf_of(models.MODELS / "reference-32x8")
        cls.small = dict(windows=1, length=32, batch=32)
        cls.stock = run_logits(cls.model, TEXT, **cls.small)

    def full_k(self, policy: str, said: str, model: Path | None = None, **variables: str) -> None:
        stock = self.stock if model is None else run_logits(model, TEXT, **self.small)
        outcome = run_logits(model or self.model, TEXT, policy, variables=variables, **self.small)
        self.assertIn(said, outcome.said)
        self.assertEqual(outcome.logits, stock.logits)
        self.assertEqual(outcome.routed, 0)

    def test_off_unless_asked_for(self) -> None:
        self.full_k("", "off (ADAPTIVE_K is not set")
        self.full_k("off", "off (")

    def test_policies_that_are_none(self) -> None:
        self.full_k("top_p:1.5", "expected 0..1")
        self.full_k("fixed:9", "expected 1..top_k = 8")
        self.full_k("best", "preset 'best': unknown")
        self.full_k("no_such_file.json", "no_such_file.json")

    def test_settings_that_are_none(self) -> None:
        self.full_k("full", "ADAPTIVE_K_METRICS_PORT is '70000', expected a port", ADAPTIVE_K_METRICS_PORT="70000")
        self.full_k("full", "ADAPTIVE_K_SHADOW is 'maybe', expected 1 or 0", ADAPTIVE_K_SHADOW="maybe")
        self.full_k("full", "expected a file that can be written", ADAPTIVE_K_LOG="/no/such/folder/log")
        config = models.WORK / "config.json"
        config.write_text('{"adaptive_k": "full", "shadw": true}')
        self.full_k("full", "unknown key 'shadw'", ADAPTIVE_K_CONFIG=str(config))
        config.write_text('{"metrics_port": "x"}')
        self.full_k("full", "expected a port", ADAPTIVE_K_CONFIG=str(config))
        self.full_k("full", "expected a file that can be read", ADAPTIVE_K_CONFIG="/no/such/file")

    def test_presets_of_other_models(self) -> None:
        self.full_k("mixtral-8x7b", "2 of 8 experts, expected softmax, renormalised, 8 of 32 experts")
        self.full_k("auto", "unknown in", models.gguf_of(models.wide_folder()))
        other = models.random_folder(models.config_of("reference-32x8", num_hidden_layers=3), models.WORK / "three")
        self.full_k("reference-32x8", "4 layers, expected 3", models.gguf_of(other))

    def test_shadow_mode(self) -> None:
        outcome = run_logits(self.model, TEXT, "reference-32x8", variables=dict(ADAPTIVE_K_SHADOW="1"), **self.small)
        self.assertEqual(outcome.logits, self.stock.logits)
        self.assertEqual(outcome.routed, 32 * 4)
        self.assertEqual(outcome.calls, outcome.full_calls)

    def test_settings_of_a_file(self) -> None:
        config = models.WORK / "config.json"
        config.write_text(json.dumps({"adaptive_k": "fixed:3", "quiet": True}))
        variables = {"ADAPTIVE_K_CONFIG": str(config)}
        by_file = run_logits(self.model, TEXT, None, variables={
            **variables, "GGML_BACKEND_PATH": str(models.HOME / "plugin" / "bin" / "libggml-adaptive-k.so")},
            **self.small)
        self.assertEqual(by_file.calls * 8, by_file.full_calls * 3)
        self.assertNotIn("adaptive-k:", by_file.said)
        by_environment = run_logits(self.model, TEXT, "fixed:5", variables=variables, **self.small)
        self.assertEqual(by_environment.calls * 8, by_environment.full_calls * 5)

    def test_two_contexts_in_two_threads(self) -> None:
        done = subprocess.run([models.HOME / "plugin" / "bin" / "llama_threads", self.model], capture_output=True,
                              text=True, timeout=600, env=environment("top_p:0.7"))
        self.assertEqual((done.returncode, done.stdout), (0, "the same\n"), done.stderr)
        self.assertIn("policy top_p:0.7", done.stderr)

    def test_overridden_top_k_is_another_model(self) -> None:
        outcome = run_logits(self.model, TEXT, "reference-32x8", used=4, **self.small)
        reduced = run_logits(self.model, TEXT, used=4, **self.small)
        self.assertEqual(outcome.logits, reduced.logits)
        self.assertIn("full K: ", outcome.said)

    def test_weights_that_are_not_mapped(self) -> None:
        folder = models.MODELS / "reference-32x8"
        outcome = run_logits(self.model, TEXT, "auto", mmap=0, **self.small)
        self.assertIn("ADAPTIVE_K_MODEL", outcome.said)
        named = run_logits(self.model, TEXT, "auto", mmap=0, variables=dict(ADAPTIVE_K_MODEL=str(self.model)),
                           **self.small)
        self.assertIn(f"{folder.name}: policy calibrated", named.said)
        self.assertGreater(named.saved, 0.2)


if __name__ == "__main__":
    unittest.main()
