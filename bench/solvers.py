"""Solvers of the same integer grids at 2, 3 and 4 bits in groups of 32, beside auto-round: perplexity, KL divergence and time.

Usage: python bench/solvers.py                          the model inside the package
       python bench/solvers.py --shakespeare ../shared   the model shakespeare-1m on its own text, both from that folder
       add --peer 2 4 for auto-round at these widths (bench/environments.sh auto-round first), --bits 2 and --grids symmetric for some rows
       only, --only "auto_round, bits mixed" for some solvers: the file keeps what it holds of others

Writes bench/results/solvers_<model>.json; results that are in bench/build/solvers are scored again, not made again. Every solver gets the
same calibration windows, and its result the same held-out ones; differences are taken window by window, so that an interval of one that
holds 0 means that neither is better. Seconds of `solve` and `heal` are those of these phases alone, `call` those of the whole call without
scoring; they are worth something only beside each other.

`bits mixed` is `mix`: bits and group sizes by matrix, all of them together in as many bits as the grid of the row, scales and zero points
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from judge import BUILD, RESULTS, Judge, beside, call, drop_scheme, figures, write
from second_model import shakespeare

from thrifty.api.request import Request, prepare
from thrifty.measure.hardware import hardware
from thrifty.pipeline.run import run

HOME = BUILD / "solvers"
PEER = "auto-round"
TRAINED = "auto_round, distilled"
MIXED = "auto_round, bits mixed"
METHODS: dict[str, tuple[str, Any]] = {
    "round, whole range": ("minmax", {"by": "round"}),
    "obs, whole range": ("minmax", {"by": {"obs": {"act_order": True}}}),
    "obs, best range": ("mse", {"by": {"obs": {"act_order": True}}}),
    "descent": ("mse", {"by": "descent"}),
    "auto_round": ("mse", None),
    TRAINED: ("mse", None),
    MIXED: ("mse", None),
}
"""How a range is chosen, and the solver. `obs, best range` is what `gptq` means, `auto_round` is `descent` and then `learned_rounding`."""
RATES = {2: 3e-3, 3: 5e-4, 4: 5e-4}
"""By bits, the learning rate of `distill`, which comes after it in `auto_round, distilled`: 256 steps on the same windows, each of which is
seen eight times. The less is wrong, the smaller the steps that mend it; at 2 bits it is the step's own default."""
BASELINE = "obs, best range"
HEALED = ("auto_round", TRAINED, MIXED)
OURS = ("descent", *HEALED)
GRIDS = [(bits, 32) for bits in (2, 3, 4, 5, 6, 8)] + [(bits, group_size) for bits in (2, 3, 4) for group_size in (64, 128)]
"""(bits, group size) that are mixed."""


def grid(bits: int, symmetric: bool, rule: str = "mse", group_size: int = 32) -> dict[str, Any]:
    """Settings of a target."""
    return {"bits": bits, "group_size": group_size, "symmetric": symmetric, "range": rule}


def bits_per_weight(bits: int, symmetric: bool) -> float:
    """Of groups of 32, scales and zero points counted."""
    return bits + (16 if symmetric else 16 + bits) / 32


def steps_of(name: str, bits: int, symmetric: bool) -> list[dict[str, Any]]:
    """The recipe of a method."""
    rule, solver = METHODS[name]
    if name == MIXED:
        into = [{"int": grid(count, symmetric, group_size=group_size)} for count, group_size in GRIDS]
        budget = bits_per_weight(bits, symmetric)
        step = {"mix": {"budget": budget, "into": into, "by": "descent", "heal": "learned_rounding"}}
    elif solver is None:
        step = {"auto_round": grid(bits, symmetric, rule)}
    else:
        step = {"solve": {**solver, "into": {"int": grid(bits, symmetric, rule)}}}
    training = [{"distill": {"steps": 256, "rate": RATES[bits]}}] if name == TRAINED else []
    return [step, *training]


def measure(judge: Judge, name: str, bits: int, symmetric: bool) -> tuple[Any, dict[str, Any]]:
    """Scores of one solver's result, and what else is told of it: seconds, and the bits of a weight in the container."""
    out = HOME / judge.model.name / f"{bits} {symmetric} {name}"
    if not (out / "seconds.json").exists():
        rows = {"input_ids": judge.rows["calibration"].inputs["input_ids"]}
        job = prepare(Request(judge.model, {"steps": steps_of(name, bits, symmetric)}, format="thrifty", calibration=rows))
        start = time.perf_counter()
        certificate = run(job, out, force=True, finish=lambda folder, certificate: None)
        phases = {name: certificate.phases[name] for name in ("solve", "heal") if name in certificate.phases}
        seconds = {**phases, "call": time.perf_counter() - start}
        (out / "seconds.json").write_text(json.dumps(seconds))
    taken = json.loads((out / "certificate.json").read_text())["bits_per_weight"]
    return judge.scores(out), {"seconds": json.loads((out / "seconds.json").read_text()), "bits_per_weight": taken}


def peer(judge: Judge, bits: int, symmetric: bool) -> tuple[Any, dict[str, Any]]:
    """The same of auto-round."""
    out = HOME / judge.model.name / f"{bits} {symmetric} {PEER}"
    if not (out / "seconds.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        words = ("--bits", str(bits), *(() if symmetric else ("--asymmetric",)))
        cost = call(PEER, judge.model, judge.windows, out, *words)
        drop_scheme(out)
        (out / "seconds.json").write_text(json.dumps({"call": cost["call_seconds"]}))
    return judge.scores(out), {"seconds": json.loads((out / "seconds.json").read_text())}


def row(judge: Judge, bits: int, symmetric: bool, names: list[str], with_peer: bool, known: dict[str, Any]) -> dict[str, Any]:
    """Solvers on one grid, and ours against the strongest others. known: the same row as it was made before, of which the rest stays."""
    found = {name: measure(judge, name, bits, symmetric) for name in names}
    if with_peer:
        found[PEER] = peer(judge, bits, symmetric)
    return {
        "bits": bits,
        "symmetric": symmetric,
        "bits_per_weight": bits_per_weight(bits, symmetric),
        "results": known.get("results", {}) | {name: {**figures(scores), **told} for name, (scores, told) in found.items()},
        "differences": known.get("differences", {})
        | {
            f"{ours} minus {name}": beside(found[ours][0], found[name][0])
            for ours in OURS
            for name in (BASELINE, "descent", "auto_round", TRAINED, PEER)
            if ours in found and name in found and ours != name
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, metavar="SHARED", help="folder with models/shakespeare-1m and data/tiny-shakespeare")
    parser.add_argument("--windows", type=int, default=128, help="windows to calibrate on, and to judge on")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], choices=RATES)
    parser.add_argument(
        "--healed", type=int, nargs="*", default=[2, 3, 4], metavar="BITS", help="widths to run `auto_round` and training at"
    )
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD", help="the file keeps the others")
    parser.add_argument("--grids", nargs="+", default=["asymmetric", "symmetric"], choices=["asymmetric", "symmetric"])
    parser.add_argument("--peer", type=int, nargs="*", default=[], metavar="BITS", help="widths to run auto-round at")
    arguments = parser.parse_args()
    HOME.mkdir(parents=True, exist_ok=True)
    if arguments.shakespeare is None:
        judge, name = Judge(windows=arguments.windows), "embedded"
    else:
        model, text = shakespeare(arguments.shakespeare)
        judge, name = Judge(model, arguments.windows, 256, text), "shakespeare"
    path = RESULTS / f"solvers_{name}.json"
    rows = {(made["bits"], made["symmetric"]): made for made in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for bits in arguments.bits:
        for symmetric in (kind == "symmetric" for kind in arguments.grids):
            names = [name for name in arguments.only if bits in arguments.healed or name not in HEALED]
            rows[bits, symmetric] = row(judge, bits, symmetric, names, bits in arguments.peer, rows.get((bits, symmetric), {}))
            head = {**judge.describe(), "hardware": hardware(), "load": os.getloadavg(), "threads": torch.get_num_threads()}
            write(path.name, {**head, "rows": [rows[key] for key in sorted(rows)]})


if __name__ == "__main__":
    main()
