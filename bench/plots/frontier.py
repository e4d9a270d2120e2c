#!/usr/bin/env python3
"""Plots quality against mean K for every rule, from `adaptive-k frontier --json points.json`.

    bench/plots/frontier.py points.json frontier.svg

The output's ending chooses the format (svg, png, pdf). Needs matplotlib.
"""

import argparse
import json
import pathlib

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    arguments = parser.parse_args()
    points = json.loads(arguments.points.read_text())

    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "adaptive-k"  # the same input gives the same file
    import matplotlib.pyplot as plt

    splits = list(dict.fromkeys(point["split"] for point in points))
    figure, axes = plt.subplots(
        1, len(splits), figsize=(6 * len(splits), 4.5), sharey=True, squeeze=False
    )
    for axis, split in zip(axes[0], splits):
        for rule, name in NAMES.items():
            rows = sorted(
                (p for p in points if p["split"] == split and p["rule"] == rule),
                key=lambda p: p["mean_k"],
            )
            if not rows:
                continue
            emphasis = rule in ("fixed", "distortion", "oracle")
            axis.errorbar(
                [p["mean_k"] for p in rows],
                [p["mean_kl"] for p in rows],
                yerr=[p["mean_kl_se"] or 0.0 for p in rows],
                label=name,
                marker="o",
                markersize=3,
                linewidth=2.0 if emphasis else 1.0,
                linestyle="--" if rule == "oracle" else "-",
            )
        axis.set_yscale("log")
        axis.set_xlabel("mean K")
        axis.set_title(f"{split} text")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mean KL to full K, nats")
    axes[0][-1].legend(fontsize="small")
    figure.tight_layout()
    metadata = {"Date": None} if arguments.output.suffix == ".svg" else None
    figure.savefig(arguments.output, metadata=metadata)


if __name__ == "__main__":
    main()
