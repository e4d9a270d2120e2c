#!/usr/bin/env python3
"""The texts of the byte-level reference model, from the Debian package r-cran-janeaustenr.

    python corpus.py [--deb FILE] [--out DIR] [--work DIR]

writes ``heldout_calibration.txt`` and ``heldout_test.txt`` to ``--out`` and
``train.txt`` and ``validation.txt`` to ``--work``, and prints their sizes and
sha256 sums.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from packages import find_deb, novels, sha256  # noqa: E402

DEB_NAME = "r-cran-janeaustenr_1.0.0-1_all.deb"
DEB_SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
TRAINING_NOVELS = ("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey")
HELDOUT_NOVEL = "persuasion"
HELDOUT_BYTES = 131_072


def split(texts: dict[str, bytes]) -> dict[str, bytes]:
    """Training, validation and the two committed held-out texts, by file name.

    The held-out novel starts at its first "Chapter" heading, after the title lines.
    """
    heldout = texts[HELDOUT_NOVEL]
    heldout = heldout[heldout.lower().index(b"chapter 1") :]
    return {
        "train.txt": b"\n".join(texts[name] for name in TRAINING_NOVELS),
        "heldout_calibration.txt": heldout[:HELDOUT_BYTES],
        "heldout_test.txt": heldout[HELDOUT_BYTES : 2 * HELDOUT_BYTES],
        "validation.txt": heldout[2 * HELDOUT_BYTES :],
    }


def load(deb_path: Path) -> dict[str, bytes]:
    """The four texts of :func:`split` from the package at ``deb_path``."""
    deb = find_deb(deb_path)
    if sha256(deb) != DEB_SHA256:
        raise SystemExit(f"{deb_path}: sha256 differs from {DEB_SHA256}")
    return split(novels(deb))


def main() -> None:
    """Write the four texts and print their sizes and sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deb", type=Path, default=HERE / "data" / DEB_NAME, help="package file; fetched when absent")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the held-out texts")
    parser.add_argument("--work", type=Path, default=HERE / "data", help="folder for training and validation text")
    args = parser.parse_args()
    print(f"{DEB_SHA256}  {args.deb.name}")
    for name, text in load(args.deb).items():
        folder = args.out if name.startswith("heldout_") else args.work
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
        print(f"{sha256(text)}  {name}  {len(text)} bytes")


if __name__ == "__main__":
    main()
