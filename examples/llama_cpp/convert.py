#!/usr/bin/env python3
"""Write the GGUF of a reference model's folder: weights, sizes, tokenizer.

    python convert.py bench/models/reference-32x8 reference-32x8.gguf [--type f32|f16|q8_0]

Mixtral, Qwen2-MoE, OLMoE and GLM-4-MoE folders as HuggingFace writes them; anything else is refused.  A folder
without a tokenizer of its own and with 256 tokens is byte-level: token b is byte b.  Q4_K and the others come
from llama-quantize on the f32 file.  Needs the packages gguf, numpy and safetensors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Iterator

import gguf
import numpy as np
from safetensors import safe_open

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
ARCHITECTURES = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "olmoe": "olmoe", "glm4_moe": "glm4moe"}

# Names of a layer's tensors behind "model.layers.N." and behind "blk.N."; experts are apart.
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
EXPERT_NAMES = {  # as Mixtral calls them, and as the others do
    "ffn_gate_exps.weight": ("w1", "gate_proj"),
    "ffn_down_exps.weight": ("w2", "down_proj"),
    "ffn_up_exps.weight": ("w3", "up_proj"),
}
ALWAYS_F32 = ("norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", ".bias")


class Checkpoint:
    """The tensors of a folder, each taken once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where: dict[str, Path] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            with safe_open(file, framework="numpy") as tensors:
                self.where.update((name, file) for name in tensors.keys())
        if not self.where:
            raise SystemExit(f"{folder}: no model*.safetensors, expected the weights of a model")
        self.left = set(self.where)

    def has(self, name: str) -> bool:
        return name in self.where

    def take(self, name: str) -> np.ndarray:
        if name not in self.where:
            raise SystemExit(f"{self.folder}: no tensor {name}")
        self.left.discard(name)
        with safe_open(self.where[name], framework="numpy") as tensors:
            return tensors.get_tensor(name).astype(np.float32)


def rotated_in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K for ggml's rotation of neighbours, from HuggingFace's rotation of halves."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def layer_tensors(weights: Checkpoint, config: dict[str, Any], layer: int) -> Iterator[tuple[str, np.ndarray]]:
    prefix = f"model.layers.{layer}."
    kind = config["model_type"]
    for name, target in LAYER_NAMES.items():
        if not weights.has(prefix + name):
            continue
        tensor = weights.take(prefix + name)
        if kind == "glm4_moe" and name == "post_attention_layernorm.weight":
            target = "post_attention_norm.weight"
        if kind == "mixtral" and name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            tensor = rotated_in_pairs(tensor, heads)
        if target == "ffn_gate_inp_shexp.weight":
            tensor = tensor.reshape(-1)
        yield f"blk.{layer}.{target}", tensor
    block = prefix + ("block_sparse_moe.experts." if kind == "mixtral" else "mlp.experts.")
    experts = num_experts(config)
    for target, names in EXPERT_NAMES.items():
        name = names[0 if kind == "mixtral" else 1]
        if not weights.has(f"{block}0.{name}.weight"):
            continue  # a dense layer
        stacked = np.stack([weights.take(f"{block}{expert}.{name}.weight") for expert in range(experts)])
        yield f"blk.{layer}.{target}", stacked


def num_experts(config: dict[str, Any]) -> int:
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if key in config:
            return int(config[key])
    raise SystemExit("config.json: no num_local_experts, num_experts or n_routed_experts")


def add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The keys that llama.cpp reads for the four architectures; refuses what it has no key for."""
    kind = config["model_type"]
    if kind == "mixtral" and config.get("sliding_window"):
        raise SystemExit(f"sliding_window is {config['sliding_window']}, expected none")
    if kind in ("qwen2_moe", "olmoe") and config.get("norm_topk_prob"):
        raise SystemExit(f"norm_topk_prob is true, which llama.cpp has no key for in {kind}")
    if kind == "qwen2_moe" and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        raise SystemExit("mlp_only_layers or decoder_sparse_step, which llama.cpp has no key for")
    if kind == "olmoe" and config.get("clip_qkv") is not None:
        raise SystemExit(f"clip_qkv is {config['clip_qkv']}, which llama.cpp has no key for in olmoe")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", rope.get("rope_theta", 10000.0)))
    partial = config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(int(head_dim * partial))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_expert_count(num_experts(config))
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if kind == "qwen2_moe":
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if kind == "glm4_moe":
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        if config.get("n_group", 1) > 1:
            writer.add_expert_group_count(config["n_group"])
            writer.add_expert_group_used_count(config["topk_group"])


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (as GPT-2 has them)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    characters = {byte: chr(byte) for byte in plain}
    characters.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return [characters[byte] for byte in range(256)]


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], file: Path | None) -> None:
    if file is None:
        if config["vocab_size"] != 256:
            raise SystemExit(f"{folder}: no tokenizer.json and {config['vocab_size']} tokens, expected 256 bytes")
        tokens = byte_characters()
        merges = [f"{tokens[0]} {tokens[0]}"]  # llama.cpp wants one: of bytes that no text has, into no token
        special: set[int] = set()
        end = 0
    else:
        content = json.loads(file.read_text())
        model, split = content["model"], content["pre_tokenizer"]
        plain = model["type"] == "BPE" and split["type"] == "ByteLevel" and split["use_regex"]
        if not plain or split["add_prefix_space"] or content["normalizer"] is not None:
            raise SystemExit(f"{file}: expected byte-level BPE with GPT-2's splitting and no normalizer")
        tokens = [""] * config["vocab_size"]
        for token, number in model["vocab"].items():
            tokens[number] = token
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        special = {added["id"] for added in content["added_tokens"] if added["special"]}
        end = config.get("eos_token_id") or 0
        if "" in tokens:
            raise SystemExit(f"{file}: {tokens.count('')} of {len(tokens)} tokens are missing")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL
                            for number in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def convert(folder: Path, output: Path, kind: str, tokenizer: Path | None = None,
            tell: Callable[[str], None] = print) -> None:
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES.get(config["model_type"])
    if architecture is None:
        raise SystemExit(f"{folder}: model_type is {config['model_type']}, expected one of "
                         f"{', '.join(ARCHITECTURES)}")
    weights = Checkpoint(folder)
    writer = gguf.GGUFWriter(output, architecture)
    writer.add_name(folder.resolve().name)
    writer.add_file_type(FILE_TYPES[kind])
    add_sizes(writer, config)
    if tokenizer is None and (folder / "tokenizer.json").exists():
        tokenizer = folder / "tokenizer.json"
    add_tokenizer(writer, folder, config, tokenizer)
    parameters = 0

    def add(name: str, tensor: np.ndarray) -> None:
        nonlocal parameters
        parameters += tensor.size
        stored = TYPES[kind]
        block = gguf.GGML_QUANT_SIZES[stored][0]
        if tensor.ndim == 1 or name.endswith(ALWAYS_F32) or tensor.shape[-1] % block != 0:
            stored = TYPES["f32"]
        data = gguf.quants.quantize(np.ascontiguousarray(tensor), stored)
        writer.add_tensor(name, data, raw_dtype=stored)

    for name, target in TOP_NAMES.items():
        if weights.has(name):
            add(target, weights.take(name))
    if not weights.has("lm_head.weight") and architecture in ("qwen2moe", "olmoe"):
        raise SystemExit(f"{folder}: tied embeddings, which llama.cpp does not read for {architecture}")
    for layer in range(config["num_hidden_layers"]):
        for target, tensor in layer_tensors(weights, config, layer):
            add(target, tensor)
    if weights.left:
        raise SystemExit(f"{folder}: tensors that {architecture} has no place for: {', '.join(sorted(weights.left)[:5])}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tell(f"{output}: {architecture}, {parameters:,} parameters, {kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="config.json, model.safetensors, tokenizer.json")
    parser.add_argument("output", type=Path, help="the GGUF to write")
    parser.add_argument("--type", choices=list(TYPES), default="f32", help="how matrices are stored (f32)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, where the folder has none")
    arguments = parser.parse_args()
    convert(arguments.folder, arguments.output, arguments.type, arguments.tokenizer)


if __name__ == "__main__":
    main()
