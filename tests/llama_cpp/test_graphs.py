"""Layers of every form by ggml alone: against the pinned ggml, and a prebuilt one of another version."""

from __future__ import annotations

import subprocess
import unittest

import models
from llama import environment

POLICIES = ("top_p:0.6", "top_p:0.6,a=0.5", "score_ratio:0.85")


class Graphs(unittest.TestCase):
    def check(self, folder: str, threads: int) -> None:
        binaries = models.HOME / folder / "bin"
        plugin = binaries / "libggml-adaptive-k.so"
        for policy in POLICIES:
            with self.subTest(policy):
                done = subprocess.run([binaries / "ggml_graph_test", plugin, str(threads)], capture_output=True, text=True,
                                      timeout=600, env=environment(None, ADAPTIVE_K=policy))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertIn("10 cases, 0 failures", done.stdout)

    def test_pinned(self) -> None:
        self.check("plugin", 2)

    def test_prebuilt(self) -> None:
        self.check("plugin-prebuilt", 1)  # its threads spin

    def test_beside_a_gpu(self) -> None:
        binaries = models.HOME / "plugin" / "bin"
        done = subprocess.run([binaries / "ggml_graph_test", binaries / "libggml-adaptive-k.so", "gpu"],
                              capture_output=True, text=True, timeout=600, env=environment(None, ADAPTIVE_K="full"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_plugin_of_another_version(self) -> None:
        done = subprocess.run([models.HOME / "plugin" / "bin" / "ggml_graph_test",
                               models.HOME / "plugin-prebuilt" / "bin" / "libggml-adaptive-k.so", "1"],
                              capture_output=True, text=True, timeout=600, env=environment(None, ADAPTIVE_K="full"))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("not loaded: built against ggml 0.20.2, this process has 0.25.3", done.stderr)


if __name__ == "__main__":
    unittest.main()
