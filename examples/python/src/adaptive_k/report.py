"""An HTML report of what `adaptive-k benchmark --json` or `frontier --json` measured: one file, no script."""
from __future__ import annotations

import html
import json
import math
import pathlib
from typing import Any, Callable, Sequence

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--paper:#fff;--band:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--paper:#0d1117;--band:#151b23}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:960px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%}th,td{padding:.3em .7em;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}tr.own{background:var(--band);font-weight:600}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
.grid{stroke:var(--line);fill:none}.verdict{padding:.7em 1em;background:var(--band);border-left:4px solid #0969da}
"""
_COLOURS = {
    "fixed": "#6e7781", "policy": "#0969da", "distortion": "#0969da", "top_p": "#bc4c00",
    "random_mix": "#9a6700", "inverted": "#cf222e", "oracle": "#1a7f37", "entropy": "#bf3989",
    "score_ratio": "#8250df", "static_per_layer": "#57606a",
}  # fmt: skip


def _figure(value: Any, digits: int, percent: bool = False) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{100 * value:.{digits}f}%" if percent else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[tuple]) -> str:
    """Rows are (class, cells)."""
    made = "<table><thead><tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head)
    made += "</tr></thead><tbody>"
    for kind, cells in rows:
        made += f'<tr class="{kind}">' + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells)
        made += "</tr>"
    return made + "</tbody></table>"


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and halves where there are few, between the two."""
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [m * 10.0**e for e in range(first, last + 1) for m in steps if low <= m * 10.0**e <= high]


def _chart(series: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Curves over mean K, the other axis logarithmic; a series of one point is a dot."""
    kept = {name: [(x, y) for x, y in points if y and y > 0] for name, points in series.items()}
    points = [p for values in kept.values() for p in values]
    if not points:
        return "<p class=soft>Nothing to draw: no figure differs from full K.</p>"
    width, height, left, bottom = 900, 360, 70, 40
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x0, x1 = math.floor(min(xs)), math.ceil(max(xs)) if max(xs) > min(xs) else min(xs) + 1
    y0, y1 = min(ys) / 1.3, max(ys) * 1.3

    def at(x: float, y: float) -> tuple[float, float]:
        u = (x - x0) / (x1 - x0 or 1)
        v = (math.log(y) - math.log(y0)) / (math.log(y1) - math.log(y0))
        return left + u * (width - left - 170), height - bottom - v * (height - bottom - 20)

    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y_label)}">'
    for y in _ticks(y0, y1):
        _, down = at(x0, y)
        svg += f'<path class="grid" d="M{left} {down:.1f}H{width - 170}"/>'
        svg += f'<text x="{left - 8}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>'
    for x in range(int(x0), int(x1) + 1):
        right, _ = at(x, y0)
        svg += f'<text x="{right:.1f}" y="{height - bottom + 18}" text-anchor="middle">{x}</text>'
    svg += f'<text x="{(left + width - 170) / 2}" y="{height - 4}" text-anchor="middle">{x_label}</text>'
    svg += f'<text x="{left}" y="14">{html.escape(y_label)}</text>'
    for i, (name, values) in enumerate(kept.items()):
        colour = _COLOURS.get(name, "#57606a")
        places = [at(x, y) for x, y in sorted(values)]
        if len(places) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            svg += f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for x, y in places:
            svg += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3.5 if len(places) > 1 else 6}" fill="{colour}"/>'
        svg += f'<circle cx="{width - 152}" cy="{30 + 20 * i}" r="5" fill="{colour}"/>'
        svg += f'<text x="{width - 140}" y="{34 + 20 * i}">{html.escape(name.replace("_", " "))}</text>'
    return svg + "</svg>"


def _histogram(layers: Sequence[dict], top_k: int) -> str:
    """A bar a layer: shares of the tokens by K, darker for more experts."""
    width, step = 900, 22
    height = step * len(layers) + 40
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Tokens by K, layer by layer">'
    for i, layer in enumerate(layers):
        counts = [layer["k_histogram"].get(str(k), 0) for k in range(1, top_k + 1)]
        total = sum(counts) or 1
        x = 70.0
        svg += f'<text x="62" y="{step * i + 15}" text-anchor="end">layer {layer["layer"]}</text>'
        for k, count in enumerate(counts, 1):
            share = (width - 190) * count / total
            light = 88 - 58 * (k - 1) / max(top_k - 1, 1)
            svg += (
                f'<rect x="{x:.1f}" y="{step * i + 2}" width="{share:.2f}" height="{step - 4}" '
                f'fill="hsl(212 80% {light:.0f}%)"><title>layer {layer["layer"]}, K = {k}: '
                f"{count / total:.1%} of the tokens</title></rect>"
            )
            x += share
        svg += f'<text x="{width - 110}" y="{step * i + 15}">mean K {layer["mean_k"]:.2f}</text>'
    for k in range(1, top_k + 1):
        light = 88 - 58 * (k - 1) / max(top_k - 1, 1)
        at = 70 + 46 * (k - 1)
        svg += f'<rect x="{at}" y="{height - 24}" width="14" height="14" fill="hsl(212 80% {light:.0f}%)"/>'
        svg += f'<text x="{at + 18}" y="{height - 12}">{k}</text>'
    return svg + "</svg>"


def _benchmark(report: dict) -> tuple[str, str]:
    model, policy, controls = report["model"], report["policy"], report["controls"]
    base, equal = report["baseline"], controls["fixed_at_equal_mean_k"]
    top_k = model["top_k"]
    head = ["routing", "mean K", "expert calls saved", "perplexity", "mean KL to full K, nats"]

    def row(kind: str, name: str, of: dict) -> tuple:
        saved = of.get("expert_savings", 1 - of["mean_k"] / top_k)
        return kind, (
            name, _figure(of["mean_k"], 2), _figure(saved, 1, True), _figure(of["perplexity"], 4),
            _figure(of.get("mean_kl"), 5),
        )  # fmt: skip

    rows = [
        row("", "full K", {**base, "mean_kl": 0.0}),
        row("own", f"policy: {policy.get('name', 'policy')}", policy),
        row("", "control: fixed K at equal mean K", equal),
        row("", "control: the same K's at random", controls["random_mix"]),
        row("", "control: inverted signal", controls["inverted"]),
    ]
    series = {"fixed": [(f["mean_k"], f["mean_kl"]) for f in controls["fixed_k"]]}
    for name, of in (("policy", policy), ("random_mix", controls["random_mix"]), ("inverted", controls["inverted"])):  # fmt: skip
        series[name] = [(of["mean_k"], of["mean_kl"])]
    name = str(model.get("name", "model"))
    data = report["dataset"]
    body = f"<h1>{html.escape(name)} with fewer experts</h1>"
    body += f"<p class=soft>{html.escape(pathlib.Path(str(data.get('path', ''))).name)}, {data['predictions']} predictions</p>"
    body += f'<p class="verdict">{html.escape(report["beats_fixed_k"]["sentence"])}</p>'
    body += "<h2>What it saves and what it costs</h2>" + _table(head, rows)
    body += "<h2>Quality against mean K</h2>" + _chart(series, "mean K", "mean KL to full K, nats")
    body += "<h2>Tokens by K</h2>" + _histogram(report["layers"], top_k)
    return name, body


def _frontier(points: Sequence[dict]) -> tuple[str, str]:
    name = str(points[0]["model"])
    body = f"<h1>{html.escape(name)}: quality against mean K</h1>"
    for split in dict.fromkeys(p["split"] for p in points):
        of = [p for p in points if p["split"] == split]
        series: dict[str, list] = {}
        for p in of:
            series.setdefault(p["rule"], []).append((p["mean_k"], p["mean_kl"]))
        body += f"<h2>On the {html.escape(split)} text</h2>"
        body += _chart(series, "mean K", "mean KL to full K, nats")
        rows = [
            (
                "own" if p["rule"] == "distortion" else "",
                (
                    p["rule"].replace("_", " "), _figure(p["mean_k"], 2),
                    _figure(1 - p["mean_k"] / p["top_k"], 1, True), _figure(p["mean_kl"], 5),
                    _figure(p["perplexity"], 4), _figure(p["top1_agreement"], 1, True),
                ),
            )
            for p in of
        ]  # fmt: skip
        body += _table(["rule", "mean K", "saved", "mean KL, nats", "perplexity", "top-1"], rows)
    return name, body


def write_html(report: str, target: str) -> None:
    """Turns the JSON file `report` into the page `target`. Raises ValueError for another file."""
    read = json.loads(pathlib.Path(report).read_text(encoding="utf-8"))
    make: Callable[[Any], tuple[str, str]]
    if isinstance(read, list) and read and "rule" in read[0]:
        make = _frontier
    elif isinstance(read, dict) and "beats_fixed_k" in read:
        make = _benchmark
    else:
        raise ValueError(f"{report}: expected the JSON of `adaptive-k benchmark` or `frontier`")
    title, body = make(read)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>{body}'
        "<p class=soft>Savings are of expert calls, against the model's own top-k.</p></html>\n"
    )
    pathlib.Path(target).write_text(page, encoding="utf-8")
