"""The texts as tokens, and the batches of a training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import texts
import tokenizer

WINDOW = 256


def encode(documents: list[bytes], mark_ends: bool) -> Tensor:
    """Tokens [N] int32 of documents, each ended by the special token where ``mark_ends``."""
    coder = tokenizer.load()
    end = [coder.token_to_id(tokenizer.END)] if mark_ends else []
    ids: list[int] = []
    for encoded in coder.encode_batch([document.decode() for document in documents]):
        ids += encoded.ids + end
    return torch.tensor(ids, dtype=torch.int32)


def heldout(domain: str, part: str) -> Tensor:
    """Tokens [N] of a committed held-out text."""
    return encode([texts.heldout_file(domain, part).read_bytes()], mark_ends=False)


def load(folder: Path, debs: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and validation tokens by domain; kept in ``folder`` once made."""
    made_of = (texts.HERE / "texts.json", tokenizer.FOLDER / "tokenizer.json")
    key = texts.sha256(b"".join(path.read_bytes() for path in made_of))
    file = folder / f"tokens-{key[:16]}.safetensors"
    if not file.exists():
        tokens = {}
        for name, domain in texts.verified(debs).items():
            tokens[f"training.{name}"] = encode(domain.training, mark_ends=True)
            tokens[f"validation.{name}"] = encode([domain.heldout["validation"]], mark_ends=False)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tokens, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    tokens = load_file(file)
    domains = json.loads((texts.HERE / "texts.json").read_text())["domains"]
    return tuple({name: tokens[f"{part}.{name}"] for name in domains} for part in ("training", "validation"))


def batch(tokens: dict[str, Tensor], step: int, seed: int, windows: int) -> Tensor:
    """Windows [domains * windows, WINDOW + 1] int64, as many of each domain: a function of the seed and the step.

    The domains take turns, so that every share ``batch[i::n]`` of a batch has about as many of each.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    chosen = []
    for stream in tokens.values():
        starts = torch.randint(0, len(stream) - WINDOW, (windows,), generator=generator)
        chosen.append(torch.stack([stream[i : i + WINDOW + 1] for i in starts.tolist()]).long())
    return torch.stack(chosen, 1).flatten(0, 1)


def windows_of(stream: Tensor) -> Tensor:
    """Tokens [N] cut into windows [N / WINDOW, WINDOW] int64 that do not overlap; what is left over is dropped."""
    return stream[: len(stream) // WINDOW * WINDOW].view(-1, WINDOW).long()
