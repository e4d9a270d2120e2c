"""The HTML report, of measurements that are committed with the project; looked at by a browser if there is
one."""
import json
import pathlib
import shutil
import struct
import subprocess
import xml.dom.minidom
import zlib

import pytest

from adaptive_k.report import write_html

PLOTS = pathlib.Path(__file__).parents[2] / "bench" / "plots"
BENCHMARK, FRONTIER = PLOTS / "reference-32x8-preset.json", PLOTS / "reference-32x8.json"
pytestmark = pytest.mark.skipif(not BENCHMARK.exists(), reason="outside the repository")


def svgs_of(page: str) -> list:
    """Each drawing, which must be well-formed."""
    parts = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in page.split("<svg")[1:]]
    return [xml.dom.minidom.parseString(part) for part in parts]


def test_benchmark(tmp_path):
    write_html(str(BENCHMARK), str(tmp_path / "report.html"))
    page, report = (tmp_path / "report.html").read_text(), json.loads(BENCHMARK.read_text())
    for name in ("full K", "control: fixed K at equal mean K", "control: inverted signal"):
        assert name in page
    for figure in (report["policy"]["perplexity"], report["baseline"]["perplexity"]):
        assert f"{figure:.4f}" in page
    assert f"{100 * report['policy']['expert_savings']:.1f}%" in page
    chart, histogram = svgs_of(page)
    layers, top_k = len(report["layers"]), len(report["controls"]["fixed_k"])
    assert len(histogram.getElementsByTagName("rect")) == layers * top_k + top_k
    drawn = [f for f in report["controls"]["fixed_k"] if f["mean_kl"] > 0]
    # The dots, one for each control and the policy, and one for each of four names.
    assert len(chart.getElementsByTagName("circle")) == len(drawn) + 3 + 4
    assert "<script" not in page and "src=" not in page and "@import" not in page


def test_frontier(tmp_path):
    write_html(str(FRONTIER), str(tmp_path / "frontier.html"))
    page, points = (tmp_path / "frontier.html").read_text(), json.loads(FRONTIER.read_text())
    assert len(svgs_of(page)) == len({p["split"] for p in points})
    assert page.count("<tr") == len(points) + len({p["split"] for p in points})


def test_another_file_is_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match="expected the JSON of `adaptive-k benchmark` or `frontier`"):
        write_html(str(other), str(tmp_path / "page.html"))


def colours_of(png: bytes) -> int:
    """Different pixels of an 8-bit screenshot."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    data, at = b"", 8
    while at < len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        if name == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += 12 + size
    raw, step = zlib.decompress(data), 4 if kind == 6 else 3
    return len({raw[i : i + step] for i in range(1, len(raw), 4 * step)})


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it(tmp_path):
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    write_html(str(BENCHMARK), str(page))
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()],
        check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    assert colours_of(shot.read_bytes()) > 50  # text, curves and bars; a blank page has one or two
