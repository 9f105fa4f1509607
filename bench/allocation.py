"""What the model inside the package loses when its matrices get different bits at the same mean: every way to share beside equal bits.

Means are of codes of 2, 3, 4, 5, 6 or 8 bits; the scale of each group of 32 adds half a bit. The curves are measured once in each of two
ways, as `mix` measures them: by what the model predicts, and by the outputs of blocks. All ways to share choose from the first, `optimal`
from the second, too. Then llama.cpp's K-quants at the size of Q4_K, scales counted. All results are judged on the same held-out windows.

Usage: python bench/allocation.py            (writes bench/results/allocation.json)
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import thrifty
from thrifty.api.request import Request, prepare
from thrifty.measure.hardware import hardware
from thrifty.pipeline.folder import RunFolder
from thrifty.pipeline.mixing import decided, losses_of
from thrifty.pipeline.stored import write_block
from thrifty.pipeline.walk import Walk

BUILD = Path(__file__).parent / "build" / "allocation"
RESULT = Path(__file__).parent / "results" / "allocation.json"
DATA = {"calibration": {"samples": 32, "tokens": 512}, "evaluation": {"samples": 32, "tokens": 512}}
SCALES = {"int": 16 / 32, "k_quant": 0.0}
"""Bits that a kind of targets takes beside the mean that is asked for."""
INTO = {
    "int": [{"int": {"bits": bits, "range": "mse"}} for bits in (2, 3, 4, 5, 6, 8)],
    "k_quant": [{"k_quant": {"type": kind}} for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")],
}
JOBS = [
    *(("int", mean, share, "loss") for mean in (3.0, 3.5, 4.0) for share in ("optimal", "polaron", "baq_layers")),
    *(("int", mean, "optimal", "block") for mean in (3.0, 3.5, 4.0)),
    *(("int", mean, "uniform", "loss") for mean in (3.0, 4.0)),
    *(("k_quant", 4.5, share, "loss") for share in ("optimal", "uniform")),
]


def main() -> None:
    wanted = dict.fromkeys((kind, weigh) for kind, _, _, weigh in JOBS)
    found = {pair: curves(*pair) for pair in wanted}
    seconds = {" by ".join(pair): spent for pair, (_, spent) in found.items()}
    told = {"hardware": hardware(), "threads": torch.get_num_threads(), "data": DATA, "seconds of the curves": seconds, "rows": []}
    for kind, mean, share, weigh in JOBS:
        told["rows"].append(measure(kind, mean, share, weigh, found[kind, weigh][0]))
        RESULT.write_text(json.dumps(told, indent=2) + "\n")


def job_of(kind: str, mean: float, share: str, weigh: str) -> Any:
    """The job of one mix."""
    mix = {"budget": mean + SCALES[kind], "into": INTO[kind], "share": share, "weigh": weigh}
    return prepare(Request(recipe={**DATA, "steps": [{"mix": mix}]}, format="thrifty"))


def curves(kind: str, weigh: str) -> tuple[dict[str, list[float]], float]:
    """What each target loses, by linear, and the seconds that measuring it took."""
    job, folder = job_of(kind, 4.5, "optimal", weigh), RunFolder(BUILD / f"curves of {kind} by {weigh}")
    digest = job.source.digest()
    walk = Walk(job.source, job.work, job.setting, job.calibration, job.evaluation, folder, digest, job.packing, write_block)
    began = time.perf_counter()
    losses, _ = losses_of(walk, job.key(digest))
    return losses, time.perf_counter() - began


def measure(kind: str, mean: float, share: str, weigh: str, losses: dict[str, list[float]]) -> dict[str, Any]:
    """One way to share; a result that is there is not made again."""
    out = BUILD / f"{kind} {mean} {share} {weigh}"
    job = job_of(kind, mean, share, weigh)
    treatments = decided(job.source, job.work, losses, type(job.packing)).treatments
    into = {path: {chosen[-1].target.name: chosen[-1].target.settings()} for path, chosen in treatments.items()}
    if not (out / "certificate.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        by = {"obs": {"act_order": True}}
        step = {"solve": {"by": by, "into": INTO[kind][0]}, "override": {path: {"into": target} for path, target in into.items()}}
        thrifty.compress(recipe={**DATA, "steps": [step]}, out=out, format="thrifty", speed=False)
    certificate = json.loads((out / "certificate.json").read_text())
    layers = certificate["layers"]
    row = {
        "kind": kind,
        "mean": mean,
        "share": share,
        "weigh": weigh,
        "bits": sum(layer["bits"] * layer["weights"] for layer in layers) / sum(layer["weights"] for layer in layers),
        "linears": {f"{count:g}": number for count, number in sorted(Counter(layer["bits"] for layer in layers).items())},
        "perplexity": certificate["perplexity"],
        "kl": certificate["kl"],
        "seconds": certificate["seconds"],
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
