"""Every recipe that comes along, on the model inside the package: size, quality, speed.

Usage: python bench/recipes.py [--only NAME ...]         (writes bench/results/recipes.json and docs/images/recipes.svg)

With --only, what the file holds of the other recipes stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

import thrifty
from thrifty.measure.hardware import hardware, versions
from thrifty.recipe.parse import shipped

HERE = Path(__file__).parent
BUILD = HERE / "build" / "recipes"
PICTURE = HERE.parent / "docs" / "images" / "recipes.svg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=shipped())
    only = parser.parse_args().only
    path = HERE / "results" / "recipes.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text())["results"] if only else {}
    results = {name: run(name) if name in (only or shipped()) else before[name] for name in shipped()}
    summary = {"hardware": hardware(), "versions": versions(), "results": results}
    path.write_text(json.dumps(summary, indent=2) + "\n")
    draw(results)


def run(name: str) -> dict:
    """One recipe's figures."""
    out = BUILD / name
    shutil.rmtree(out, ignore_errors=True)
    found = thrifty.compress(recipe=name, out=out)
    kept = ("seconds", "peak_rss_bytes", "bytes", "bits_per_weight", "perplexity", "kl", "top1_agreement", "speed")
    return {key: found[key] for key in kept}


def draw(results: dict) -> None:
    """KL divergence over size, a point a recipe."""
    with matplotlib.rc_context({"svg.hashsalt": "thrifty", "font.size": 11, "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, found in results.items():
            size, kl = found["bytes"]["after"] / 1e6, found["kl"]
            ends = [[kl["value"] - kl["low"]], [kl["high"] - kl["value"]]]
            axes.errorbar(size, kl["value"], yerr=ends, marker="o", ms=7, capsize=3, color="#00796b")
            axes.annotate(name, (size, kl["value"]), (9, 0), textcoords="offset points", va="center")
        before = next(iter(results.values()))["bytes"]["before"] / 1e6
        axes.axvline(before, color="#888888", ls="--", lw=1)
        axes.annotate(
            "original", (before, 1), (-6, -4), xycoords=("data", "axes fraction"), textcoords="offset points", ha="right", va="top"
        )
        axes.set(xlabel="weight files, MB", ylabel="KL divergence from the original\nnats a token", yscale="log", xlim=(0, before * 1.06))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        PICTURE.parent.mkdir(exist_ok=True)
        figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
