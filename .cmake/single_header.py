#!/usr/bin/env python3
"""Writes core/, host/ and control/ as one header, whose includes are the standard library's alone.

    .cmake/single_header.py OUT     for example third_party/adaptive_k/adaptive_k.hpp

Every header comes once, before the first that needs it. What one of the standard library's is included
outside every condition stands at the top, once; one inside a condition stays where it is, as the condition
may be a macro of an earlier header. A header of our own inside a condition is refused: which of its
includes is the first would depend on the compiler. OUT is left alone where nothing changed, so that
nothing is compiled again.
"""
import pathlib
import re
import sys

INCLUDE = pathlib.Path(__file__).resolve().parent.parent / "include"
LIBRARY = INCLUDE / "adaptive_k"
TOP = """\
// adaptive_k {version}: core, host and control in one header, made by .cmake/single_header.py. Do not edit.
//
// The same as the headers that it is made of, under their names: it takes the place of
// adaptive_k/adaptive_k.hpp and of what is in adaptive_k/core, host and control. Include it or them.
// ADAPTIVE_K_VECTORISE=1 compiles the vectors of every instruction set, chosen at run time; without it the
// compiler's flags decide.
//
// SPDX-License-Identifier: Apache-2.0
// Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
// compliance with the License. You may obtain a copy of the License at
//     http://www.apache.org/licenses/LICENSE-2.0
// Unless required by applicable law or agreed to in writing, software distributed under the License is
// distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and limitations under the License.
#pragma once
"""


def add(header, done, system, lines):
    """Appends the lines of `header` and, before them, of what it includes, to `lines`."""
    if header in done:
        return
    done.add(header)
    own, depth = [], 0
    for number, line in enumerate((INCLUDE / header).read_text(encoding="utf-8").splitlines(), 1):
        directive = re.match(r"\s*#\s*(\w+)", line)
        word = directive.group(1) if directive else ""
        if word in ("if", "ifdef", "ifndef"):
            depth += 1
        elif word == "endif":
            depth -= 1
        elif word == "pragma" and line.split() == ["#pragma", "once"]:
            continue
        elif word == "include":
            name = re.fullmatch(r'\s*#\s*include\s*(?:"([^"]+)"|(<[^>]+>))\s*(?://.*)?', line)
            if name is None:
                sys.exit(f"{header}:{number}: {line.strip()}: an include that is no plain name")
            if name.group(1) and depth:
                sys.exit(f"{header}:{number}: {line.strip()}: stands inside a condition")
            if name.group(1):
                add(name.group(1), done, system, lines)
                continue
            if not depth:
                system.add(name.group(2))
                continue
        own.append(line)
    if depth:
        sys.exit(f"{header}: {depth} conditions are not closed")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(own)).strip("\n")
    lines.append(f"// {header}\n//\n{text}\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    version = ".".join(re.findall(r"^#define ADAPTIVE_K_VERSION_\w+ (\d+)$",
                                  (LIBRARY / "config.hpp").read_text(encoding="utf-8"), re.M))
    done, system, lines = set(), set(), []
    add("adaptive_k/adaptive_k.hpp", done, system, lines)
    for header in sorted(LIBRARY.glob("host/*.hpp")) + sorted(LIBRARY.glob("control/*.hpp")):
        add(header.relative_to(INCLUDE).as_posix(), done, system, lines)
    system_lines = "".join(f"#include {name}\n" for name in sorted(system))
    text = "\n".join([TOP.format(version=version), system_lines, *lines])
    if out.is_file() and out.read_text(encoding="utf-8") == text:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
