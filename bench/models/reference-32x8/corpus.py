#!/usr/bin/env python3
"""Turn the Debian package r-cran-janeaustenr into plain-text bytes.

The package holds six novels as character vectors, one string a line, in an R
lazy-load database.  Only the parts of R's serialisation format that occur in
that database are read here; nothing but Python's standard library is used.

    python corpus.py [--deb FILE] [--out DIR] [--work DIR]

writes ``heldout_calibration.txt`` and ``heldout_test.txt`` to ``--out`` and
``train.txt`` and ``validation.txt`` to ``--work``, and prints their sizes and
sha256 sums.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import lzma
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Any

PACKAGE = "r-cran-janeaustenr"
DEB_NAME = "r-cran-janeaustenr_1.0.0-1_all.deb"
DEB_SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
DATA_PREFIX = "./usr/lib/R/site-library/janeaustenr/data/Rdata"
TRAINING_NOVELS = ("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey")
HELDOUT_NOVEL = "persuasion"
HELDOUT_BYTES = 131_072
HERE = Path(__file__).resolve().parent


def sha256(data: bytes) -> str:
    """Hexadecimal sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def find_deb(path: Path) -> bytes:
    """Bytes of the package at ``path``; fetched with apt-get when absent."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=path.parent, check=True)
    if not path.exists():
        raise SystemExit(f"{path} is absent and apt-get fetched another version of {PACKAGE}")
    return path.read_bytes()


def ar_member(archive: bytes, prefix: str) -> tuple[str, bytes]:
    """Name and contents of the first member of an ar archive starting with ``prefix``."""
    if not archive.startswith(b"!<arch>\n"):
        raise ValueError("not an ar archive")
    position = 8
    while position < len(archive):
        header = archive[position : position + 60]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        if name.startswith(prefix):
            return name, archive[position + 60 : position + 60 + size]
        position += 60 + size + size % 2
    raise ValueError(f"no member {prefix}*")


def deb_files(deb: bytes, names: list[str]) -> list[bytes]:
    """Contents of the named files of a .deb package's data archive."""
    name, data = ar_member(deb, "data.tar")
    if name.endswith(".zst"):
        raise ValueError("zstd-compressed packages are not supported")
    if name.endswith(".xz"):
        data = lzma.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [tar.extractfile(n).read() for n in names]  # type: ignore[union-attr]


class RReader:
    """Reader for the subset of R's XDR serialisation used by a data package."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.references = data, 0, []
        if data[:2] != b"X\n":
            raise ValueError("not an XDR serialisation")
        self.position = 2
        version = self.integer()
        self.position += 8
        if version == 3:
            self.take(self.integer())

    def take(self, count: int) -> bytes:
        """Next ``count`` bytes."""
        start = self.position
        self.position += count
        return self.data[start : self.position]

    def integer(self) -> int:
        """Next big-endian 32-bit integer."""
        return struct.unpack(">i", self.take(4))[0]

    def pairlist(self, flags: int) -> dict[str, Any]:
        """A tagged pairlist, as a dictionary (used for attributes)."""
        result: dict[str, Any] = {}
        while flags & 0xFF == 2:
            if flags & 0x200:
                self.item()
            tag = self.item() if flags & 0x400 else ""
            result[tag] = self.item()
            flags = self.integer()
        if flags & 0xFF != 254:
            raise ValueError("pairlist does not end with NULL")
        return result

    def item(self) -> Any:
        """Next object: NULL, symbol, string, integer/character/list vector or pairlist."""
        flags = self.integer()
        kind = flags & 0xFF
        if kind == 254:
            return None
        if kind == 255:
            return self.references[(flags >> 8) - 1]
        if kind == 1:
            symbol = self.item().decode()
            self.references.append(symbol)
            return symbol
        if kind == 2:
            return self.pairlist(flags)
        if kind == 9:
            size = self.integer()
            return b"" if size < 0 else self.take(size)
        return self.vector(flags, kind)

    def vector(self, flags: int, kind: int) -> Any:
        """A logical (10), integer (13), character (16) or generic (19) vector, named ones as a dictionary."""
        count = self.integer()
        if kind in (10, 13):
            values: list[Any] = list(struct.unpack(f">{count}i", self.take(4 * count)))
        elif kind in (16, 19):
            values = [self.item() for _ in range(count)]
        else:
            raise ValueError(f"unsupported R type {kind}")
        if flags & 0x200:
            names = self.pairlist(self.integer()).get("names")
            if names:
                return dict(zip((n.decode() for n in names), values))
        return values


def lazy_load(rdx: bytes, rdb: bytes) -> dict[str, list[bytes]]:
    """Every character vector of an R lazy-load database, by name."""
    index = RReader(gzip.decompress(rdx)).item()["variables"]
    result = {}
    for name, (offset, size) in index.items():
        chunk = rdb[offset : offset + size]
        plain = zlib.decompress(chunk[4:])
        if len(plain) != struct.unpack(">I", chunk[:4])[0]:
            raise ValueError(f"{name}: wrong length")
        result[name] = RReader(plain).item()
    return result


def novels(deb: bytes) -> dict[str, bytes]:
    """The novels' texts, lines joined by a newline, by data set name."""
    rdx, rdb = deb_files(deb, [DATA_PREFIX + ".rdx", DATA_PREFIX + ".rdb"])
    return {name: b"\n".join(lines) + b"\n" for name, lines in lazy_load(rdx, rdb).items()}


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
