#!/usr/bin/env python3
"""What `adaptive-k matrix --json` wrote, as a picture of one model or as the table of all.

    bench/plots/matrix.py matrix.json reference-32x8.svg --model reference-32x8
    bench/plots/matrix.py matrix.json more.json --table
    bench/plots/matrix.py matrix.json more.json --cells distortion

The picture has a panel for texts of the domain calibrated on, one for texts of other domains, and one for
a calibration on all domains; its points are means over the cells of each kind. The table has, of each kind,
the geometric mean of KL over fixed K's at equal mean K, and the share of expert calls saved where the KL is
fixed K's at 3/4 of the top-k. Cells are one rule's alone, at each mean K, against the controls of the same cell. The
same input gives the same bytes.
"""

import argparse
import math
import pathlib
import sys

import frontier

KINDS = {"in": "in-domain", "out": "out-of-domain", "all": "every domain's"}
KEYS = {"model": str, "top_k": int, "domains": list, "mean_ks": list, "points": list, "at_equal_kl": list}


def read_models(files):
    models = {}
    for file in files:
        report = frontier.read_json(file)
        if not isinstance(report, dict) or report.get("format") != "adaptive_k.matrix":
            sys.exit(f"{file}: expected what `adaptive-k matrix --json` writes")
        for i, model in enumerate(report.get("models", [])):
            for key, kind in KEYS.items():
                if not isinstance(model.get(key), kind):
                    sys.exit(f"{file}: models[{i}].{key}: expected {kind.__name__}")
            if model["model"] in models:
                sys.exit(f"{file}: models[{i}].model: '{model['model']}' twice")
            models[model["model"]] = model
    if not models:
        sys.exit(f"{files[0]}: no model in it")
    return models


def kind_of(model, cell):
    if cell["calibrated_on"] == cell["tested_on"]:
        return "in"
    return "all" if cell["calibrated_on"] == "all" and len(model["domains"]) > 1 else "out"


def grouped(model, rows, key):
    """Rows by `key` of each, whole kinds of cells alone: a rule measured further in a few is left out."""
    cells = {}
    for row in rows:
        cells.setdefault((kind_of(model, row), *key(row)), []).append(row)
    n = len(model["domains"])
    size = {"in": n, "out": n * (n - 1), "all": n}
    return {at: found for at, found in cells.items() if len(found) == size[at[0]]}


def points_of(model):
    """Means over cells, as frontier.py takes points."""
    points = []
    for (kind, rule, _), cells in grouped(model, model["points"],
                                          lambda row: (row["rule"], row["target_mean_k"])).items():
        if rule not in frontier.RULES:
            continue
        n = len(cells)
        points.append({
            "rule": rule, "split": KINDS[kind], "model": model["model"], "top_k": model["top_k"],
            "mean_k": sum(cell["mean_k"] for cell in cells) / n,
            "mean_kl": sum(cell["mean_kl"] for cell in cells) / n,
            "mean_kl_se": math.sqrt(sum((cell["mean_kl_se"] or 0.0) ** 2 for cell in cells)) / n})
    order = list(KINDS.values())
    return sorted(points, key=lambda point: order.index(point["split"]))


def ratio(model, kind, rule, mean_k):
    at = {(row["calibrated_on"], row["tested_on"], row["rule"]): row["mean_kl"]
          for row in model["points"] if row["target_mean_k"] == mean_k}
    logs = [math.log(kl / at[calibrated, tested, "fixed"]) for (calibrated, tested, name), kl in at.items()
            if name == rule and kind_of(model, {"calibrated_on": calibrated, "tested_on": tested}) == kind]
    return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else "-"


def saved(model, kind, rule):
    rows = [row["expert_savings"] for row in model["at_equal_kl"]
            if row["rule"] == rule and kind_of(model, row) == kind]
    if not rows or None in rows:
        return "-"
    return f"{100 * sum(rows) / len(rows):.0f}%"


def table(models):
    """Markdown: a row for each model and rule."""
    lines = ["| model | rule | mean K | KL / fixed K's: in | out | all | calls saved: in | out | all |",
             "|---|---|---|---|---|---|---|---|---|"]
    for model in models.values():
        mean_k = sorted(model["mean_ks"])[len(model["mean_ks"]) // 2]
        for rule in dict.fromkeys(row["rule"] for row in model["points"]):
            name = frontier.RULES.get(rule, (rule,))[0]
            cells = [ratio(model, kind, rule, mean_k) for kind in KINDS]
            cells += [saved(model, kind, rule) for kind in KINDS]
            lines.append(f"| {model['model']} | {name} | {mean_k:g} of {model['top_k']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cells_of(models, rule):
    """Markdown: a row for each cell of one rule. The gap is that from fixed K to the oracle; the best control
    is the one of fixed K, static K per layer and top-p with the least KL there."""
    lines = ["| model | calibrated on | tested on | mean K | KL x 1e-3 | / fixed K's | gap closed | - top-p, in SE "
             "| - best control, in SE |", "|" + "---|" * 9]
    for model in models.values():
        at = {(row["calibrated_on"], row["tested_on"], row["target_mean_k"], row["rule"]): row
              for row in model["points"]}
        for cell, row in at.items():
            if cell[3] != rule:
                continue
            other = {name: at.get((*cell[:3], name)) for name in ("fixed", "static_per_layer", "top_p", "oracle")}
            kl, fixed, oracle = row["mean_kl"], other["fixed"], other["oracle"]
            gap = fixed["mean_kl"] - oracle["mean_kl"] if fixed and oracle else 0
            controls = [name for name in ("fixed", "static_per_layer", "top_p") if other[name]]
            best = min(controls, key=lambda name: other[name]["mean_kl"], default=None)
            lines.append("| " + " | ".join([
                model["model"], cell[0], cell[1], f"{cell[2]:g}", f"{1000 * kl:.2f}",
                f"{kl / fixed['mean_kl']:.2f}" if fixed else "-",
                f"{100 * (fixed['mean_kl'] - kl) / gap:.0f}%" if gap > 0 else "-",
                standard_errors(row, "top_p"), f"{standard_errors(row, best)} ({best})" if best else "-"]) + " |")
    if len(lines) == 2:
        sys.exit(f"--cells: '{rule}', expected one of "
                 + ", ".join(dict.fromkeys(row["rule"] for model in models.values() for row in model["points"])))
    return "\n".join(lines) + "\n"


def standard_errors(row, control):
    value, error = row.get(f"minus_{control}", (None, None))
    return "-" if value is None or not error else f"{value / error:+.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=pathlib.Path, nargs="+",
                        help="what `matrix --json` wrote; last, without --table or --cells, the plot (.svg)")
    parser.add_argument("--table", action="store_true", help="print the table of all models")
    parser.add_argument("--model", help="the one to draw, where there are several")
    parser.add_argument("--cells", metavar="RULE", help="print each cell of this rule beside its controls")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_models(arguments.files)), end="")
        return
    if arguments.cells:
        print(cells_of(read_models(arguments.files), arguments.cells), end="")
        return
    *reports, output = arguments.files
    if output.suffix != ".svg":
        sys.exit(f"{output}: expected a name that ends in .svg")
    if not reports:
        sys.exit("expected what `adaptive-k matrix --json` wrote, and the plot's name")
    models = read_models(reports)
    name = arguments.model or next(iter(models))
    if name not in models or (arguments.model is None and len(models) > 1):
        sys.exit(f"--model: {arguments.model or 'missing'}, expected one of {', '.join(models)}")
    frontier.save(frontier.draw(points_of(models[name]), list(frontier.RULES), None), output)


if __name__ == "__main__":
    main()
