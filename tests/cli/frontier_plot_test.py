"""bench/plots/frontier.py as a user runs it: what it draws, and what it refuses with which words.

frontier_plot_test.py SCRIPT
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile
import xml.dom.minidom

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
    assert result.returncode != 0, arguments
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
    refused("is a file that is read", folder / "x.svg", folder / "x.svg")

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
    refused("'magic', expected one of fixed", points, plot, "--rules", "fixed,magic")
    report = folder / "report.json"
    REPORT = {"model": {"name": "reference-32x8"}, "policy": {"mean_k": 3.0, "mean_kl": 0.02},
              "controls": {"fixed_at_equal_mean_k": {"mean_kl": 0.04}}}
    for words, bad in (("expected the report", {}), ("expected the report", []),
                       ("expected numbers above 0", REPORT | {"policy": {"mean_k": 3.0, "mean_kl": None}}),
                       ("expected 'reference-32x8'", REPORT | {"model": {"name": "x"}})):
        report.write_text(json.dumps(bad))
        refused(words, points, plot, "--benchmark", report)
    refused("is a file that is read", points, folder / "x.svg", "--benchmark", folder / "x.svg")

    result = run(points, plot)
    assert result.returncode == 0, result.stderr
    first = plot.read_text()
    assert run(points, plot).returncode == 0 and plot.read_text() == first, "the same bytes again"
    svg = xml.dom.minidom.parseString(first)
    texts = {node.firstChild.data: node for node in svg.getElementsByTagName("text")}
    for text in ("reference-32x8: quality against mean K", "mean K (experts per token and layer, of 8)",
                 "expert calls saved", "mean KL to full K, nats (less is better)", "calibrated distortion",
                 "test text", "other domain text", "50%"):
        assert text in texts, (text, list(texts))
    assert "score ratio" not in texts, "only rules that have points"

    # Points lie where the axes' ticks say, and the legend right of all of them. Texts of both panels:
    # the first is kept.
    places = {node.firstChild.data: (float(node.getAttribute("x")), float(node.getAttribute("y")) - 4.5)
              for node in reversed(svg.getElementsByTagName("text"))}
    group = [g for g in svg.getElementsByTagName("g") if g.getAttribute("class") == "rule distortion"][0]
    at_2, at_4, at_6 = ((float(c.getAttribute("cx")), float(c.getAttribute("cy")))  # KL 0.05 / mean K
                        for c in group.getElementsByTagName("circle"))
    for point, mean_k in ((at_2, "2"), (at_4, "4"), (at_6, "6")):
        assert point[0] == places[mean_k][0], (point, places)
    octave = places["0.01"][1] - places["0.02"][1]
    assert abs(at_4[1] - at_2[1] - octave) < 0.3, "twice the KL"
    assert abs(places["0.02"][1] - at_2[1] - octave * math.log2(1.25)) < 0.3, "0.025"
    legend = float(texts["fixed K"].getAttribute("x")) - 42
    dots = [float(c.getAttribute("cx")) for c in svg.getElementsByTagName("circle")]
    assert all(x < legend - 5 or x == legend + 16 for x in dots), (legend, dots)

    report.write_text(json.dumps(REPORT))
    result = run(points, plot, "--rules", "oracle,fixed", "--benchmark", report)
    assert result.returncode == 0, result.stderr
    marked = plot.read_text()
    assert "the preset" in marked and "calibrated distortion" not in marked
    refused("cannot be written", points, "/no/such/folder/plot.svg")
    (folder / "full.svg").symlink_to("/dev/full")
    refused("cannot be written", points, folder / "full.svg")
    assert not list(folder.glob(".frontier-*"))


main()
