#!/usr/bin/env python3
"""Write a trained model's folder as transformers reads it, and record what it gives.

    python export.py olmoe-64x8 --work FOLDER     from the checkpoint in FOLDER/MODEL
    python export.py olmoe-64x8 --check           the committed folder against what was recorded

An export writes model.safetensors (float16; selection biases float32), the tokenizer, training_log.jsonl,
expected_loss.json, reference_outputs.tensors and the model card, README.md.  transformers' own class and
experts must give the trained model's logits to 1e-4, and no expert may bear more than 3 times the mean load.
Figures are of float32 arithmetic over windows of 256 tokens that do not overlap.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import data
import texts
import tokenizer
from card import card
from train import HERE, create, routers

LOGIT_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-4
LARGEST_LOAD = 3.0
ROUTER_TOKENS = 32


def load(folder: Path) -> PreTrainedModel:
    """The folder's model in its own class, float32; an error where weights are missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {kind: names for kind, names in info.items() if names}
    if problems:
        raise SystemExit(f"{folder}: the weights do not match the model: {problems}")
    model.set_experts_implementation("eager")
    return model.eval()


def trained(folder: Path, checkpoint: Path) -> PreTrainedModel:
    """The checkpoint's model with weights rounded to float16, computed by the training's experts."""
    model = create(folder, 0)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model.eval()


def write_weights(model: PreTrainedModel, folder: Path) -> None:
    """model.safetensors under the names that checkpoints of the class have; config.json stays as it is."""
    half = copy.deepcopy(model).half()
    for own, router in zip(routers(model), routers(half)):
        if hasattr(own, "e_score_correction_bias"):
            router.e_score_correction_bias = own.e_score_correction_bias
    with tempfile.TemporaryDirectory() as scratch:
        half.save_pretrained(scratch)
        shutil.copyfile(Path(scratch) / "model.safetensors", folder / "model.safetensors")


@torch.no_grad()
def agree(own: PreTrainedModel, stock: PreTrainedModel) -> None:
    """An error unless both give the same logits; float64, where no two experts are tied by rounding alone."""
    windows = torch.cat([data.windows_of(data.heldout(name, "test"))[:2] for name in texts_of()])
    first, second = (model.double()(windows, use_cache=False).logits for model in (own, stock))
    stock.float()
    difference = (first - second).abs().max().item()
    print(f"logits differ by at most {difference:.2e}")
    if not difference <= LOGIT_TOLERANCE:
        raise SystemExit("transformers and the trained model disagree")


def texts_of() -> list[str]:
    """The domains."""
    return list(json.loads((HERE / "texts.json").read_text())["domains"])


@torch.no_grad()
def measure(model: PreTrainedModel, stream: Tensor, loads: Tensor) -> tuple[float, int]:
    """Mean nats a token over whole windows and the number of predictions; adds to loads [layers, E]."""
    windows, total = data.windows_of(stream), 0.0
    chosen: list[Tensor] = []
    hooks = [router.register_forward_hook(lambda _m, _i, output: chosen.append(output[2])) for router in routers(model)]
    for part in windows.split(8):
        chosen.clear()
        logits = model(part, use_cache=False).logits[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        for layer, experts in enumerate(chosen):
            loads[layer] += torch.bincount(experts.flatten(), minlength=loads.shape[1])
    for hook in hooks:
        hook.remove()
    count = windows.shape[0] * (data.WINDOW - 1)
    return total / count, count


def figures(model: PreTrainedModel, folder: Path) -> dict:
    """What expected_loss.json holds."""
    described = json.loads((HERE / "texts.json").read_text())["domains"]
    routed = routers(model)
    loads = torch.zeros(len(routed), routed[0].weight.shape[0], dtype=torch.int64)
    result: dict = {
        "weights_sha256": texts.sha256((folder / "model.safetensors").read_bytes()),
        "torch": torch.__version__, "transformers": transformers.__version__, "window": data.WINDOW, "texts": {},
    }
    for domain in texts_of():
        for part in ("calibration", "test"):
            stream = data.heldout(domain, part)
            loss, count = measure(model, stream, loads)
            size = described[domain][part]["bytes"]
            result["texts"][f"{domain}_{part}"] = {
                "sha256": described[domain][part]["sha256"], "tokens": len(stream), "predictions": count,
                "nats_per_token": round(loss, 7), "nats_per_byte": round(loss * len(stream) / size, 7),
            }
            print(f"{domain} {part}: {loss:.4f} nats a token, perplexity {math.exp(loss):.2f}", flush=True)
    mean = loads.double().mean(1)
    result["largest_load"] = [round(x, 3) for x in (loads.amax(1) / mean).tolist()]
    result["smallest_load"] = [round(x, 3) for x in (loads.amin(1) / mean).tolist()]
    return result


@torch.no_grad()
def reference_outputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """For the first window of each test text: tokens, nats of each prediction [255], first router logits [32, E]."""
    result = {}
    for domain in texts_of():
        window = data.windows_of(data.heldout(domain, "test"))[:1]
        seen: list[Tensor] = []
        hooks = [r.register_forward_hook(lambda _m, _i, output: seen.append(output[0])) for r in routers(model)]
        logits = model(window, use_cache=False).logits[0, :-1]
        for hook in hooks:
            hook.remove()
        result[f"{domain}.tokens"] = window[0].int()
        result[f"{domain}.nats"] = F.cross_entropy(logits, window[0, 1:], reduction="none")
        for layer, values in enumerate(seen):
            result[f"{domain}.router.{layer}"] = values.view(data.WINDOW, -1)[:ROUTER_TOKENS].contiguous()
    return result


def export(name: str, work: Path) -> None:
    """Write the folder of a trained model, all of it or nothing."""
    folder, run = HERE / name, work / name
    own = trained(folder, run / "checkpoint.pt")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / name
        made.mkdir()
        for file in (folder / "config.json", folder / "training.json", run / "training_log.jsonl",
                     *tokenizer.FOLDER.iterdir()):
            shutil.copyfile(file, made / file.name)
        write_weights(own, made)
        stock = load(made)
        agree(own, stock)
        result = figures(stock, made)
        if max(result["largest_load"]) > LARGEST_LOAD:
            raise SystemExit(f"{name}: an expert bears {max(result['largest_load'])} times the mean load")
        (made / "expected_loss.json").write_text(json.dumps(result, indent=2) + "\n")
        save_file(reference_outputs(stock), made / "reference_outputs.tensors",
                  metadata={"weights_sha256": result["weights_sha256"]})
        (made / "README.md").write_text(card(made, sum(p.numel() for p in stock.parameters())))
        for file in made.iterdir():
            shutil.copyfile(file, folder / file.name)


def check(name: str) -> None:
    """An error where the committed folder does not give its recorded losses."""
    expected = json.loads((HERE / name / "expected_loss.json").read_text())
    found = figures(load(HERE / name), HERE / name)
    for text, figure in expected["texts"].items():
        if abs(figure["nats_per_token"] - found["texts"][text]["nats_per_token"]) > LOSS_TOLERANCE:
            raise SystemExit(f"{name}: {text} differs from expected_loss.json")


def main() -> None:
    """Export or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of config.json")
    parser.add_argument("--work", type=Path, default=HERE / "data", help="folder of checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare the committed folder with its record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.check:
        check(args.model)
    else:
        export(args.model, args.work)


if __name__ == "__main__":
    main()
