"""README.md's picture is what the documented command draws from the committed JSON, and its table's
figures are those of the JSON, control included.

readme_picture_test.py SOURCE_FOLDER
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.dom.minidom

ROOT = pathlib.Path(sys.argv[1])
PLOTS = ROOT / "bench/plots"
README = (ROOT / "README.md").read_text()


def check(holds, *words):
    if not holds:
        sys.exit(" ".join(map(str, words)))


def check_svg():
    found = re.search(r"!\[[^\]]+\]\((\S+\.svg)\)", README)
    check(found, "README.md: no picture")
    committed = ROOT / found.group(1)
    lines = (ROOT / "bench/docs/calibrate.md").read_text().replace("\\\n", " ").splitlines()
    commands = [line.split() for line in lines
                if line.strip().startswith("bench/plots/frontier.py") and line.split()[2] == found.group(1)]
    check(len(commands) == 1, "bench/docs/calibrate.md:", len(commands), "commands that draw", found.group(1))
    script, points, _, *more = commands[0]
    again = pathlib.Path(tempfile.mkdtemp()) / "again.svg"
    subprocess.run([sys.executable, script, points, again, *more], cwd=ROOT, check=True)
    check(again.read_bytes() == committed.read_bytes(), f"{committed}: not what `{' '.join(commands[0])}` draws")
    check(committed.stat().st_size < 30000, committed, "is larger than 30 kB")
    svg = xml.dom.minidom.parse(str(committed))
    words = [node.firstChild.data for node in svg.getElementsByTagName("text")]
    for needed in ("reference-32x8", "mean K", "nats", "expert calls saved", "fixed K", "top-p", "published",
                   "calibrated", "oracle"):
        check(any(needed in word for word in words), committed, "does not say", repr(needed))
    check("prefers-color-scheme:dark" in committed.read_text(), committed, "has no dark mode")


def check_points():
    """Every point of a rule has fixed K beside it, at the same target, text and mass_exponent."""
    points = json.loads((PLOTS / "reference-32x8.json").read_text())
    fixed = {(p["split"], p["target_mean_k"], p["mass_exponent"]): p for p in points if p["rule"] == "fixed"}
    check(len(fixed) == 5, "expected fixed K at 5 mean K's, not", len(fixed))
    for p in points:
        control = fixed.get((p["split"], p["target_mean_k"], p["mass_exponent"]))
        check(control and abs(control["mean_k"] - p["mean_k"]) < 0.1, "no control of", p)
    words = " ".join((ROOT / "bench/docs/calibrate.md").read_text().split())
    for rule in ("distortion", "top_p", "entropy", "oracle"):
        rows = sorted((p for p in points if p["rule"] == rule), key=lambda p: p["target_mean_k"])
        of_fixed = [f"{p['mean_kl'] / fixed[(p['split'], p['target_mean_k'], p['mass_exponent'])]['mean_kl']:.2f}"
                    for p in rows]
        said = ", ".join(of_fixed[:-1]) + " and " + of_fixed[-1]
        check(said in words, "bench/docs/calibrate.md: of fixed K's KL,", rule, "has", said)


def check_table():
    report = json.loads((PLOTS / "reference-32x8-preset.json").read_text())
    policy, fixed = report["policy"], report["controls"]["fixed_at_equal_mean_k"]
    check(report["dataset"]["unused_tokens"] == 0, "the report is not of the whole text")
    check(f"{report['dataset']['predictions']:,} predictions" in README, "README.md: another number of predictions")
    top_k = report["model"]["top_k"]

    def row(name, figures):
        kl = f"{figures['mean_kl']:.5f} +- {figures['mean_kl_se']:.5f}"
        saved = 100 * (1 - figures["mean_k"] / top_k)
        return f"| {name} | {figures['mean_k']:.2f} | {saved:.1f}% | {figures['perplexity']:.4f} | {kl} |"

    for line in (f"| full K | {top_k:.2f} | 0% | {report['baseline']['perplexity']:.4f} | 0 |",
                 row("**calibrated distortion**", policy),
                 row("control: fixed K at equal mean K", fixed)):
        check(line in README.splitlines(), "README.md: expected the line", line)
    check(policy["mean_kl"] < 0.5 * fixed["mean_kl"], "README.md says: less than half of what fixed K loses")


check_svg()
check_points()
check_table()
