"""The plug-in against the unmodified llama.cpp: full K to the bit, and fixed K as expert_used_count."""

from __future__ import annotations

import json
import unittest
from pathlib import Path

import numpy as np

import models
from llama import run_logits

TEXT = models.MODELS / "texts" / "technical_test.txt"
BATCHES = ((1, 1), (7, 2), (32, 1), (512, 2))  # tokens at once, threads
REFERENCE = ("reference-32x8", "mixtral-8x2", "qwen-60x4", "olmoe-64x8", "sigmoid-128x6")


def top_k_of(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["num_experts_per_tok"]


def architecture_of(folder: Path) -> str:
    return models.ARCHITECTURE_OF[json.loads((folder / "config.json").read_text())["model_type"]]


class Equality(unittest.TestCase):
    def check(self, folder: Path, kind: str, repack: int = 1) -> None:
        model = models.gguf_of(folder, kind)
        architecture, top_k = architecture_of(folder), top_k_of(folder)
        text = next(folder.glob("heldout_test.txt"), TEXT)
        fewer = max(1, top_k // 2)
        for batch, threads in BATCHES:
            length = 48 if batch == 1 else 256
            where = f"{folder.name} {kind} batch {batch} threads {threads} repack {repack}"
            with self.subTest(where):
                # Keys and values in F32: halves make steps of last bits.
                same = dict(architecture=architecture, windows=1, length=length, batch=batch, threads=threads,
                            repack=repack, exact=1)
                stock = run_logits(model, text, **same)
                self.assertEqual(stock.routed, 0)
                for policy in ("full", f"fixed:{top_k}") if batch == 7 else ("full",):
                    full = run_logits(model, text, policy, **same)
                    self.assertEqual(full.logits, stock.logits, policy)
                    self.assertGreater(full.routed, 0)
                    self.assertEqual(full.calls, full.full_calls)
                reduced = run_logits(model, text, used=fewer, **same)
                fixed = run_logits(model, text, f"fixed:{fewer}", **same)
                self.assertEqual(fixed.calls * top_k, fixed.full_calls * fewer)
                if architecture in ("olmoe", "qwen2moe"):  # the kept weights are the model's own
                    self.assertEqual(fixed.logits, reduced.logits)
                elif kind == "f32":
                    self.assertAlmostEqual(fixed.loss, reduced.loss, delta=1e-5)
                elif folder.parent == models.MODELS:  # w / r against w normed anew: a last bit, of which rounding
                    self.assertAlmostEqual(fixed.loss, reduced.loss, delta=5e-4)  # to 8 bits may make a step
                # Random weights make another expert of it: nothing to compare.
                self.assertGreater(abs(fixed.loss - stock.loss), 1e-5)  # fewer experts were run

    def test_reference_models(self) -> None:
        for name in REFERENCE:
            for kind in ("f32", "q8_0"):
                self.check(models.folder_of(name), kind)

    def test_block_types_plain_and_repacked(self) -> None:
        folder = models.wide_folder()
        for kind, repack in (("f16", 1), ("q4_k_s", 0), ("q4_k_s", 1), ("q4_0", 0), ("q4_0", 1)):
            self.check(folder, kind, repack)


class MixedCounts(unittest.TestCase):
    """Tokens with different K: rows in a batch, slots one token at a time."""

    def test_batch_and_single_tokens_agree(self) -> None:
        for name in REFERENCE:
            folder = models.folder_of(name)
            model, is_trained = models.gguf_of(folder), folder.parent == models.MODELS
            text = next(folder.glob("heldout_test.txt"), TEXT)
            policy = "top_p:0.6,a=0.5" if name == "sigmoid-128x6" else "top_p:0.7"
            same = dict(windows=1, length=96, exact=1)
            single = run_logits(model, text, policy, batch=1, **same)
            for batch in (5, 96):
                with self.subTest(f"{name} {policy} batch {batch}"):
                    together = run_logits(model, text, policy, batch=batch, threads=2, **same)
                    self.assertTrue(0.02 < together.saved < 0.98, together.saved)
                    # Products of a batch round otherwise, in llama.cpp alone too, and a decision may fall to
                    # the other side: some calls, not many.  Random weights make much of little.
                    self.assertLess(abs(together.calls - single.calls), 0.002 * single.full_calls + 1)
                    self.assertAlmostEqual(together.loss, single.loss, delta=2e-4 if is_trained else 2e-2)

    def test_repacked_rows_agree_with_plain_ones(self) -> None:
        folder = models.wide_folder()
        for kind in ("q4_k_s", "q4_0"):
            model = models.gguf_of(folder, kind)
            plain, repacked = (run_logits(model, TEXT, "top_p:0.6", "olmoe", windows=1, length=256, batch=256,
                                          repack=repack) for repack in (0, 1))
            self.assertTrue(0.05 < plain.saved < 0.9, plain.saved)
            self.assertAlmostEqual(plain.loss, repacked.loss, delta=2e-2)
            difference = np.frombuffer(plain.logits, np.float32) - np.frombuffer(repacked.logits, np.float32)
            scale = np.frombuffer(plain.logits, np.float32).std()
            self.assertLess(np.sqrt(np.mean(difference**2)), 0.2 * scale)


if __name__ == "__main__":
    unittest.main()
