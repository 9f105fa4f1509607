"""Pruning at 50, 60 and 70 % and 2:4 by every method, with and without back-solving, and shares of sparsity by block at 70 %.

Beside the shares stands what each block costs when it alone is pruned at 70 %, and what the ways to share look at.

Usage: python bench/sparse.py                                                          the model inside the package
       python bench/sparse.py --model ../shared/models/shakespeare-1m \\
           --text ../shared/data/tiny-shakespeare/input.txt --tokens 256               another model; nine tenths of its text calibrate

       add --collect to write the rows that are there, and make none, or --missing to make only those that the results lack

Writes bench/results/sparse.json, in which each model has a part. Every method gets the same calibration windows, and its result the same
held-out ones; differences are taken window by window, so that an interval of one that holds 0 means that neither is better. A row that is
in bench/build/sparse is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from judge import BUILD, RESULTS, Judge, beside, figures

from thrifty.api.inspecting import spectra
from thrifty.api.request import Request, prepare
from thrifty.measure.hardware import hardware
from thrifty.measure.language import WindowScores
from thrifty.pipeline.run import run

HOME = BUILD / "sparse"
AMOUNTS = (0.5, 0.6, 0.7, "2:4")
METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "awp", "alps")
SOLVERS = ("awp", "alps")
"""Those of them that are no step of their own."""
SHARED = ("wanda", "sparsegpt")
AT = 0.7
HALF = -2
"""Stands for half of the smallest width of a model."""

SHARES: dict[str, Any] = {
    "uniform": "uniform",
    "owl": "owl",
    "alpha_pruning": "alpha_pruning",
    "farms": "farms",
    "block_influence": "block_influence",
    "alpha_pruning, epsilon 0.1": {"alpha_pruning": {"epsilon": 0.1}},
    "farms, epsilon 0.1": {"farms": {"epsilon": 0.1}},
    "farms, half windows, epsilon 0.1": {"farms": {"epsilon": 0.1, "side": HALF}},
    "farms, half windows, median, epsilon 0.1": {"farms": {"epsilon": 0.1, "side": HALF, "rule": "median"}},
}
"""`half windows`: half as wide as the narrowest matrix, so that every matrix has several."""
PAIRS = (
    ("farms", "uniform"),
    ("farms", "alpha_pruning"),
    ("farms, epsilon 0.1", "uniform"),
    ("farms, epsilon 0.1", "alpha_pruning, epsilon 0.1"),
    ("farms, half windows, epsilon 0.1", "uniform"),
    ("owl", "uniform"),
    ("block_influence", "uniform"),
)


def step(method: str, amount: float | str, back: bool, share: Any = "uniform") -> dict[str, Any]:
    """The step of a recipe."""
    if method not in SOLVERS:
        return {method: {**({"pattern": amount} if isinstance(amount, str) else {"sparsity": amount}), "share": share, "back_solve": back}}
    into = {"n_m": {"n": 2, "m": 4}} if isinstance(amount, str) else {"top_k": {"sparsity": amount}}
    return {"solve": {"by": {"back_solve": {"by": method}} if back else method, "into": into, "share": share}}


PARTS = ("amounts", "shares", "alone")
"""What results hold of each model."""


class Missing(Exception):
    """A row that is not there, where none is to be made."""


def measure(judge: Judge, name: str, wanted: dict[str, Any], whole: bool = True) -> tuple[WindowScores, dict[str, Any]]:
    """Scores of one result, and the shares of zeros of its blocks. whole: whether every matrix is pruned."""
    out = HOME / judge.model.name / name
    if not (out / "row.pt").exists():
        if judge.collects:
            raise Missing
        shutil.rmtree(out, ignore_errors=True)
        rows = {"input_ids": judge.rows["calibration"].inputs["input_ids"]}
        job = prepare(Request(judge.model, {"steps": [wanted]}, calibration=rows))
        certificate = run(job, out, force=True, finish=lambda folder, certificate: None)
        zeros: dict[int, list[float]] = {}
        for layer in certificate.layers:
            block = zeros.setdefault(layer.block, [0.0, 0.0])
            block[0] += layer.sparsity * layer.weights
            block[1] += layer.weights
        told = {
            "sparsity": sum(zero for zero, _ in zeros.values()) / sum(size for _, size in zeros.values()),
            "sparsity_by_block": [round(zero / size, 4) for zero, size in zeros.values()],
            "seconds": {name: certificate.phases[name] for name in ("solve", "choose") if name in certificate.phases},
        }
        torch.save({"scores": vars(judge.scores(out, whole)), "told": told}, out / "row.pt")
        (out / "model.safetensors").unlink()
    saved = torch.load(out / "row.pt", weights_only=True)
    return WindowScores(**saved["scores"]), saved["told"]


def compared(judge: Judge, amount: float | str, method: str) -> dict[str, Any]:
    """One method at one amount, and what back-solving changes."""
    plain, back = (measure(judge, f"{amount} {method} {back}".replace(":", "of"), step(method, amount, back)) for back in (False, True))
    return {
        "amount": amount,
        "method": method,
        "plain": {**figures(plain[0]), **plain[1]},
        "back_solve": {**figures(back[0]), **back[1]},
        "back_solve minus plain": beside(back[0], plain[0]),
    }


def shared(judge: Judge, method: str) -> dict[str, Any]:
    """Every way to share sparsity out among the blocks."""
    found = {name: measure(judge, f"{AT} {method} {name}", step(method, AT, False, fitted(judge, share))) for name, share in SHARES.items()}
    return {
        "amount": AT,
        "method": method,
        "results": {name: {**figures(scores), **told} for name, (scores, told) in found.items()},
        "differences": {f"{ours} minus {theirs}": beside(found[ours][0], found[theirs][0]) for ours, theirs in PAIRS},
    }


def fitted(judge: Judge, share: Any) -> Any:
    """A way to share with the windows that fit the model."""
    if isinstance(share, dict) and share.get("farms", {}).get("side") == HALF:
        least = min(min(linear.out_features, linear.in_features) for linear in judge.source.anatomy.linears)
        return {"farms": {**share["farms"], "side": least // 2}}
    return share


def alone(judge: Judge, number: int, block: str) -> dict[str, Any]:
    """What a block costs when no other is pruned, and the exponents of its spectra."""
    wanted = {**step("wanda", AT, False), "only": [f"{block}.*"]}
    scores, told = measure(judge, f"{AT} wanda only {block}", wanted, whole=False)
    looked = exponents(judge.model)[number]
    return {"block": block, "alpha": looked["alpha"], "farms_alpha": looked["farms_alpha"], **figures(scores), **told}


@cache
def exponents(model: Path) -> list[dict[str, Any]]:
    """Of every block."""
    return spectra(model)["blocks"]


def rows(judge: Judge) -> Iterator[tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]]:
    """(the part of the results that a row belongs to, what tells it from the others there, what makes it)."""
    yield from (("shares", {"method": method}, partial(shared, judge, method)) for method in SHARED)
    blocks = enumerate(judge.source.anatomy.blocks)
    yield from (("alone", {"block": block.path}, partial(alone, judge, number, block.path)) for number, block in blocks)
    pairs = ((amount, method) for amount in AMOUNTS for method in METHODS)
    yield from (("amounts", {"amount": amount, "method": method}, partial(compared, judge, amount, method)) for amount, method in pairs)


def known(part: dict[str, Any], key: str, names: dict[str, Any]) -> dict[str, Any] | None:
    """A row that earlier results hold."""
    return next((row for row in part.get(key, ()) if names.items() <= row.items()), None)


def split(text: Path) -> dict[str, Path]:
    """The first nine tenths of a text to calibrate on, the rest to judge on."""
    whole = text.read_text()
    parts = {"calibration": whole[: int(0.9 * len(whole))], "evaluation": whole[int(0.9 * len(whole)) :]}
    for purpose, part in parts.items():
        (HOME / f"{purpose}.txt").write_text(part)
    return {purpose: HOME / f"{purpose}.txt" for purpose in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of another model")
    parser.add_argument("--text", type=Path, help="its text")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=32, help="windows to calibrate on, and to judge on")
    parser.add_argument("--collect", action="store_true", help="write the rows that are there, and make none")
    parser.add_argument("--missing", action="store_true", help="make only rows that the results lack")
    arguments = parser.parse_args()
    HOME.mkdir(parents=True, exist_ok=True)
    judge = Judge(arguments.model, arguments.windows, arguments.tokens, split(arguments.text) if arguments.text else None)
    judge.collects = arguments.collect
    name = "embedded" if arguments.model is None else arguments.model.name
    path = RESULTS / "sparse.json"
    described = judge.describe()
    before = json.loads(path.read_text()).get(name, {}) if arguments.missing and path.exists() else {}
    head = {**described, "hardware": hardware(), "load": os.getloadavg(), "threads": torch.get_num_threads()}
    same = all(before.get(key) == value for key, value in described.items())  # the model and its windows
    wanted = list(rows(judge))
    made = [known(before, key, names) if same else None for key, names, _ in wanted]
    for place, (_, _, make) in enumerate(wanted):
        if made[place] is None:
            try:
                made[place] = make()
            except Missing:
                continue
            found = json.loads(path.read_text()) if path.exists() else {}
            by_key = {part: [row for row, (key, _, _) in zip(made, wanted, strict=True) if row and key == part] for part in PARTS}
            path.write_text(json.dumps({**found, name: {**head, **by_key}}, indent=2) + "\n")
            print(json.dumps(made[place]), flush=True)


if __name__ == "__main__":
    main()
