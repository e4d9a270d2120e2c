#!/usr/bin/env python3
"""Draws quality against mean K for every rule, from `adaptive-k frontier --json points.json`.

    bench/plots/frontier.py points.json frontier.svg
    bench/plots/frontier.py points.json frontier.svg --rules fixed,distortion --benchmark report.json

--benchmark marks the policy of an `adaptive-k benchmark --json` on the test text, and fixed K at its
mean K. The SVG follows the reader's light or dark mode. The same input gives the same bytes.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile
from xml.sax.saxutils import escape

# Rule: name, colour in light and in dark mode, marker, line width.
RULES = {
    "fixed": ("fixed K", "#1f2328", "#e6edf3", "square", 2.2),
    "static_per_layer": ("static K per layer", "#6e7781", "#9198a1", "plus", 1.4),
    "entropy": ("softmax entropy (published)", "#bf3989", "#f778ba", "diamond", 1.4),
    "score_ratio": ("score ratio", "#8250df", "#bc8cff", "cross", 1.4),
    "skipping": ("expert skipping (by layer)", "#a475f9", "#d2a8ff", "plus", 1.4),
    "top_p": ("top-p", "#bc4c00", "#f0883e", "triangle", 1.4),
    "psi": ("psi (weights alone)", "#1b7c83", "#39c5cf", "diamond", 1.4),
    "distortion": ("calibrated distortion", "#0969da", "#58a6ff", "circle", 2.8),
    "random_mix": ("its K's at random", "#9a6700", "#d29922", "plus", 1.4),
    "inverted": ("its signal inverted", "#cf222e", "#ff7b72", "cross", 1.4),
    "oracle": ("oracle (true distortion)", "#1a7f37", "#3fb950", "ring", 1.8),
}
MARKERS = {
    "circle": '<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" class="full"/>',
    "ring": '<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" class="hollow"/>',
    "square": '<path d="M{x:.1f} {y:.1f}m-3.6 -3.6h7.2v7.2h-7.2z" class="full"/>',
    "diamond": '<path d="M{x:.1f} {y:.1f}m0 -5l5 5l-5 5l-5 -5z" class="full"/>',
    "triangle": '<path d="M{x:.1f} {y:.1f}m0 -5l4.8 8.4h-9.6z" class="full"/>',
    "plus": '<path d="M{x:.1f} {y:.1f}m-4.5 0h9m-4.5 -4.5v9"/>',
    "cross": '<path d="M{x:.1f} {y:.1f}m-3.6 -3.6l7.2 7.2m0 -7.2l-7.2 7.2"/>',
    "mark": '<circle cx="{x:.1f}" cy="{y:.1f}" r="7.5" class="mark"/>',
}
WIDTH, HEIGHT, LEFT, TOP, GAP, LEGEND = 470, 300, 68, 88, 24, 236
STYLE = """\
text{{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}}
.paper{{fill:#fff}}.hollow{{fill:#fff}}.soft{{fill:#59636e}}.title{{font-size:15px;font-weight:600}}
.rule{{fill:none;stroke:currentColor;stroke-linejoin:round}}.full{{fill:currentColor}}
.grid{{stroke:#d1d9e0;fill:none}}.mark{{fill:none;stroke:#1f2328;stroke-width:1.4}}
{light}
@media (prefers-color-scheme:dark){{
text{{fill:#e6edf3}}.paper,.hollow{{fill:#0d1117}}.soft{{fill:#9198a1}}
.grid{{stroke:#30363d}}.mark{{stroke:#e6edf3}}
{dark}
}}"""


def read_json(file):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"{file}: cannot be read: {error.strerror}")
    except ValueError as error:
        sys.exit(f"{file}: is no JSON: {error}")


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_points(file, model, top_k):
    """The points of `file`, each with its model and top-k; SystemExit says what is wrong."""
    points = read_json(file)
    if not isinstance(points, list) or not points:
        sys.exit(f"{file}: expected the array of points that `adaptive-k frontier --json` writes")
    for i, point in enumerate(points):
        if not isinstance(point, dict):
            sys.exit(f"{file}: [{i}]: expected an object")
        point.setdefault("model", model)
        point.setdefault("top_k", top_k)
        for key in ("mean_k", "mean_kl", "top_k"):
            if not is_number(point.get(key)):
                hint = "; --top-k gives it" if key == "top_k" else ""
                sys.exit(f"{file}: [{i}].{key}: {json.dumps(point.get(key))}, expected a number{hint}")
        for key in ("rule", "split"):
            if not isinstance(point.get(key), str):
                sys.exit(f"{file}: [{i}].{key}: {json.dumps(point.get(key))}, expected a string")
        if point["rule"] not in RULES:
            sys.exit(f"{file}: [{i}].rule: '{point['rule']}', expected one of {', '.join(RULES)}")
    if len({(point["model"], point["top_k"]) for point in points}) > 1:
        sys.exit(f"{file}: the points are of several models, expected one")
    return points


def read_benchmark(file, model):
    """(mean K, the policy's mean KL, fixed K's) of what `adaptive-k benchmark --json` wrote."""
    report = read_json(file)
    try:
        policy, fixed = report["policy"], report["controls"]["fixed_at_equal_mean_k"]
        marked = (policy["mean_k"], policy["mean_kl"], fixed["mean_kl"])
        name = report["model"]["name"]
    except (KeyError, TypeError, IndexError):
        sys.exit(f"{file}: expected the report that `adaptive-k benchmark --json` writes")
    if not all(is_number(value) and value > 0 for value in marked):
        sys.exit(f"{file}: mean K and mean KL's are {marked}, expected numbers above 0")
    if name != model:
        sys.exit(f"{file}: is of the model '{name}', expected '{model}' as in the points")
    return marked


class axes:
    """Mean K to x, and mean KL, on a logarithmic axis, to y; one text's panel."""

    def __init__(self, left, points, marked):
        marked = marked or ()
        ks = [p["mean_k"] for p in points] + list(marked[:1])
        kls = [p["mean_kl"] for p in points if p["mean_kl"] > 0] + list(marked[1:])
        self.left, self.right = left, left + WIDTH
        self.low_k, self.high_k = min(ks) - 0.25, max(ks) + 0.25
        self.low, self.high = math.log10(min(kls) / 1.3), math.log10(max(kls) * 1.3)

    def x(self, mean_k):
        return self.left + WIDTH * (mean_k - self.low_k) / (self.high_k - self.low_k)

    def y(self, kl):
        return TOP + HEIGHT * (self.high - math.log10(kl)) / (self.high - self.low)

    def kl_ticks(self):
        for decade in range(math.floor(self.low), math.ceil(self.high)):
            for digit in (1, 2, 5):
                if self.low <= math.log10(digit) + decade <= self.high:
                    yield f"{digit * 10.0**decade:.{max(0, -decade)}f}"


def text(x, y, words, anchor="middle", kind="", more=""):
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}{more}>{escape(words)}</text>'


def draw_frame(frame, split, top_k, with_kl):
    """Grid and axes: mean K below, the share of expert calls that this saves above."""
    bottom, middle = TOP + HEIGHT, (frame.left + frame.right) / 2
    out = [text(middle, TOP - 46, f"{split} text", kind="soft")] if split else []
    for kl in frame.kl_ticks():
        y = frame.y(float(kl))
        out.append(f'<path d="M{frame.left} {y:.1f}H{frame.right}" class="grid"/>')
        if with_kl:
            out.append(text(frame.left - 8, y + 4.5, kl, "end", "soft"))
    for mean_k in range(math.ceil(frame.low_k), math.floor(frame.high_k) + 1):
        x = frame.x(mean_k)
        out.append(f'<path d="M{x:.1f} {TOP}V{bottom}" class="grid"/>')
        out.append(text(x, bottom + 18, f"{mean_k}", kind="soft"))
        out.append(text(x, TOP - 8, f"{100 * (1 - mean_k / top_k):.3g}%", kind="soft"))
    out.append(text(middle, TOP - 28, "expert calls saved"))
    out.append(text(middle, bottom + 40, f"mean K (experts per token and layer, of {top_k:g})"))
    if with_kl:
        turned = f' transform="rotate(-90 16 {TOP + HEIGHT / 2:.1f})"'
        out.append(text(16, TOP + HEIGHT / 2, "mean KL to full K, nats (less is better)", more=turned))
    return out


def group(rule, content):
    dashes = ' stroke-dasharray="6 4"' if rule == "oracle" else ""
    line, *markers = content
    return [f'<g class="rule {rule}" stroke-width="{RULES[rule][4]}"><path d="{line}"{dashes}/>',
            *markers, "</g>"]


def draw_rule(frame, rule, points):
    rows = sorted((p for p in points if p["rule"] == rule and p["mean_kl"] > 0), key=lambda p: p["mean_k"])
    places = [(frame.x(p["mean_k"]), frame.y(p["mean_kl"])) for p in rows]
    if not places:
        return []
    out = ["M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)]
    for (x, y), p in zip(places, rows):
        se = p.get("mean_kl_se")
        if is_number(se) and 0 < se < p["mean_kl"]:
            low, high = frame.y(p["mean_kl"] - se), frame.y(p["mean_kl"] + se)
            out.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke-width="1.2"/>')
        out.append(MARKERS[RULES[rule][3]].format(x=x, y=y))
    return group(rule, out)


def draw_legend(left, points, rules, marked, top_k):
    """Beside the panels, in the order of the curves from above."""
    def height(rule):
        kls = [math.log(p["mean_kl"]) for p in points if p["rule"] == rule and p["mean_kl"] > 0]
        return -sum(kls) / len(kls) if kls else math.inf

    out, y = [], TOP + 14
    for rule in sorted(rules, key=height):
        line = [f"M{left} {y}h32", MARKERS[RULES[rule][3]].format(x=left + 16, y=y)]
        out += group(rule, line) + [text(left + 42, y + 4.5, RULES[rule][0], "start")]
        y += 26
    if marked:
        saved = 100 * (1 - marked[0] / top_k)
        out.append(MARKERS["mark"].format(x=left + 16, y=y + 10))
        for i, words in enumerate((f"the preset: mean K {marked[0]:.2f},", f"{saved:.1f}% saved; above it",
                                   "fixed K at the same mean K")):
            out.append(text(left + 42, y + 14.5 + 17 * i, words, "start"))
    return out


def draw(points, rules, marked):
    splits = list(dict.fromkeys(point["split"] for point in points))
    points = [point for point in points if point["rule"] in rules]
    drawn = [rule for rule in rules if any(point["rule"] == rule for point in points)]
    if not any(point["mean_kl"] > 0 for point in points):
        sys.exit("the points: none of these rules has one with a mean KL above 0")
    model, top_k = points[0]["model"], points[0]["top_k"]
    right = LEFT + len(splits) * (WIDTH + GAP)
    width, height = right + LEGEND, TOP + HEIGHT + 56
    title = f"{model or 'model not named'}: quality against mean K"
    if len(splits) == 1:
        title += f", {splits[0]} text"
    light, dark = (
        "".join(f".{rule}{{color:{RULES[rule][i]}}}" for rule in drawn) for i in (1, 2))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE.format(light=light, dark=dark)}\n</style>",
        f'<rect width="{width}" height="{height}" rx="6" class="paper"/>',
        text(LEFT, 24, title, "start", "title"),
    ]
    for i, split in enumerate(splits):
        here = marked if split == "test" else None
        frame = axes(LEFT + i * (WIDTH + GAP), points, marked)
        out += draw_frame(frame, split if len(splits) > 1 else "", top_k, i == 0)
        for rule in drawn:
            out += draw_rule(frame, rule, [p for p in points if p["split"] == split])
        if here:
            x, policy, fixed = frame.x(here[0]), frame.y(here[1]), frame.y(here[2])
            out.append(f'<path d="M{x:.1f} {policy - 7.5:.1f}V{fixed + 7.5:.1f}" class="mark"/>')
            out += [MARKERS["mark"].format(x=x, y=y) for y in (policy, fixed)]
    out += draw_legend(right, points, drawn, marked, top_k)
    return "\n".join(out + ["</svg>", ""])


def save(content, output):
    """Beside the file and then in its place, so that a failure leaves what was there."""
    target = pathlib.Path(os.path.realpath(output))
    if target.exists() and not target.is_file():
        sys.exit(f"{output}: cannot be written: expected a file")
    unborn = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".frontier-", delete=False) as stream:
            unborn = stream.name
            stream.write(content.encode())
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(unborn, target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~umask)
        os.replace(unborn, target)
    except OSError as error:
        if unborn and os.path.exists(unborn):
            os.unlink(unborn)
        sys.exit(f"{output}: cannot be written: {error.strerror}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", type=pathlib.Path, help="what `frontier --json` wrote")
    parser.add_argument("output", type=pathlib.Path, help="the plot, .svg")
    parser.add_argument("--rules", default=",".join(RULES), help="which ones, separated by commas (default: all)")
    parser.add_argument("--benchmark", type=pathlib.Path, help="what `benchmark --json` wrote: marks its policy")
    parser.add_argument("--model", help="its name, where the points do not hold it")
    parser.add_argument("--top-k", type=int, help="of the model, where the points do not hold it")
    arguments = parser.parse_args()
    if arguments.output.suffix != ".svg":
        sys.exit(f"{arguments.output}: expected a name that ends in .svg")
    for read in filter(None, (arguments.points, arguments.benchmark)):
        if os.path.realpath(read) == os.path.realpath(arguments.output):
            sys.exit(f"{arguments.output}: is a file that is read, expected another")
    rules = arguments.rules.split(",")
    for rule in rules:
        if rule not in RULES:
            sys.exit(f"--rules: '{rule}', expected one of {', '.join(RULES)}")
    points = read_points(arguments.points, arguments.model, arguments.top_k)
    marked = read_benchmark(arguments.benchmark, points[0]["model"]) if arguments.benchmark else None
    save(draw(points, rules, marked), arguments.output)


if __name__ == "__main__":
    main()
