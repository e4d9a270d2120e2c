#!/usr/bin/env python3
"""Loss of the reference model in transformers, in nats a byte, and the figures recorded from it.

    python evaluate.py heldout_test.txt heldout_calibration.txt
    python evaluate.py --record

The model runs in float32 over windows of 256 bytes that do not overlap; each window gives 255
predictions, and an incomplete last window is dropped.  ``--record`` writes expected_loss.json and
reference_logits.tensors.  Every run also computes the loss with train.py's own model and fails
where the two differ by more than 1e-5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralForCausalLM

from model import Config, Model, window_loss

HERE = Path(__file__).resolve().parent
HELDOUT = ("heldout_test.txt", "heldout_calibration.txt")
REFERENCE_BYTES = 64
TOLERANCE = 1e-5


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_bytes(path: Path) -> Tensor:
    """A file as a uint8 tensor [N]."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


def load_transformers(folder: Path) -> MixtralForCausalLM:
    """The model in float32; an error where weights are missing or left over."""
    model, info = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {k: v for k, v in info.items() if v}
    if problems:
        raise SystemExit(f"{folder}: the weights do not match the model: {problems}")
    return model.eval()


def load_own(folder: Path) -> Model:
    """The same weights in train.py's model, float32."""
    model = Model(Config())
    model.load_export(load_file(folder / "model.safetensors"))
    return model.eval()


@torch.no_grad()
def transformers_loss(model: MixtralForCausalLM, text: Tensor, window: int, batch: int = 8) -> tuple[float, int]:
    """Mean nats a byte of text [N] over whole windows, and the number of predictions."""
    windows = text[: len(text) // window * window].view(-1, window).long()
    total, count = 0.0, windows.shape[0] * (window - 1)
    for part in windows.split(batch):
        logits = model(part, use_cache=False).logits[:, :-1]
        total += F.cross_entropy(logits.reshape(-1, logits.shape[-1]), part[:, 1:].flatten(), reduction="sum").item()
    return total / count, count


def evaluate(folder: Path, paths: list[Path], window: int) -> dict[str, dict]:
    """The figures of each text, by file name; the two models must agree."""
    model, own = load_transformers(folder), load_own(folder)
    figures = {}
    for path in paths:
        text = read_bytes(path)
        loss, count = transformers_loss(model, text, window)
        own_loss, _ = window_loss(own, text, window)
        print(f"{path.name}: {loss:.7f} nats/byte, perplexity {math.exp(loss):.4f}, {count} predictions; "
              f"train.py's model {own_loss:.7f}")
        if abs(loss - own_loss) > TOLERANCE:
            raise SystemExit("transformers and train.py's model disagree")
        figures[path.name] = {
            "sha256": sha256(path), "window": window, "predictions": count, "nats_per_byte": round(loss, 7),
        }
    return figures


@torch.no_grad()
def reference_logits(folder: Path) -> dict[str, Tensor]:
    """Logits [64, 256] and router logits [64, 32] of every layer for the test text's first bytes."""
    tokens = read_bytes(folder / HELDOUT[0])[:REFERENCE_BYTES].long()[None]
    output = load_transformers(folder)(tokens, output_router_logits=True, use_cache=False)
    result = {"logits": output.logits[0].contiguous()}
    for layer, logits in enumerate(output.router_logits):
        result[f"router.{layer}"] = logits.view(REFERENCE_BYTES, -1).contiguous()
    return result


def record(folder: Path, window: int) -> None:
    """Write expected_loss.json and reference_logits.tensors."""
    figures = {
        "weights_sha256": sha256(folder / "model.safetensors"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "texts": evaluate(folder, [folder / name for name in HELDOUT], window),
    }
    (folder / "expected_loss.json").write_text(json.dumps(figures, indent=2) + "\n")
    metadata = {"text": HELDOUT[0], "weights_sha256": figures["weights_sha256"]}
    save_file(reference_logits(folder), folder / "reference_logits.tensors", metadata=metadata)
    (folder / "reference_logits.tensors").chmod(0o644)


def main() -> None:
    """Evaluate the texts given, or record the figures of the held-out ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="*", help="text files; the held-out ones by default")
    parser.add_argument("--model", type=Path, default=HERE, help="folder of model.safetensors and config.json")
    parser.add_argument("--window", type=int, default=256, help="bytes a window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="write the recorded figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.record:
        record(args.model, args.window)
    else:
        evaluate(args.model, args.texts or [args.model / name for name in HELDOUT], args.window)


if __name__ == "__main__":
    main()
