"""What a model loses when its matrices get different bits at the same mean: every way to share beside equal bits.

Means are of codes of 2, 3, 4, 5, 6 or 8 bits; the scale of each group of 32 adds half a bit. The curves are measured once in each of two
ways, as `mix` measures them: by what the model predicts, and by the outputs of blocks. All ways to share choose from the first, `optimal`
from the second, too. Then the same with larger groups to choose from, too, at the same size, and llama.cpp's K-quants at the size of Q4_K,
scales counted. All results are judged on the same held-out windows.

Usage: python bench/allocation.py                          the model inside the package (writes bench/results/allocation.json)
       python bench/allocation.py --shakespeare ../shared   some of it for shakespeare-1m, which nothing was tuned on, from that folder
                                                            (writes bench/results/allocation_shakespeare.json)
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from second_model import shakespeare

import thrifty
from thrifty.api.request import Request, prepare
from thrifty.measure.hardware import hardware
from thrifty.pipeline.folder import RunFolder
from thrifty.pipeline.mixing import decided, losses_of
from thrifty.pipeline.stored import write_block
from thrifty.pipeline.walk import Walk

BUILD = Path(__file__).parent / "build" / "allocation"
RESULTS = Path(__file__).parent / "results"
SCALES = {"int": 16 / 32, "int, groups of 32 to 128": 16 / 32, "k_quant": 0.0}
"""Bits that a kind of targets takes beside the mean that is asked for."""
INTO = {
    "int": [{"int": {"bits": bits, "range": "mse"}} for bits in (2, 3, 4, 5, 6, 8)],
    "int, groups of 32 to 128": [
        {"int": {"bits": bits, "group_size": size, "range": "mse"}}
        for bits, size in [*((bits, 32) for bits in (2, 3, 4, 5, 6, 8)), *((bits, size) for bits in (2, 3, 4, 5) for size in (64, 128))]
    ],
    "k_quant": [{"k_quant": {"type": kind}} for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")],
}
JOBS = [
    *(("int", mean, share, "loss") for mean in (3.0, 3.5, 4.0) for share in ("optimal", "polaron", "baq_layers")),
    *(("int", mean, "optimal", "block") for mean in (3.0, 3.5, 4.0)),
    *(("int", mean, "uniform", "loss") for mean in (3.0, 4.0)),
    *(("int, groups of 32 to 128", mean, "optimal", "loss") for mean in (2.0, 2.5, 3.0, 3.5, 4.0)),
    ("int", 2.5, "optimal", "loss"),
    ("int", 2.0, "uniform", "loss"),
    *(("k_quant", 4.5, share, "loss") for share in ("optimal", "uniform")),
]


SECOND = [
    ("int", mean, share, weigh) for mean in (3.0, 4.0) for share, weigh in (("optimal", "loss"), ("optimal", "block"), ("uniform", "loss"))
]
"""What is measured of the second model."""


@dataclass(frozen=True)
class Subject:
    """A model (None: the one inside the package), its data as in a recipe, and where what is made of it stays."""

    model: Path | None
    data: dict[str, Any]
    home: Path

    def job(self, kind: str, mean: float, share: str, weigh: str) -> Any:
        """The job of one mix."""
        mix = {"budget": mean + SCALES[kind], "into": INTO[kind], "share": share, "weigh": weigh}
        return prepare(Request(self.model, {**self.data, "steps": [{"mix": mix}]}, format="thrifty"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, metavar="SHARED", help="folder with models/shakespeare-1m and data/tiny-shakespeare")
    shared = parser.parse_args().shakespeare
    if shared is None:
        data = {purpose: {"samples": 32, "tokens": 512} for purpose in ("calibration", "evaluation")}
        subject, jobs, result = Subject(None, data, BUILD / "embedded"), JOBS, RESULTS / "allocation.json"
    else:
        model, text = shakespeare(shared)
        data = {purpose: {"text": str(file), "samples": 32, "tokens": 256} for purpose, file in text.items()}
        subject, jobs, result = Subject(model, data, BUILD / "shakespeare"), SECOND, RESULTS / "allocation_shakespeare.json"
    wanted = dict.fromkeys((kind, weigh) for kind, _, _, weigh in jobs)
    found = {pair: curves(subject, *pair) for pair in wanted}
    told = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "data": {purpose: {key: part[key] for key in ("samples", "tokens")} for purpose, part in subject.data.items()},
        "seconds of the curves": {" by ".join(pair): spent for pair, (_, spent) in found.items()},
        "rows": [],
    }
    for kind, mean, share, weigh in jobs:
        told["rows"].append(measure(subject, kind, mean, share, weigh, found[kind, weigh][0]))
        result.write_text(json.dumps(told, indent=2) + "\n")


def curves(subject: Subject, kind: str, weigh: str) -> tuple[dict[str, list[float]], float]:
    """What each target loses, by linear, and the seconds that measuring it took."""
    job, folder = subject.job(kind, 4.5, "optimal", weigh), RunFolder(subject.home / f"curves of {kind} by {weigh}")
    digest = job.source.digest()
    walk = Walk(job.source, job.work, job.setting, job.calibration, job.evaluation, folder, digest, job.packing, write_block)
    return losses_of(walk, job.key(digest))


def measure(subject: Subject, kind: str, mean: float, share: str, weigh: str, losses: dict[str, list[float]]) -> dict[str, Any]:
    """One way to share; a result that is there is not made again."""
    out = subject.home / f"{kind} {mean} {share} {weigh}"
    job = subject.job(kind, mean, share, weigh)
    treatments = decided(job.source, job.work, losses, type(job.packing)).treatments
    into = {path: {chosen[-1].target.name: chosen[-1].target.settings()} for path, chosen in treatments.items()}
    if not (out / "certificate.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        by = {"obs": {"act_order": True}}
        step = {"solve": {"by": by, "into": INTO[kind][0]}, "override": {path: {"into": target} for path, target in into.items()}}
        thrifty.compress(subject.model, {**subject.data, "steps": [step]}, out=out, format="thrifty", speed=False)
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
