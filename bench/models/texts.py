#!/usr/bin/env python3
"""The texts of the models with a tokenizer: three domains from Debian packages.

    python texts.py [--debs FOLDER] [--write]

``novels``: the novels of Jane Austen and the King James Bible.  ``technical``: the documentation of Python
(reStructuredText) and of SQLite (the words of its pages).  ``code``: Python's standard library and the C
headers of SDL.  Each domain gives documents to train on and three texts held out of training: ``calibration``
and ``test``, which are committed, and ``validation``, which steers a training.  Packages that --debs lacks
are fetched with apt-get.  texts.json holds every hash; ``--write`` writes it and the held-out texts, otherwise
they are checked.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from packages import bible, deb_files, find_deb, novels, sha256

HERE = Path(__file__).resolve().parent
DEBS = HERE / "data" / "debs"
PARTS = ("calibration", "test", "validation")
BYTES = {"calibration": 131_072, "test": 131_072, "validation": 65_536}
TRAINING_BYTES = 7_700_000  # of a domain, at most
FILE_BYTES = 131_072  # longer files are cut: generated tables
HELDOUT_FILE_BYTES = (2_000, 24_000)  # a held-out text has many documents

PACKAGES = {
    "r-cran-janeaustenr": "1.0.0-1_all",
    "bible-kjv-text": "4.38_all",
    "python3.11-doc": "3.11.2-6+deb12u9_all",
    "sqlite3-doc": "3.40.1-2+deb12u2_all",
    "libpython3.11-stdlib": "3.11.2-6+deb12u9_amd64",
    "libpython3.11-minimal": "3.11.2-6+deb12u9_amd64",
    "libsdl2-dev": "2.26.5+dfsg-1_amd64",
}


@dataclass
class Domain:
    """The texts of one domain: documents to train on, held-out texts by part, and where those are from."""

    training: list[bytes]
    heldout: dict[str, bytes]
    sources: dict[str, list[str]]


class Words(HTMLParser):
    """The text of an HTML page; blocks end a line, drawings and scripts are left out."""

    BLOCKS = {"p", "div", "br", "li", "tr", "pre", "h1", "h2", "h3", "h4", "dt", "dd", "blockquote", "table", "title"}
    SKIPPED = {"script", "style", "svg", "button"}

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipped, self.verbatim = 0, 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        """Count what is skipped and what keeps its spaces; a block starts a line."""
        self.skipped += tag in self.SKIPPED
        self.verbatim += tag == "pre"
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """The reverse of a start."""
        self.skipped -= tag in self.SKIPPED and self.skipped > 0
        self.verbatim -= tag == "pre" and self.verbatim > 0
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep the words; outside verbatim blocks a run of spaces is one."""
        if not self.skipped:
            self.parts.append(data if self.verbatim else re.sub(r"\s+", " ", data))

    @classmethod
    def of(cls, page: bytes) -> bytes:
        """The words of a page, without empty lines in a row."""
        parser = cls()
        parser.feed(page.decode(errors="replace"))
        text = re.sub(r"[ \t]+\n", "\n", "".join(parser.parts))
        return re.sub(r"\n\s*\n+", "\n\n", text).strip().encode() + b"\n"


def package(folder: Path, name: str) -> bytes:
    """Bytes of a package of PACKAGES."""
    return find_deb(folder / f"{name}_{PACKAGES[name]}.deb")


def files(folder: Path, name: str, pattern: str) -> dict[str, bytes]:
    """The files of a package whose path matches ``pattern``, by "package: path"."""
    found = deb_files(package(folder, name), lambda path: re.fullmatch(pattern, path) is not None)
    return {f"{name}: {path.removeprefix('./')}": data for path, data in found.items()}


def novels_domain(folder: Path) -> Domain:
    """Five novels and the Bible to train on; the sixth novel, from its first chapter, is held out."""
    books = novels(package(folder, "r-cran-janeaustenr"))
    heldout = books.pop("persuasion")
    heldout = heldout[heldout.lower().index(b"chapter 1") :]
    texts, start = {}, 0
    for part in PARTS:
        texts[part], start = heldout[start : start + BYTES[part]], start + BYTES[part]
    training = []  # of chapters: whole books are too long for documents
    for name in sorted(books):
        training += re.split(rb"(?i)(?=^chapter )", books[name], flags=re.MULTILINE)
    training += bible(package(folder, "bible-kjv-text"))
    return Domain([d for d in training if d], texts, {part: ["r-cran-janeaustenr: persuasion"] for part in PARTS})


def cut(text: bytes, size: int) -> bytes:
    """The first whole characters of UTF-8 text, at most ``size`` bytes."""
    return text[:size].decode(errors="ignore").encode()


def split_files(groups: list[dict[str, bytes]]) -> Domain:
    """Hold out whole files, as many bytes of each group, in the order of the hashes of their names."""
    heldout = {part: b"" for part in PARTS}
    sources: dict[str, list[str]] = {part: [] for part in PARTS}
    taken: set[str] = set()
    order = [sorted(group, key=lambda name: sha256(name.encode())) for group in groups]
    low, high = HELDOUT_FILE_BYTES
    for part in PARTS:
        for number, (group, names) in enumerate(zip(groups, order), 1):
            share = BYTES[part] * number // len(groups)
            for name in names:
                if len(heldout[part]) > share - 4:
                    break
                if name not in taken and low <= len(group[name]) <= high:
                    taken.add(name)
                    sources[part].append(name)
                    heldout[part] = cut(heldout[part] + group[name], share)
    training, size = [], 0
    for group, names in zip(groups, order):
        limit = TRAINING_BYTES if group is groups[-1] else TRAINING_BYTES * 2 // 3
        for name in names:
            document = cut(group[name], FILE_BYTES)
            if name not in taken and len(document) > 100 and size + len(document) <= limit:
                training.append(document)
                size += len(document)
    return Domain(training, heldout, sources)


def technical_domain(folder: Path) -> Domain:
    """Python's documentation as it was written, and the words of SQLite's."""
    sources = r".*/_sources/(library|tutorial|howto|reference|c-api|using|faq|extending|distributing|installing)/.*"
    manual = files(folder, "python3.11-doc", sources)
    lists = r"(doc_|keyword|require|syntax|toc|sitemap|capi3ref_|releaselog|changes|cves|session/|c3ref/)"
    pages = files(folder, "sqlite3-doc", rf"\./usr/share/doc/sqlite3/(?!{lists}).*\.html")
    return split_files([manual, {name: Words.of(page) for name, page in pages.items()}])


def code_domain(folder: Path) -> Domain:
    """Python's standard library without tables of characters, and SDL's C headers without OpenGL's names."""
    modules = files(folder, "libpython3.11-stdlib", r".*\.py")
    modules |= files(folder, "libpython3.11-minimal", r"(?!.*/encodings/).*\.py")
    headers = files(folder, "libsdl2-dev", r"(?!.*(gl|egl|vulkan|scancode|keycode)[^/]*$).*\.h")
    return split_files([modules, headers])


def load(folder: Path = DEBS) -> dict[str, Domain]:
    """The domains, from the packages in ``folder``."""
    return {
        "novels": novels_domain(folder),
        "technical": technical_domain(folder),
        "code": code_domain(folder),
    }


def heldout_file(domain: str, part: str) -> Path:
    """Where a committed held-out text lies; the novel's are the byte-level reference model's as well."""
    if domain == "novels":
        return HERE / "reference-32x8" / f"heldout_{part}.txt"
    return HERE / "texts" / f"{domain}_{part}.txt"


def description(domains: dict[str, Domain], folder: Path) -> dict:
    """What texts.json holds: packages, and every text with its size, hash and sources."""
    packages = {name: {"version": version.rsplit("_", 1)[0], "sha256": sha256(package(folder, name))}
                for name, version in PACKAGES.items()}
    result: dict = {"packages": packages, "domains": {}}
    for name, domain in domains.items():
        joined = b"\0".join(domain.training)
        entry: dict = {"training": {"documents": len(domain.training), "bytes": sum(map(len, domain.training)),
                                    "sha256": sha256(joined)}}
        for part in PARTS:
            text = domain.heldout[part]
            entry[part] = {"bytes": len(text), "sha256": sha256(text), "sources": domain.sources[part]}
            if part != "validation":
                entry[part]["file"] = heldout_file(name, part).relative_to(HERE).as_posix()
        result["domains"][name] = entry
    return result


def verified(folder: Path = DEBS) -> dict[str, Domain]:
    """:func:`load`; an error where anything differs from texts.json."""
    domains = load(folder)
    expected, found = json.loads((HERE / "texts.json").read_text()), description(domains, folder)
    for kind in ("packages", "domains"):
        for name, entry in expected[kind].items():
            if found[kind].get(name) != entry:
                raise SystemExit(f"{name}: differs from texts.json")
    return domains


def main() -> None:
    """Check the texts, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--debs", type=Path, default=DEBS, help="folder of the packages")
    parser.add_argument("--write", action="store_true", help="write texts.json and the held-out texts")
    args = parser.parse_args()
    if args.write:
        domains = load(args.debs)
        (HERE / "texts").mkdir(exist_ok=True)
        for name, domain in domains.items():
            for part in ("calibration", "test"):
                heldout_file(name, part).write_bytes(domain.heldout[part])
        text = json.dumps(description(domains, args.debs), indent=2) + "\n"
        (HERE / "texts.json").write_text(text)
    for name, domain in verified(args.debs).items():
        sizes = ", ".join(f"{part} {len(text)}" for part, text in domain.heldout.items())
        print(f"{name}: {len(domain.training)} documents, {sum(map(len, domain.training))} bytes; {sizes}")


if __name__ == "__main__":
    main()
