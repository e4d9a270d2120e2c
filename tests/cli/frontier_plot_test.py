"""bench/plots/frontier.py as a user runs it: what it draws, and what it refuses with which words.

frontier_plot_test.py SCRIPT; exit status 77 where matplotlib is missing.
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile

SCRIPT = sys.argv[1]
POINTS = [
    {"rule": rule, "mean_k": k, "mean_kl": kl / k, "mean_kl_se": 0.001, "split": split,
     "model": "reference-32x8", "top_k": 8}
    for split in ("test", "other domain")
    for rule, kl in (("fixed", 0.1), ("top_p", 0.08), ("distortion", 0.05), ("oracle", 0.03))
    for k in (2.0, 4.0, 6.0)
]


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def refused(words, *arguments):
    result = run(*arguments)
    assert result.returncode not in (0, 77), arguments
    assert "Traceback" not in result.stderr, result.stderr
    assert words in result.stderr, f"expected {words!r}, said {result.stderr!r}"


def main():
    folder = pathlib.Path(tempfile.mkdtemp())
    points = folder / "points.json"
    plot = folder / "plot.svg"
    points.write_text(json.dumps(POINTS))
    assert run("--help").returncode == 0
    refused("cannot be read", folder / "none.json", plot)
    refused("expected a name that ends in", points, folder / "plot.gif")
    refused("is the file that is read", folder / "x.svg", folder / "x.svg")

    def with_points(text):
        bad = folder / "bad.json"
        bad.write_text(text)
        return bad

    refused("is no JSON", with_points("{"), plot)
    refused("expected the array of points", with_points("[]"), plot)
    refused("expected the array of points", with_points('{"a": 1}'), plot)
    refused("[0]: expected an object", with_points("[1]"), plot)
    for key, words in (("mean_k", "[0].mean_k: null, expected a number"), ("rule", "[0].rule: null"),
                       ("top_k", "--top-k gives it")):
        refused(words, with_points(json.dumps([{k: v for k, v in POINTS[0].items() if k != key}])), plot)
    refused("expected one of fixed", with_points(json.dumps([POINTS[0] | {"rule": "magic"}])), plot)
    refused("several models", with_points(json.dumps([POINTS[0], POINTS[1] | {"model": "x"}])), plot)
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: what it draws is not checked")
        sys.exit(77)

    result = run(points, plot)
    assert result.returncode == 0, result.stderr
    first = plot.read_text()
    texts = re.findall(r"<!-- (.*?) -->", first)
    for text in ("reference-32x8", "mean K (of 8)", "expert calls saved, %", "calibrated distortion"):
        assert text in texts, (text, texts)
    assert run(points, plot).returncode == 0 and plot.read_text() == first, "the same bytes again"
    # The legend lies right of all axes: its first entry begins behind their right edges.
    for suffix in (".png", ".pdf"):
        assert run(points, plot.with_suffix(suffix)).returncode == 0
    refused("cannot be written", points, "/no/such/folder/plot.svg")
    (folder / "full.svg").symlink_to("/dev/full")
    refused("cannot be written", points, folder / "full.svg")
    assert not list(folder.glob(".frontier-*"))


main()
