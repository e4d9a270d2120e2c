"""The model card of a trained model: its README.md, from the files of its folder."""

from __future__ import annotations

import json
from pathlib import Path


def router_line(config: dict) -> str:
    """What the router does, in words."""
    experts = config.get("num_local_experts") or config.get("n_routed_experts") or config["num_experts"]
    line = f"{config['num_experts_per_tok']} of {experts} experts, "
    if config["model_type"] == "glm4_moe":
        return line + (f"sigmoid, chosen by score plus a selection bias, renormalised, times "
                       f"{config['routed_scaling_factor']}; {config['n_shared_experts']} shared expert")
    line += "softmax over all, " + ("renormalised" if config.get("norm_topk_prob", True) else "not renormalised")
    return line + ("; a gated shared expert" if config["model_type"] == "qwen2_moe" else "")


def architecture(config: dict, parameters: int) -> list[tuple[str, str]]:
    """Rows of the architecture's table."""
    dense = config.get("first_k_dense_replace", 0)
    layers = f"{config['num_hidden_layers'] - dense}" + (f", after {dense} dense" if dense else "")
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", config["hidden_size"] // heads)
    return [
        ("class", f"`{config['architectures'][0]}`"),
        ("router", router_line(config)),
        ("MoE layers", layers),
        ("hidden size / expert width", f"{config['hidden_size']} / {width}"),
        ("attention", f"{heads} heads of {head}, {kv} key-value heads"),
        ("vocabulary", f"{config['vocab_size']} tokens of [../tokenizer](../tokenizer)"),
        ("context", f"{config['max_position_embeddings']} tokens"),
        ("parameters", f"{parameters:,}"),
        ("weights", "`model.safetensors`, float16"),
    ]


def table(rows: list[tuple[str, ...]], heads: tuple[str, ...]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ("---",) * len(heads), *rows)]
    return "\n".join(lines)


def card(folder: Path, parameters: int) -> str:
    """README.md of the folder."""
    config = json.loads((folder / "config.json").read_text())
    losses = json.loads((folder / "expected_loss.json").read_text())
    settings = json.loads((folder / "training.json").read_text())
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    loss_rows = [
        (name.replace("_", ", "), f"{entry['nats_per_token']:.4f}", f"{entry['nats_per_byte']:.4f}",
         f"{entry['predictions']:,}") for name, entry in losses["texts"].items()
    ]
    load_rows = [(str(layer), f"{low:.2f}", f"{high:.2f}") for layer, (low, high)
                 in enumerate(zip(losses["smallest_load"], losses["largest_load"]))]
    shown = [entry for i, entry in enumerate(log) if i % max(1, len(log) // 12) == 0 or i == len(log) - 1]
    domains = list(log[-1]["validation"])
    log_rows = [(str(e["step"]), f"{e['core_minutes']:.0f}", f"{e['train']:.3f}",
                 *(f"{e['validation'][d]:.3f}" for d in domains)) for e in shown]
    tokens = log[-1]["step"] * settings["windows"] * len(domains) * config["max_position_embeddings"]
    balancing = (f"Selection biases move by {settings['bias_rate']} a step towards even loads, without a loss."
                 if settings["bias_rate"] else
                 f"The load-balancing loss, computed for each layer and averaged, has weight {settings['balance']}.")
    return f"""# {folder.name}

A small mixture-of-experts language model, trained by this project from nothing. It exists so that adaptive-k
can be measured on a router of this kind that was really trained. It is not meant to write text.
[../README.md](../README.md) describes the texts, the tokenizer and the training of all models.

{table(architecture(config, parameters), ("", ""))}

## Loss

Windows of {losses['window']} tokens that do not overlap, float32 arithmetic, all experts of the router.

{table(loss_rows, ("text", "nats a token", "nats a byte", "predictions"))}

## Load of the experts

Least and most loaded expert of each MoE layer over these texts; 1 is the mean.

{table(load_rows, ("layer", "least", "most"))}

## Training

{log[-1]['step']:,} steps, {tokens:,} tokens, seed {settings['seed']}. {balancing}
`training.json` holds the settings, `training_log.jsonl` all of this table.

{table(log_rows, ("step", "core minutes", "training loss", *(f"validation, {d}" for d in domains)))}
"""
