"""What the model inside the package loses when its matrices get different bits at the same mean: every way to share beside equal bits.

Means are of codes of 2, 3, 4, 5, 6 or 8 bits; the scale of each group of 32 adds half a bit. The curves are measured once in each of two
ways, as `mix` measures them: by what the model predicts, and by the outputs of blocks. All ways to share choose from the first, `optimal`
from the second, too. All results are judged on the same held-out windows.

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
SCALES = 16 / 32
JOBS = [
    *((mean, share, "loss") for mean in (3.0, 3.5, 4.0) for share in ("optimal", "polaron", "baq_layers")),
    *((mean, "optimal", "block") for mean in (3.0, 3.5, 4.0)),
    *((mean, "uniform", "loss") for mean in (3.0, 4.0)),
]


def main() -> None:
    found = {weigh: curves(weigh) for weigh in ("loss", "block")}
    seconds = {weigh: spent for weigh, (_, spent) in found.items()}
    told = {"hardware": hardware(), "threads": torch.get_num_threads(), "data": DATA, "seconds of the curves": seconds, "rows": []}
    for mean, share, weigh in JOBS:
        told["rows"].append(measure(mean, share, weigh, found[weigh][0]))
        RESULT.write_text(json.dumps(told, indent=2) + "\n")


def job_of(mean: float, share: str, weigh: str) -> Any:
    """The job of one mix."""
    return prepare(Request(recipe={**DATA, "steps": [{"mix": {"budget": mean + SCALES, "share": share, "weigh": weigh}}]}))


def curves(weigh: str) -> tuple[dict[str, list[float]], float]:
    """What each number of bits loses, by linear, and the seconds that measuring it took."""
    job, folder = job_of(3.0, "optimal", weigh), RunFolder(BUILD / f"curves by {weigh}")
    digest = job.source.digest()
    walk = Walk(job.source, job.work, job.setting, job.calibration, job.evaluation, folder, digest, job.packing, write_block)
    began = time.perf_counter()
    losses, _ = losses_of(walk, job.key(digest))
    return losses, time.perf_counter() - began


def measure(mean: float, share: str, weigh: str, losses: dict[str, list[float]]) -> dict[str, Any]:
    """One way to share; a result that is there is not made again."""
    out = BUILD / f"{mean} {share} {weigh}"
    job = job_of(mean, share, weigh)
    bits = {path: chosen[-1].target.bits for path, chosen in decided(job.source, job.work, losses).treatments.items()}
    if not (out / "certificate.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        step = {
            "solve": {"by": "obs", "into": {"int": {"bits": 4, "range": "mse"}}},
            "override": {path: {"into": {"int": {"bits": count, "range": "mse"}}} for path, count in bits.items()},
        }
        thrifty.compress(recipe={**DATA, "steps": [step]}, out=out, speed=False)
    certificate = json.loads((out / "certificate.json").read_text())
    layers = certificate["layers"]
    row = {
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
