#!/usr/bin/env python3
"""Record the router logits of a HuggingFace mixture-of-experts language model.

    python record_trace.py --model reference-32x8 --text reference-32x8/heldout_test.txt --out trace.safetensors

The text is cut into windows that do not overlap, each run as one sequence; a last incomplete window
is dropped.  The file holds ``layer.{i}.router_logits`` [T, E] float32 for the i-th layer that has a
router, T tokens in text order, and this metadata, all strings:

    format       "adaptive_k.trace"          gating           see GATINGS below
    version      "1"                         renormalize      "true" or "false"
    model        name or folder name         num_tokens       T
    num_layers   layers recorded             window           tokens a sequence
    num_experts  E                           dataset          name of the text file
    top_k        experts a token             dataset_sha256   its sha256

Logits are the products of the router's own input and weight, before any bias that only steers the
choice.  Where a model has such a bias (DeepSeek V3 and its kin) it is stored as
``layer.{i}.selection_bias`` [E] float32; where it chooses among groups of experts the metadata
also hold ``num_groups`` and ``groups_kept``.

Routers are found by name and shape: a module under a ``gate`` or ``router`` whose weight is [E, H].
The input is captured with forward hooks, so the model's code runs unchanged.  A model with a
256-token vocabulary and no tokenizer reads bytes; every other needs its tokenizer.

Memory: the whole model in ``--dtype`` (float32, 4 bytes a parameter, unless said otherwise) and the
logits, 4 bytes each.  Both are said before anything is loaded, with what is free.  ``--dtype auto``
takes the type that the model is stored in, half of float32 for most; the router's products are
float32 either way.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

GATINGS = ("softmax", "sigmoid", "top_k_softmax", "sqrt_softplus")
EXPERT_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K_FIELDS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
TOP_K_SOFTMAX = {"gpt_oss", "granitemoe", "granitemoeshared", "granitemoehybrid", "jetmoe"}
SIGMOID = {
    "deepseek_v3", "deepseek_v32", "dots1", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "minimax_m2",
    "axk1", "exaone_moe", "solar_open", "lfm2_moe",
}
SOFTMAX = {
    "mixtral", "minimax", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe", "olmoe", "flex_olmo", "deepseek_v2",
    "jamba", "dbrx", "hunyuan_v1_moe",
}
ALWAYS_RENORMALIZED = TOP_K_SOFTMAX | {
    "mixtral", "minimax", "minimax_m2", "deepseek_v4", "qwen3_5_moe", "hunyuan_v1_moe",
}
NEVER_RENORMALIZED = {"jamba", "deepseek_v2"}
SCORING = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrt_softplus"}
BIAS_NAMES = ("e_score_correction_bias", "expert_bias", "moe_statics.e_score_correction_bias")


def text_config(config: Any) -> Any:
    """The language model's part of a configuration."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def field(config: Any, names: tuple[str, ...], meaning: str) -> int:
    """The first integer field of ``names``, also looked for in ffn_config (DBRX)."""
    for part in (config, getattr(config, "ffn_config", None)):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int):
                return value
    raise SystemExit(f"{config.model_type}: found no {meaning} in the configuration (looked for {', '.join(names)})")


def gating(config: Any, asked: str | None) -> str:
    """How logits become weights: what was asked for, else what the model type is known to do."""
    scoring = str(getattr(config, "scoring_func", None)).lower()
    if asked:
        return asked
    if scoring in SCORING:
        return SCORING[scoring]
    for name, types in (("top_k_softmax", TOP_K_SOFTMAX), ("sigmoid", SIGMOID), ("softmax", SOFTMAX)):
        if config.model_type in types:
            return name
    raise SystemExit(f"{config.model_type}: unknown gating; name it with --gating ({', '.join(GATINGS)})")


def renormalized(config: Any, asked: str | None) -> bool:
    """Whether the chosen experts' weights are divided by their sum."""
    if asked:
        return asked == "true"
    if config.model_type in ALWAYS_RENORMALIZED:
        return True
    if config.model_type in NEVER_RENORMALIZED:
        return False
    for name in ("norm_topk_prob", "route_norm"):
        if getattr(config, name, None) is not None:
            return bool(getattr(config, name))
    ffn = getattr(config, "ffn_config", None)
    if hasattr(ffn, "moe_normalize_expert_weights"):
        if ffn.moe_normalize_expert_weights not in (None, 1.0):
            raise SystemExit("only p = 1 normalisation of expert weights is known")
        return ffn.moe_normalize_expert_weights is not None
    raise SystemExit(f"{config.model_type}: unknown normalisation; say --renormalize true or false")


def find_routers(model: nn.Module, experts: int) -> dict[str, nn.Module]:
    """Modules that hold a router's weight [E, H], by name, in the model's order."""
    routers = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        named = any(part in ("gate", "router", "gating") for part in name.split("."))
        if named and isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] == experts:
            if "Hash" in type(module).__name__:
                print(f"{name}: skipped, it chooses experts by token and not by logits")
                continue
            routers[name] = module
    if not routers:
        raise SystemExit(f"found no router: no module under a gate or router has a weight of {experts} rows")
    return routers


def selection_bias(model: nn.Module, name: str) -> Tensor | None:
    """The bias [E] that steers only the choice, when the router or its parent has one."""
    for owner in (name, name.rpartition(".")[0]):
        for bias in BIAS_NAMES:
            value: Any = model.get_submodule(owner)
            for part in bias.split("."):
                value = getattr(value, part, None)
            if isinstance(value, Tensor) and value.count_nonzero():
                return value.detach().float().flatten()
    return None


class Recorder:
    """Forward hooks that keep each router's logits, one [tokens, E] float32 tensor a sequence."""

    def __init__(self, routers: dict[str, nn.Module]) -> None:
        self.logits: dict[str, list[Tensor]] = {name: [] for name in routers}
        for name, module in routers.items():
            module.register_forward_hook(self.hook(name), with_kwargs=True)

    def hook(self, name: str):
        """The hook of one router; checks itself against logits the router returns."""

        def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            hidden = (args or tuple(kwargs.values()))[0]
            bias = getattr(module, "bias", None)
            flat = hidden.reshape(-1, hidden.shape[-1]).float()
            logits = F.linear(flat, module.weight.float(), None if bias is None else bias.float())
            first = output[0] if isinstance(output, tuple) else output
            if first.shape == logits.shape and first.dtype == torch.float32:
                error = (first - logits).abs().max().item()
                if error > 1e-3 * (1 + logits.abs().max().item()):
                    raise SystemExit(f"{name}: the router's output is not input times weight (off by {error:.3g})")
            self.logits[name].append(logits.cpu())

        return record


def encode(text: bytes, source: str, config: Any, force_bytes: bool) -> Tensor:
    """Text as token ids [N] (int64): bytes or the model's tokenizer's."""
    if not force_bytes:
        try:
            ids = AutoTokenizer.from_pretrained(source)(text.decode(), add_special_tokens=False)["input_ids"]
        except (OSError, ValueError) as error:
            ids, reason = [], str(error)
        else:
            reason = "it gives no tokens"
        if ids:
            return torch.tensor(ids)
        if config.vocab_size != 256:
            raise SystemExit(f"{source}: no usable tokenizer ({reason}); --bytes feeds bytes instead")
    return torch.tensor(list(text))


@torch.no_grad()
def record(model: nn.Module, tokens: Tensor, window: int, routers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Router logits [T, E] by router name, for token ids [T / window, window]."""
    recorder = Recorder(routers)
    device = next(model.parameters()).device
    for part in tqdm(tokens.view(-1, window).split(1), unit="window"):
        model(part.to(device), use_cache=False)
    result = {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in recorder.logits.items()}
    for name, logits in result.items():
        if logits.shape[0] != tokens.numel():
            raise SystemExit(f"{name}: recorded {logits.shape[0]} rows for {tokens.numel()} tokens")
    return result


def dtype_of(config: Any, asked: str) -> torch.dtype:
    """The type of the weights in memory."""
    if asked != "auto":
        return getattr(torch, asked)
    stored = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return getattr(torch, stored) if isinstance(stored, str) else stored or torch.float32


def free_bytes() -> int:
    """Memory of this machine that programs may still take; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 0)


def say_memory(config: Any, dtype: torch.dtype, tokens: int, experts: int) -> None:
    """Says on stderr what the run will take, before it takes it."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    weights = parameters * dtype.itemsize
    logits = 4 * getattr(config, "num_hidden_layers", 1) * tokens * experts
    free = free_bytes()
    text = (
        f"{parameters / 1e9:.3g} billion parameters in {str(dtype).removeprefix('torch.')}: {weights / 1e9:.3g} GB; "
        f"at most {logits / 1e9:.3g} GB of logits; {torch.get_num_threads()} threads"
    )
    if free:
        text += f"; {free / 1e9:.3g} GB are free"
    print(text, file=sys.stderr)
    if free and weights + logits > free:
        hint = "--dtype auto or bfloat16" if dtype.itemsize > 2 else "a machine with more"
        print(f"warning: that is more than is free: try {hint}, or fewer --tokens", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="folder or name for from_pretrained")
    p.add_argument("--text", type=Path, required=True, help="UTF-8 text file")
    p.add_argument("--out", type=Path, default=Path("trace.safetensors"))
    p.add_argument("--window", type=int, default=256, help="tokens a sequence")
    p.add_argument("--tokens", type=int, default=0, help="stop after this many tokens (0: all)")
    p.add_argument("--bytes", action="store_true", help="feed bytes even when there is a tokenizer")
    p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "auto"),
                   help="of the weights in memory (default: float32; auto: as they are stored)")
    p.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    p.add_argument("--threads", type=int, default=0, help="of the CPU (default: all of them)")
    p.add_argument("--gating", choices=GATINGS, help="override what the model type is known to do")
    p.add_argument("--renormalize", choices=("true", "false"), help="likewise")
    return p.parse_args()


def metadata(args: argparse.Namespace, config: Any, text: bytes, shape: tuple[int, int, int]) -> dict[str, str]:
    """The trace's metadata; shape is (layers, tokens, experts)."""
    result = {
        "format": "adaptive_k.trace",
        "version": "1",
        "model": Path(args.model).resolve().name if Path(args.model).exists() else args.model,
        "num_layers": str(shape[0]),
        "num_experts": str(shape[2]),
        "top_k": str(field(config, TOP_K_FIELDS, "number of experts a token")),
        "gating": gating(config, args.gating),
        "renormalize": str(renormalized(config, args.renormalize)).lower(),
        "num_tokens": str(shape[1]),
        "window": str(args.window),
        "dataset": args.text.name,
        "dataset_sha256": hashlib.sha256(text).hexdigest(),
    }
    if (getattr(config, "n_group", None) or 1) > 1:
        result |= {"num_groups": str(config.n_group), "groups_kept": str(config.topk_group)}
    return result


def main() -> None:
    """Record a trace."""
    args = arguments()
    if args.window < 1 or args.tokens < 0 or args.threads < 0:
        raise SystemExit("expected --window of 1 or more, --tokens and --threads of 0 or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    text = args.text.read_bytes()
    config = text_config(AutoConfig.from_pretrained(args.model))
    experts = field(config, EXPERT_FIELDS, "number of experts")
    metadata(args, config, text, (0, 0, experts))  # fail on unknown gating before the model loads
    tokens = encode(text, args.model, config, args.bytes)
    count = min(args.tokens or len(tokens), len(tokens)) // args.window * args.window
    if not count:
        raise SystemExit(f"the text is shorter than one window of {args.window} tokens")
    dtype = dtype_of(config, args.dtype)
    say_memory(config, dtype, count, experts)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    routers = find_routers(model, experts)
    logits = record(model, tokens[:count], args.window, routers)
    tensors = {}
    for i, (name, rows) in enumerate(logits.items()):
        tensors[f"layer.{i}.router_logits"] = rows.contiguous()
        if (bias := selection_bias(model, name)) is not None:
            tensors[f"layer.{i}.selection_bias"] = bias.cpu().contiguous()
    notes = metadata(args, config, text, (len(logits), count, experts))
    save_file(tensors, args.out, metadata=notes)
    args.out.chmod(0o644)
    print("\n".join(f"{key}: {value}" for key, value in notes.items()))


if __name__ == "__main__":
    main()
