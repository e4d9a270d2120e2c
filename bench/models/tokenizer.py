#!/usr/bin/env python3
"""Train the models' tokenizer: byte-level byte-pair encoding of all three domains.

    python tokenizer.py [--debs FOLDER]

writes tokenizer/tokenizer.json and tokenizer/tokenizer_config.json.  Every byte is a token, so that any text
has tokens; one special token ends a document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import texts

FOLDER = Path(__file__).resolve().parent / "tokenizer"
END = "<|endoftext|>"
VOCABULARY = 2048


def train(domains: dict[str, texts.Domain]) -> Tokenizer:
    """A tokenizer of as many bytes of each domain."""
    size = min(sum(map(len, domain.training)) for domain in domains.values())
    documents = []
    for domain in domains.values():
        left = size
        for document in domain.training:
            if left <= 0:
                break
            documents.append(document[:left].decode(errors="ignore"))
            left -= len(document)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def load() -> Tokenizer:
    """The committed tokenizer."""
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--debs", type=Path, default=texts.DEBS, help="folder of the packages")
    domains = texts.verified(parser.parse_args().debs)
    tokenizer = train(domains)
    FOLDER.mkdir(exist_ok=True)
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": None, "pad_token": None,
              "model_max_length": 256, "clean_up_tokenization_spaces": False}
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, domain in domains.items():
        text = domain.heldout["test"].decode()
        print(f"{name}: {len(text.encode()) / len(tokenizer.encode(text).ids):.3f} bytes a token")


if __name__ == "__main__":
    main()
