#!/usr/bin/env python3
"""Plots quality against mean K for every rule, from `adaptive-k frontier --json points.json`.

    bench/plots/frontier.py points.json frontier.svg

The output's ending chooses the format (svg, png, pdf). Needs matplotlib.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

NAMES = {
    "fixed": "fixed K",
    "static_per_layer": "static K per layer",
    "entropy": "softmax entropy (published rule)",
    "score_ratio": "score ratio",
    "top_p": "top-p",
    "distortion": "calibrated distortion",
    "random_mix": "random, the same K's",
    "inverted": "inverted signal",
    "oracle": "oracle (true distortion)",
}
NUMBERS = ("mean_k", "mean_kl")
FORMATS = (".svg", ".png", ".pdf")


def read_points(file, model, top_k):
    """The points of `file`, each with its model and top-k; SystemExit says what is wrong."""
    try:
        points = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"{file}: cannot be read: {error.strerror}")
    except ValueError as error:
        sys.exit(f"{file}: is no JSON: {error}")
    if not isinstance(points, list) or not points:
        sys.exit(f"{file}: expected the array of points that `adaptive-k frontier --json` writes")
    for i, point in enumerate(points):
        if not isinstance(point, dict):
            sys.exit(f"{file}: [{i}]: expected an object")
        point.setdefault("model", model)
        point.setdefault("top_k", top_k)
        for key in NUMBERS + ("top_k",):
            if not isinstance(point.get(key), (int, float)) or isinstance(point[key], bool):
                hint = "; --top-k gives it" if key == "top_k" else ""
                sys.exit(f"{file}: [{i}].{key}: {json.dumps(point.get(key))}, expected a number{hint}")
        for key in ("rule", "split"):
            if not isinstance(point.get(key), str):
                sys.exit(f"{file}: [{i}].{key}: {json.dumps(point.get(key))}, expected a string")
        if point["rule"] not in NAMES:
            sys.exit(f"{file}: [{i}].rule: '{point['rule']}', expected one of {', '.join(NAMES)}")
    if len({(point["model"], point["top_k"]) for point in points}) > 1:
        sys.exit(f"{file}: the points are of several models, expected one")
    return points


def draw_split(axis, points):
    """One text's curves, by mean K below and by the share of expert calls saved above."""
    for rule, name in NAMES.items():
        rows = sorted((p for p in points if p["rule"] == rule), key=lambda p: p["mean_k"])
        if not rows:
            continue
        emphasis = rule in ("fixed", "distortion", "oracle")
        axis.errorbar(
            [p["mean_k"] for p in rows],
            [p["mean_kl"] for p in rows],
            yerr=[p.get("mean_kl_se") or 0.0 for p in rows],
            label=name,
            marker="o",
            markersize=3,
            linewidth=2.0 if emphasis else 1.0,
            linestyle="--" if rule == "oracle" else "-",
        )
    top_k = points[0]["top_k"]
    axis.set_yscale("log")
    axis.set_xlabel(f"mean K (of {top_k:g})")
    axis.grid(alpha=0.3)
    saved = axis.secondary_xaxis(
        "top", functions=(lambda k: 100 * (1 - k / top_k), lambda s: top_k * (1 - s / 100))
    )
    saved.set_xlabel("expert calls saved, %")


def save(figure, output):
    """Beside the file and then in its place, so that a failure leaves what was there."""
    # The same input gives the same file.
    metadata = {"Date": None} if output.suffix == ".svg" else {"CreationDate": None}
    if output.suffix == ".png":
        metadata = None
    target = pathlib.Path(os.path.realpath(output))
    if target.exists() and not target.is_file():
        sys.exit(f"{output}: cannot be written: expected a file")
    unborn = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=".frontier-", suffix=target.suffix, delete=False
        ) as stream:
            unborn = stream.name
            figure.savefig(stream, format=output.suffix[1:], metadata=metadata, bbox_inches="tight")
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
    parser.add_argument("output", type=pathlib.Path, help="the plot: .svg, .png or .pdf")
    parser.add_argument("--model", help="its name, where the points do not hold it")
    parser.add_argument("--top-k", type=int, help="of the model, where the points do not hold it")
    arguments = parser.parse_args()
    if arguments.output.suffix not in FORMATS:
        sys.exit(f"{arguments.output}: expected a name that ends in {', '.join(FORMATS)}")
    if os.path.realpath(arguments.points) == os.path.realpath(arguments.output):
        sys.exit(f"{arguments.output}: is the file that is read, expected another")
    points = read_points(arguments.points, arguments.model, arguments.top_k)

    try:
        import matplotlib
    except ImportError:
        sys.exit("matplotlib is not installed (Debian: python3-matplotlib; or pip install matplotlib)")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "adaptive-k"
    import matplotlib.pyplot as plt

    splits = list(dict.fromkeys(point["split"] for point in points))
    figure, axes = plt.subplots(
        1, len(splits), figsize=(6 * len(splits), 5.0), sharey=True, squeeze=False
    )
    for axis, split in zip(axes[0], splits):
        draw_split(axis, [point for point in points if point["split"] == split])
        axis.set_title(f"{split} text")
    axes[0][0].set_ylabel("mean KL to full K, nats")
    figure.suptitle(points[0]["model"] or "model not named")
    figure.tight_layout()
    # Beside the axes: wherever it lay within them it would cover points.
    axes[0][-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    save(figure, arguments.output)


if __name__ == "__main__":
    main()
