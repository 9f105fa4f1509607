"""Every way to fewer bits, on one chart: perplexity and KL divergence against true bits a weight, the model inside the package.

Usage: python bench/low_bit.py [NAME ...]     (writes bench/results/low_bit.json and docs/images/low_bit.svg)
       python bench/low_bit.py --draw         only takes over what other benchmarks measured, and draws

A row that is in the results with the same recipe and the same windows is not measured again, so a run that was stopped goes on; NAME: only
these. Results are made in the container, so bits are those of its file: codes, scales, zero points, codebooks and permutations, everything.
Rows of other benchmarks on the same held-out windows are taken over, with the number of windows that they were calibrated on; bits are then
what the container would take.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import matplotlib
import torch
from judge import BUILD, HERE, RESULTS, Judge, beside, figures
from matplotlib.figure import Figure

from thrifty.api.request import Request, prepare
from thrifty.base.anatomy import Anatomy
from thrifty.base.store import write_json
from thrifty.export.container import estimate
from thrifty.measure.hardware import hardware
from thrifty.pipeline.run import run
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve
from thrifty.weights.base import Preset

WINDOWS = 32
"""Calibration windows of 512 tokens for what is measured here."""

RESULT = RESULTS / "low_bit.json"
PICTURE = HERE.parent / "docs" / "images" / "low_bit.svg"
ORDERED = {"obs": {"act_order": True}}
PAIRS = [(f"baq, {bits} bits", f"gptq, {bits} bits a row") for bits in (3, 4)]
"""Rows that are compared window by window: an interval that holds 0 means that neither is better."""


def into(target: dict[str, Any], by: Any = None, **more: Any) -> dict[str, Any]:
    return {"solve": {"by": by or ORDERED, "into": target, **more}}


def _recipes() -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(family, name, steps) of what is measured here, what is new first."""
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        yield "K-quants", f"{kind}, obs", [into({"k_quant": {"type": kind}})]
    yield "K-quants", "Q2_K, descent", [into({"k_quant": {"type": "Q2_K"}}, "descent")]
    yield "ternary, zero_free", "ternary", [into({"ternary": {"group_size": 32}})]
    yield "ternary, zero_free", "zero_free", [into({"zero_free": {"group_size": 32}})]
    for bits in (2, 3, 4):
        yield "affine (hqq)", f"hqq, {bits} bits", [{"hqq": {"bits": bits, "range": "mse"}}]
        yield "affine (hqq)", f"affine, {bits} bits", [into({"affine": {"bits": bits, "range": "mse"}})]
        yield "affine (hqq)", f"affine, {bits} bits, descent", [into({"affine": {"bits": bits, "range": "mse"}}, "descent")]
        learned = into({"affine": {"bits": bits, "range": "mse"}}, "descent", heal="learned_rounding")
        yield "affine (hqq)", f"affine, {bits} bits, learned rounding", [learned]
    yield "additive (aqlm)", "aqlm, 4 x 4 bits", [into({"additive": {"codebooks": 4, "bits": 4}}, "aqlm")]
    for bits in (3, 4):
        grid = {"bits": bits, "group_size": 0, "symmetric": False}
        yield "columns (baq)", f"baq, {bits} bits", [into({"int": grid}, share="baq")]
        yield "gptq", f"gptq, {bits} bits a row", [into({"int": grid})]
    yield "mixed bits (optimal)", "mix, 3 bits", [{"mix": {"budget": 3}}]
    yield "mixed bits (optimal)", "mix, 3.5 bits", [{"mix": {"budget": 3.5}}]
    for bits in (2, 3, 4):
        grid = {"bits": bits, "group_size": 32, "symmetric": False}
        yield "awq + gptq", f"awq + gptq, {bits} bits", [{"awq": {}}, {"gptq": grid}]
        yield "awp", f"awp, {bits} bits", [into({"int": {**grid, "range": "mse"}}, "awp")]
    for name, target in {
        "MXFP4": {"format": "e2m1", "group_size": 32, "scale": "power_of_two"},
        "NVFP4": {"format": "e2m1", "group_size": 16, "scale": "e4m3"},
        "FP4": {"format": "e2m1", "group_size": 32},
        "MXFP6": {"format": "e2m3", "group_size": 32, "scale": "power_of_two"},
        "FP8": {"format": "e4m3", "group_size": 0},
    }.items():
        yield "small floats", name, [into({"float": target})]
    for name, target in {
        "posit(4, 0)": {"posit": {"bits": 4, "es": 0, "group_size": 32}},
        "posit(6, 1)": {"posit": {"bits": 6}},
        "posit(8, 1)": {"posit": {"bits": 8}},
        "fixed, 4 bits": {"fixed": {"bits": 4, "group_size": 32}},
        "fixed, 6 bits": {"fixed": {"bits": 6, "group_size": 32}},
    }.items():
        yield "posit, fixed", name, [into(target)]
    yield "gptq", "gptq, 8 bits a row", [{"gptq": {"bits": 8, "group_size": 0}}]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("names", nargs="*")
    words.add_argument("--draw", action="store_true")
    asked = words.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    rows = {row["name"]: row for row in found["rows"] if "taken from" not in row}
    differences, scores = dict(found.get("differences", {})), {}
    if not asked.draw:
        judge = Judge()
        head = {
            **judge.describe(),
            "calibration": judge.rows["calibration"].select(0, WINDOWS).digest,
            "hardware": hardware(),
            "threads": 1,
        }
        for family, name, steps in _recipes():
            same = name in rows and rows[name]["steps"] == steps and rows[name]["evaluation"] == head["evaluation"]["digest"]
            paired = all(between(*pair) in differences for pair in PAIRS if name in pair)
            if (same and paired) or (asked.names and name not in asked.names):
                continue
            rows[name], scores[name] = measure(judge, family, name, steps)
            differences |= {
                between(*pair): beside(*(scores[one] for one in pair)) for pair in PAIRS if name in pair and scores.keys() >= set(pair)
            }
            found = {**head, "windows": WINDOWS, "differences": differences, "rows": list(rows.values())}
            write_json(RESULT, found)
            print(name, rows[name]["bits"], rows[name]["perplexity"]["value"], rows[name]["kl"]["value"], flush=True)
    order = [name for _, name, _ in _recipes()]
    own = sorted(rows.values(), key=lambda row: order.index(row["name"]))
    found = {**found, "rows": [*own, *taken(found.get("evaluation", {}).get("digest"))]}
    write_json(RESULT, found)
    draw(found["rows"])


def between(one: str, other: str) -> str:
    """What a difference is called."""
    return f"{one} minus {other}"


def measure(judge: Judge, family: str, name: str, steps: list[dict[str, Any]]) -> tuple[dict[str, Any], Any]:
    """(one row, its scores window by window)"""
    out = BUILD / "low_bit"
    shutil.rmtree(out, ignore_errors=True)
    calibration = {"input_ids": judge.rows["calibration"].inputs["input_ids"][:WINDOWS]}
    job = prepare(Request(judge.model, {"steps": steps}, calibration=calibration, format="thrifty"))
    start = time.perf_counter()
    certificate = run(job, out, force=True, finish=lambda folder, certificate: None)
    seconds = time.perf_counter() - start
    held = {"family": family, "name": name, "steps": steps, "bits": certificate.bits_per_weight, "seconds": seconds}
    scores = judge.scores(out)
    return {**held, "calibration_windows": WINDOWS, "evaluation": judge.rows["evaluation"].digest, **figures(scores)}, scores


# -- what other benchmarks measured ------------------------------------------------------------------------------------


def taken(evaluation: str | None) -> list[dict[str, Any]]:
    """Rows of other result files on the windows with that digest; of all that were judged alike, where nothing was measured here."""
    from thrifty.data import default_model
    from thrifty.models import open_model

    anatomy = open_model(default_model()).anatomy
    found = [*_solvers(anatomy), *_trained(anatomy), *_peer("quality_llm_compressor.json", "llm-compressor")]
    wanted = evaluation or found[0]["evaluation"]
    return [row for row in found if row["evaluation"] == wanted]


def _row(family: str, name: str, bits: float, file: str, head: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    seen = head["calibration"]  # tokens, where all of the text was trained on
    windows = seen["rows"] if isinstance(seen, dict) else round(seen / 512)
    row = {"family": family, "name": name, "bits": bits, "taken from": file, "calibration_windows": windows}
    kept = {key: scores[key] for key in ("perplexity_before", "perplexity", "kl")}
    return {**row, "evaluation": head["evaluation"]["digest"], **kept}


def _solvers(anatomy: Anatomy) -> list[dict[str, Any]]:
    head = _read("solvers_embedded.json")
    families = {"round, whole range": "round to nearest", "obs, best range": "gptq", "auto-round": "auto-round (peer)"}
    families |= {name: name for name in ("descent", "auto_round", "auto_round, distilled", "auto_round, bits mixed")}
    found = []
    for row in head["rows"]:
        what = f"{row['bits']} bits{'' if row['symmetric'] else ', zero points'}"
        grid = {"int": {"bits": row["bits"], "group_size": 32, "symmetric": row["symmetric"]}}
        for name, scores in row["results"].items():
            if name in families:
                bits = scores.get("bits_per_weight") or true_bits(anatomy, [into(grid)])
                found.append(_row(families[name], f"{families[name]}, {what}", bits, "solvers_embedded.json", head, scores))
    return found


def _trained(anatomy: Anatomy) -> list[dict[str, Any]]:
    head = _read("quantization_aware.json")
    found = []
    for row in head["rows"]:
        steps = complete(parse_recipe(f"steps: [{row['recipe']}]")).steps
        if steps[-1].method in ("distill", "next_token"):
            bits = true_bits(anatomy, [{steps[0].method: steps[0].settings}])
            found.append(_row("trained", row["name"], bits, "quantization_aware.json", head, row))
    return found


def _peer(file: str, peer: str) -> list[dict[str, Any]]:
    head = _read(file)
    found = []
    for row in head["rows"]:
        words = row["request"].removeprefix("gptq ").split()
        if words[0].isdigit():
            bits = int(words[0])
            grouped = bits + 16 / 32 + (0 if words[2] == "symmetric" else bits / 32)
            found.append(_row(f"{peer} (peer)", f"{peer}, {row['request']}", grouped, file, head, row[peer]))
    return found


def true_bits(anatomy: Anatomy, steps: list[dict[str, Any]]) -> float:
    """Bits a weight that the container takes for what these steps lead to."""
    size = weights = 0
    (step,) = resolve(complete(parse_recipe({"steps": steps})), anatomy)
    for linear in anatomy.linears:
        method = step.methods[linear.path]
        assert isinstance(method, Preset)
        size += estimate(method.expand().target.outline(linear.out_features, linear.in_features))
        weights += linear.out_features * linear.in_features
    return 8 * size / weights


def _read(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text())


# -- the chart ---------------------------------------------------------------------------------------------------------

STYLES = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def draw(rows: list[dict[str, Any]]) -> None:
    """Perplexity and KL divergence over bits, a mark for each family."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    colours = matplotlib.colormaps["tab20"].colors
    with matplotlib.rc_context({"svg.hashsalt": "thrifty", "font.size": 10, "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        panels = figure.subplots(1, 2)
        for number, family in enumerate(families):
            points = sorted((row["bits"], row["perplexity"]["value"], row["kl"]["value"]) for row in rows if row["family"] == family)
            peer = "(peer)" in family
            for panel, place in zip(panels, (1, 2), strict=True):
                panel.plot(
                    [point[0] for point in points],
                    [point[place] for point in points],
                    STYLES[number % len(STYLES)],
                    color="black" if peer else colours[number % len(colours)],
                    fillstyle="none" if peer else "full",
                    ms=7 if peer else 5,
                    label=family,
                )
        before = rows[0]["perplexity_before"]["value"]
        panels[0].axhline(before, color="#888888", ls="--", lw=1)
        panels[0].set(ylabel="perplexity, held-out text", ylim=(before * 0.98, before * 1.8))
        panels[1].set(ylabel="KL divergence from the original, nats a token", yscale="log")
        for panel in panels:
            panel.set(xlabel="bits a weight, everything counted", xlim=(1.5, 9))
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
