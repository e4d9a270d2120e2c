"""Models for the tests: the reference models' folders as GGUF, and ones of the same shapes with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = ROOT / "bench" / "models"
HOME = Path(os.environ.get("LLAMA_CPP_HOME", ROOT / "build" / "engines" / "llama_cpp"))
TREE = next(HOME.glob("llama_cpp_python-*/vendor/llama.cpp"))  # the source package of llama-cpp-python
WORK = HOME / "models"
TOKENIZER = MODELS / "tokenizer" / "tokenizer.json"

sys.path.insert(0, str(ROOT / "examples" / "llama_cpp"))
import convert  # noqa: E402

ARCHITECTURE_OF = convert.ARCHITECTURES


class RandomWeights:
    """Tensors that depend on the seed alone, each with rows of length about `gain`."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.tensors: dict[str, np.ndarray] = {}

    def matrix(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        values = self.random.standard_normal((rows, columns), dtype=np.float32)
        self.tensors[name] = (values * (gain / np.sqrt(columns))).astype(np.float16)

    def vector(self, name: str, size: int, mean: float, spread: float) -> None:
        values = self.random.standard_normal(size, dtype=np.float32)
        self.tensors[name] = mean + spread * values


def random_folder(config: dict[str, Any], folder: Path, seed: int = 1) -> Path:
    """A folder as HuggingFace writes it, of the config's shape; made once."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    kind, width = config["model_type"], config["hidden_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head = config.get("head_dim") or width // heads
    experts = convert.num_experts(config)
    weights = RandomWeights(seed)
    tied = config.get("tie_word_embeddings")
    weights.matrix("model.embed_tokens.weight", config["vocab_size"], width, 2.0 if tied else np.sqrt(width))
    weights.vector("model.norm.weight", width, 1.0, 0.05)
    if not tied:
        weights.matrix("lm_head.weight", config["vocab_size"], width, 2.0)

    def feed_forward(prefix: str, inner: int, names: tuple[str, str, str]) -> None:
        weights.matrix(f"{prefix}{names[0]}.weight", inner, width)
        weights.matrix(f"{prefix}{names[1]}.weight", inner, width)
        weights.matrix(f"{prefix}{names[2]}.weight", width, inner)

    projections = ("gate_proj", "up_proj", "down_proj")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights.vector(prefix + "input_layernorm.weight", width, 1.0, 0.05)
        weights.vector(prefix + "post_attention_layernorm.weight", width, 1.0, 0.05)
        for name, number in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            weights.matrix(f"{prefix}self_attn.{name}_proj.weight", number * head, width)
            if kind == "qwen2_moe":
                weights.vector(f"{prefix}self_attn.{name}_proj.bias", number * head, 0.0, 0.1)
        weights.matrix(prefix + "self_attn.o_proj.weight", width, heads * head)
        if kind == "olmoe":
            weights.vector(prefix + "self_attn.q_norm.weight", heads * head, 1.0, 0.05)
            weights.vector(prefix + "self_attn.k_norm.weight", kv_heads * head, 1.0, 0.05)
        if kind == "glm4_moe":
            weights.vector(prefix + "self_attn.q_norm.weight", head, 1.0, 0.05)
            weights.vector(prefix + "self_attn.k_norm.weight", head, 1.0, 0.05)
            if layer < config["first_k_dense_replace"]:
                feed_forward(prefix + "mlp.", config["intermediate_size"], projections)
                continue
        block = prefix + ("block_sparse_moe." if kind == "mixtral" else "mlp.")
        weights.matrix(block + "gate.weight", experts, width, 1.5)
        inner = config.get("moe_intermediate_size", config["intermediate_size"])
        for expert in range(experts):
            feed_forward(f"{block}experts.{expert}.", inner,
                         ("w1", "w3", "w2") if kind == "mixtral" else projections)
        if kind == "qwen2_moe":
            feed_forward(block + "shared_expert.", config["shared_expert_intermediate_size"], projections)
            weights.matrix(block + "shared_expert_gate.weight", 1, width)
        if kind == "glm4_moe":
            feed_forward(block + "shared_experts.", inner * config["n_shared_experts"], projections)
            weights.vector(block + "gate.e_score_correction_bias", experts, 0.0, 0.1)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(weights.tensors, folder / "model.safetensors")
    return folder


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((MODELS / name / "config.json").read_text()), **changes}


def folder_of(name: str) -> Path:
    """The trained model where it is committed, else one of its shape with random weights."""
    trained = MODELS / name
    return trained if (trained / "model.safetensors").exists() else random_folder(config_of(name), WORK / name)


def is_stale(output: Path, *inputs: Path) -> bool:
    return not output.exists() or any(output.stat().st_mtime < file.stat().st_mtime for file in inputs)


def gguf_of(folder: Path, kind: str = "f32") -> Path:
    """The folder's GGUF as f32, f16, q8_0, or what llama-quantize makes, such as q4_k_s; made once."""
    WORK.mkdir(parents=True, exist_ok=True)
    output = WORK / f"{folder.name}-{kind}.gguf"
    sources = (folder / "model.safetensors", folder / "config.json", Path(convert.__file__))
    if not is_stale(output, *sources):
        return output
    partial = output.with_suffix(".partial")
    if kind in convert.TYPES:
        tokens = json.loads((folder / "config.json").read_text())["vocab_size"]
        tokenizer = TOKENIZER if tokens == 2048 and not (folder / "tokenizer.json").exists() else None
        convert.convert(folder, partial, kind, tokenizer, tell=lambda line: None)
    else:
        done = subprocess.run([HOME / "stock" / "bin" / "llama-quantize", "--pure", gguf_of(folder, "f16"), partial, kind],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
    partial.rename(output)
    return output


def wide_folder() -> Path:
    """Random weights of a shape that all block types of ggml divide: 256 wide."""
    config = config_of("olmoe-64x8", hidden_size=256, intermediate_size=256, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=4, num_experts=16, num_experts_per_tok=6)
    return random_folder(config, WORK / "wide-16x6")
