"""Every relative link of a page leads to a file, and to a heading where it names one; every header and
source that CONTRIBUTING.md names exists, its call graph names what is in those files, and its glossary is short.

links_test.py SOURCE_FOLDER PAGE...
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1]).resolve()


def prose(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ +(.*?) *$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problems(page):
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if ROOT not in file.parents and file != ROOT or not file.exists():
            yield f"{target}: no such file"
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file)):
            yield f"{target}: no such heading"


def named_file(name):
    for folder in (ROOT / "include/adaptive_k", ROOT):
        if (folder / name).is_file():
            return folder / name
    return None


def call_graph_problems(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"[\w./]+/[\w.]+\.(?:hpp|cuh|cpp|cu|h)\b", text):
        if named_file(name.lstrip("./")) is None:
            yield f"{name}: no such file"
    graph = text.partition("## From a call to its decision")[2].partition("\n## ")[0]
    lines = re.findall(r"^ {4,}(\S.*?) {2,}([\w/]+\.\w+)", graph, flags=re.M)
    if len(lines) < 12:
        yield f"its call graph has {len(lines)} lines with a file, expected 12 or more"
    for symbols, name in lines:
        file = named_file(name)
        code = file.read_text(encoding="utf-8") if file else ""
        for symbol in re.findall(r"\w+", symbols):
            if not re.search(rf"\b{symbol}\b", code):
                yield f"{symbol}: not in {name}"
    glossary = text.partition("## Glossary")[2].partition("\n## ")[0]
    entries = len(re.findall(r"^\|", glossary, flags=re.M)) - 2
    if not 1 <= entries <= 25:
        yield f"its glossary has {entries} entries, expected 1 to 25"


def main():
    found = 0
    for name in sys.argv[2:]:
        page = ROOT / name
        more = call_graph_problems(page) if page.name == "CONTRIBUTING.md" else ()
        for problem in [*problems(page), *more]:
            print(f"{name}: {problem}")
            found += 1
    print(f"{len(sys.argv) - 2} pages, {found} problems")
    sys.exit(1 if found or len(sys.argv) < 3 else 0)


main()
