"""Debian packages, and the texts in two unusual ones, with Python's standard library and gzip alone.

r-cran-janeaustenr keeps novels as character vectors, one string a line, in an R lazy-load database;
only the parts of R's serialisation format that occur there are read.  bible-kjv-text keeps one text
in blocks compressed as compress(1) does.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

AUSTEN_DATA = "./usr/lib/R/site-library/janeaustenr/data/Rdata"
BIBLE_DATA = "./usr/lib/bible.data"


def sha256(data: bytes) -> str:
    """Hexadecimal sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def find_deb(path: Path) -> bytes:
    """Bytes of the package at ``path`` (NAME_VERSION_ARCHITECTURE.deb); fetched with apt-get when absent."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        package = path.name.split("_")[0]
        subprocess.run(["apt-get", "download", package], cwd=path.parent, check=True)
    if not path.exists():
        raise SystemExit(f"{path} is absent and apt-get fetched another version of its package")
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


def deb_files(deb: bytes, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Contents of the regular files of a .deb package's data archive whose name is wanted, by name."""
    name, data = ar_member(deb, "data.tar")
    if name.endswith(".zst"):
        raise ValueError("zstd-compressed packages are not supported")
    if name.endswith(".xz"):
        data = lzma.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and wanted(m.name)]
        return {m.name: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]


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
    """Jane Austen's novels from r-cran-janeaustenr, lines joined by a newline, by data set name."""
    files = deb_files(deb, lambda name: name.startswith(AUSTEN_DATA))
    database = lazy_load(files[AUSTEN_DATA + ".rdx"], files[AUSTEN_DATA + ".rdb"])
    return {name: b"\n".join(lines) + b"\n" for name, lines in database.items()}


def bible(deb: bytes) -> list[bytes]:
    """The chapters of the King James Version from bible-kjv-text, one verse a line, without labels."""
    data = deb_files(deb, lambda name: name == BIBLE_DATA)[BIBLE_DATA]
    (count,) = struct.unpack_from(">I", data, 0x58)
    starts = [*struct.unpack_from(f">{count}I", data, 0x5C), len(data)]
    text = b""
    for start, end in zip(starts, starts[1:]):  # the blocks lack the header that gzip needs
        block = b"\x1f\x9d\x90" + data[start:end]
        text += subprocess.run(["gzip", "-dc"], input=block, capture_output=True, check=True).stdout
    chapters: dict[bytes, list[bytes]] = {}
    for chapter, verse in re.findall(rb"^(\w+):\d+ (.*)$", text, re.MULTILINE):
        chapters.setdefault(chapter, []).append(verse + b"\n")
    return [b"".join(verses) for verses in chapters.values()]
