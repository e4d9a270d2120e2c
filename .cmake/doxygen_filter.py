#!/usr/bin/env python3
"""How doxygen reads a file: .cmake/doxygen_filter.py FILE, to standard output.

A header's first comment is the documentation of the file. A page's links to headers lead to their
reference, and to sections of a page to the page; those to what the reference does not have (folders,
sources, data) become plain text.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def link(match, folder):
    text, target = match.group(1).replace("\n", " "), match.group(2)  # doxygen reads one line
    if re.match(r"https?:", target):
        return f"[{text}]({target})"
    path = target.partition("#")[0]
    file = (folder / path).resolve()
    if not file.exists():
        return f"[{text}](@ref {path})"  # which doxygen refuses by name
    if file.suffix in (".hpp", ".cuh", ".h") and ROOT / "include" in file.parents:
        return f"[{text}](@ref {file.relative_to(ROOT / 'include').as_posix()})"
    # From the root, where doxygen runs: it would take ../ for what lies beside the project.
    return f"[{text}]({file.relative_to(ROOT).as_posix()})" if file.suffix == ".md" else text


def main():
    path = pathlib.Path(sys.argv[1])
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"\[([^][]+)\]\(([^()\s]+)\)", lambda match: link(match, path.parent), text)
    else:
        comment, pragma, rest = text.partition("#pragma once")
        comment = re.sub(r"^//   ", "//        ", comment, flags=re.M)  # code, as Markdown has it
        comment = re.sub(r"^//", "///", comment, flags=re.M)
        text = comment.replace("/// ", "/// @thisfile ", 1) + pragma + rest
        # The version apart, macros are the library's own.
        text = re.sub(r"^( *)#define (?!ADAPTIVE_K_VERSION_)", r"\1#pragma ", text, flags=re.M)
    sys.stdout.write(text)


main()
