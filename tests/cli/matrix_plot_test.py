"""bench/plots/matrix.py as a user runs it: what it draws and tells, and what it refuses with which words.

matrix_plot_test.py SCRIPT
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import xml.dom.minidom

SCRIPT = sys.argv[1]
DOMAINS = ["novels", "code"]
KL = {"fixed": 0.1, "top_p": 0.08, "distortion": 0.05, "distortion, q=0": 0.05, "oracle": 0.03}


def model(name, top_k=8):
    """KL is `KL` / K, and twice that where another domain was calibrated on."""
    cells = [(calibrated, tested) for calibrated in DOMAINS + ["all"] for tested in DOMAINS]

    def away(calibrated, tested, rule):
        return 2 if rule == "distortion" and calibrated not in (tested, "all") else 1

    points = [{"rule": rule, "calibrated_on": calibrated, "tested_on": tested, "target_mean_k": k, "mean_k": k,
               "mean_kl": kl / k * away(calibrated, tested, rule), "mean_kl_se": 0.003, "minus_fixed": [-0.02, 0.01],
               "minus_top_p": [-0.006, 0.002], "minus_static_per_layer": [0.1, 0.01]}
              for calibrated, tested in cells for rule, kl in KL.items() for k in (3.0, 4.0, 5.0)]
    points.append(points[0] | {"target_mean_k": 7.0, "mean_k": 7.0})  # in one cell only
    saved = [{"rule": rule, "calibrated_on": calibrated, "tested_on": tested,
              "expert_savings": None if rule == "oracle" else 0.25 + (0.1 - kl)}
             for calibrated, tested in cells for rule, kl in KL.items()]
    return {"model": name, "top_k": top_k, "domains": DOMAINS, "mean_ks": [3.0, 4.0, 5.0], "points": points,
            "at_equal_kl": saved}


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def refused(words, *arguments):
    result = run(*arguments)
    assert result.returncode != 0, arguments
    assert "Traceback" not in result.stderr, result.stderr
    assert words in result.stderr, f"expected {words!r}, said {result.stderr!r}"


def main():
    folder = pathlib.Path(tempfile.mkdtemp())

    def report(name, *models, **more):
        file = folder / name
        file.write_text(json.dumps({"format": "adaptive_k.matrix", "models": list(models)} | more))
        return file

    one, two = report("one.json", model("a")), report("two.json", model("b"), model("c", 4))
    plot = folder / "plot.svg"
    assert run("--help").returncode == 0
    refused("cannot be read", folder / "none.json", plot)
    refused("expected what `adaptive-k matrix --json` writes", report("x.json", format="other"), plot)
    refused("no model in it", report("x.json"), plot)
    refused("models[0].points: expected list", report("x.json", model("a") | {"points": 1}), plot)
    refused("'a' twice", one, one, plot)
    refused("expected a name that ends in .svg", one, folder / "plot.png")
    refused("--model: missing, expected one of b, c", two, plot)
    refused("--model: d, expected one of b, c", two, plot, "--model", "d")

    assert run(one, plot).returncode == 0
    first = plot.read_text()
    assert run(one, plot).returncode == 0 and plot.read_text() == first, "the same bytes again"
    svg = xml.dom.minidom.parseString(first)
    texts = [node.firstChild.data for node in svg.getElementsByTagName("text")]
    for text in ("a: quality against mean K", "in-domain text", "out-of-domain text", "every domain's text",
                 "calibrated distortion", "top-p", "fixed K"):
        assert text in texts, (text, texts)
    groups = [g for g in svg.getElementsByTagName("g") if g.getAttribute("class") == "rule distortion"]
    inside, outside, every = ([float(c.getAttribute("cy")) for c in g.getElementsByTagName("circle")]
                              for g in groups[:3])
    assert len(inside) == 3 and inside == every
    assert all(out < own - 5 for out, own in zip(outside, inside)), "twice the KL is higher up"
    assert run(two, one, plot, "--model", "c").returncode == 0
    assert "c: quality" in plot.read_text()

    result = run(one, two, "--table")
    assert result.returncode == 0, result.stderr
    rows = {tuple(row.split(" | ")[:2]): row.split(" | ")[2:] for row in result.stdout.splitlines()}
    assert rows["| a", "calibrated distortion"] == ["4 of 8", "0.50", "1.00", "0.50", "30%", "30%", "30% |"], rows
    assert rows["| c", "distortion, q=0"][:2] == ["4 of 4", "0.50"], rows
    assert rows["| b", "fixed K"] == ["4 of 8", "1.00", "1.00", "1.00", "25%", "25%", "25% |"], rows
    refused("--cells: 'none', expected one of fixed, top_p", one, "--cells", "none")
    result = run(one, "--cells", "distortion")
    assert result.returncode == 0, result.stderr
    cells = [row.strip("| ").split(" | ") for row in result.stdout.splitlines()[2:]]
    assert len(cells) == 3 * len(DOMAINS) * 3, cells
    assert cells[0] == ["a", "novels", "novels", "3", "16.67", "0.50", "71%", "-3.0", "-3.0 (top_p)"], cells[0]
    assert cells[3] == ["a", "novels", "code", "3", "33.33", "1.00", "0%", "-3.0", "-3.0 (top_p)"], cells[3]

    assert rows["| a", "oracle (true distortion)"][4:] == ["-", "-", "- |"], "no two points enclose it"


main()
