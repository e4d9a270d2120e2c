#!/usr/bin/env python3
"""What the plug-in costs and saves: layers of OLMoE's shape with random weights, one thread, one table.

    tests/llama_cpp/speed.py [--layers 4] [--rounds 5] [--types q4_k_s q4_0]

The unmodified llama.cpp with 8 and with 4 experts a token, and the plug-in with as many (full, fixed:4, and a policy
with different K), one after another in each round; the least CPU time of a round counts, so that other work on the
machine disturbs little.  Needs what tests/llama_cpp/run builds, and 0.5 GB a layer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

import models
from llama import environment

PROMPT, DECODED = 512, 48
TEXT = models.MODELS / "texts" / "technical_test.txt"


def olmoe_folder(layers: int) -> Path:
    """Weights of OLMoE-1B-7B's sizes; experts are one matrix, its rows turned by another number each."""
    folder = models.WORK / f"olmoe-shape-{layers}"
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = models.config_of("olmoe-64x8", hidden_size=2048, intermediate_size=1024, num_hidden_layers=layers,
                              num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=1024)
    weights = models.RandomWeights(1)
    weights.matrix("model.embed_tokens.weight", config["vocab_size"], 2048, 45.0)
    weights.matrix("lm_head.weight", config["vocab_size"], 2048)
    weights.vector("model.norm.weight", 2048, 1.0, 0.05)
    weights.matrix("w", 1024, 2048)
    weights.matrix("d", 2048, 1024)
    wide, tall = weights.tensors.pop("w"), weights.tensors.pop("d")
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
            weights.vector(f"{prefix}{name}.weight", 2048, 1.0, 0.05)
        for name in "qkvo":
            weights.matrix(f"{prefix}self_attn.{name}_proj.weight", 2048, 2048)
        weights.matrix(prefix + "mlp.gate.weight", 64, 2048, 1.5)
        for expert in range(64):
            for name, base in (("gate_proj", wide), ("up_proj", wide), ("down_proj", tall)):
                weights.tensors[f"{prefix}mlp.experts.{expert}.{name}.weight"] = np.roll(
                    base, 16 * expert + len(name), axis=0)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights.tensors, folder / "model.safetensors")
    return folder


def with_top_k(model: Path, top_k: int) -> Path:
    copy = model.with_name(f"{model.stem}-top{top_k}.gguf")
    if models.is_stale(copy, model):
        shutil.copy(model, copy)
        reader = gguf.GGUFReader(copy, "r+")
        reader.fields["olmoe.expert_used_count"].parts[-1][0] = top_k
        del reader
    return copy


def cpu_seconds(model: Path, policy: str | None, windows: int, length: int, batch: int) -> tuple[float, float]:
    """Of a process that computes so many tokens, and the mean K of the plug-in, 0 without it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [models.HOME / "plugin" / "bin" / "llama_logits", model, TEXT, "/dev/null", f"windows={windows}",
               f"length={length}", f"batch={batch}", "threads=1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(policy))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = re.search(r"^routed (\d+), calls (\d+) of", done.stdout, re.M)
    mean_k = int(counts[2]) / int(counts[1]) if counts else 0.0
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, mean_k


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", nargs="+", default=["q4_k_s", "q4_0"])
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    folder = olmoe_folder(arguments.layers)
    for kind in arguments.types:
        full = models.gguf_of(folder, kind)
        half = with_top_k(full, 4)
        rows = {"llama.cpp, 8 experts": (full, None), "llama.cpp, 4 experts": (half, None),
                "plug-in, full": (full, "full"), "plug-in, fixed:4": (full, "fixed:4"),
                "plug-in, top_p:0.7": (full, "top_p:0.7")}
        least = {row: [np.inf, np.inf, np.inf] for row in rows}
        mean_k = dict(zip(rows, (8.0, 4.0)))
        for _ in range(arguments.rounds):
            for row, (model, policy) in rows.items():
                runs = ((1, 2, 2), (1, PROMPT, PROMPT), (1, DECODED, 1))  # the first: loading
                for i, run in enumerate(runs):
                    seconds, k = cpu_seconds(model, policy, *run)
                    least[row][i] = min(least[row][i], seconds)
                    if k and i == 1:
                        mean_k[row] = k
        print(f"{kind}, {arguments.layers} layers, one thread, least CPU time of {arguments.rounds} rounds")
        print(f"{'':24s} {'mean K':>7s} {'prompt of 512':>14s} {'one token':>14s}   ms a token")
        for row, (load, prompt, decode) in least.items():
            print(f"{row:24s} {mean_k[row]:7.2f} {1e3 * (prompt - load) / PROMPT:14.3f} {1e3 * (decode - load) / DECODED:14.3f}")


if __name__ == "__main__":
    main()
