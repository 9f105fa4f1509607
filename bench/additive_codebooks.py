"""The search for codes of additive codebooks beside that of the AQLM authors: seconds, and what is lost, on the same tensors.

Usage: bench/environments.sh aqlm; python bench/additive_codebooks.py [--rounds 5] [--threads 2]
(writes bench/results/additive_codebooks.json)

Both searches get the same matrix, Gram matrix, codebooks, scales, codes to start from and beam, and make one pass. `outputs` weighs errors
by the Gram matrix, `weights` counts them all alike. The two take turns within a round; seconds are medians over the rounds, and so is the
ratio of the two in one round. The matrices are linears of the model inside the package with its calibration text, and random ones with
correlated inputs. `lost` is the loss after the pass as a share of the energy of the output, or of the matrix.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from thrifty.base.records import Problem
from thrifty.core.codebooks.additive import beam_search
from thrifty.core.codebooks.gram import Coded, search_codes
from thrifty.data import default_model, load_rows
from thrifty.measure.hardware import hardware, versions
from thrifty.models import get_weight, linear_modules, open_model, run_block
from thrifty.pipeline.readings import gather
from thrifty.pipeline.watching import watching
from thrifty.weights.target.additive import Additive

HERE = Path(__file__).parent
PEER = HERE / "build" / "aqlm"
CASES = ((2, 8, 1), (2, 8, 4), (4, 4, 1), (4, 4, 8))
"""Codebooks, bits of a code, and the width of the beam."""

Search = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One matrix and how it is searched."""

    name: str
    weight: Tensor
    gram: Tensor
    target: Additive


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", type=int, nargs="*", default=[1024], help="widths of random matrices")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "additive_codebooks.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(PEER))
    rows = [row for case in cases(arguments) for row in measure(case, arguments.rounds)]
    summary = {"hardware": hardware(), "versions": versions(), "device": arguments.device, "threads": arguments.threads, "rows": rows}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=2) + "\n")


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    matrices = [*real(), *(random(width) for width in arguments.random)]
    for codebooks, bits, beam in CASES:
        for name, weight, gram in matrices:
            target = Additive(codebooks, bits, beam=beam)
            yield Case(name, weight.to(arguments.device), gram.to(arguments.device), target)


def measure(case: Case, rounds: int) -> Iterator[dict[str, Any]]:
    start = first(case)
    for kind, ours, theirs in (("outputs", *by_outputs(case, start)), ("weights", *by_weights(case, start))):
        gram = case.gram if kind == "outputs" else torch.eye(len(case.gram), device=case.gram.device)
        found = {"ours": [ours], "theirs": [theirs]}
        seconds: dict[str, list[float]] = {name: [] for name in found}
        codes = {name: search() for name, (search,) in found.items()}  # and warm
        for number in range(rounds):
            for name in sorted(found, reverse=bool(number % 2)):
                seconds[name].append(timed(found[name][0]))
        lost = {name: share(case.weight, gram, replace(start, codes=one)) for name, one in codes.items()}
        row = {
            "matrix": case.name,
            "shape": list(case.weight.shape),
            "codebooks": case.target.codebooks,
            "bits": case.target.bits,
            "beam": case.target.beam,
            "counted": kind,
            "seconds": {name: round(median(times), 4) for name, times in seconds.items()},
            "times_faster": round(median(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)), 2),
            "lost": {"start": share(case.weight, gram, start), **lost},
        }
        print(json.dumps(row), flush=True)
        yield row


def first(case: Case) -> Coded:
    """What both start from: codebooks by k-means, and the codes of a beam of one."""
    points = replace(case.target, beam=1).fit(case.weight, case.gram.diagonal())
    points.project(case.weight)
    return points.coded


def by_outputs(case: Case, start: Coded) -> tuple[Search, Search]:
    from src.beam_search_xtx import beam_search_optimal_codes

    def ours() -> Tensor:
        return search_codes(case.weight, case.gram, start, case.target.beam).codes

    arguments = peer_arguments(case, start)

    def theirs() -> Tensor:
        return beam_search_optimal_codes(XTX=case.gram, verbose=False, **arguments)

    return ours, theirs


def by_weights(case: Case, start: Coded) -> tuple[Search, Search]:
    from src.beam_search_l2 import beam_search_optimal_codes

    size, shape = case.target.group_size, start.codes.shape

    def ours() -> Tensor:
        groups = (case.weight / start.scale).view(-1, size)
        return beam_search(groups, start.codebooks, case.target.beam, start.codes.flatten(0, 1)).view(shape)

    arguments = peer_arguments(case, start)

    def theirs() -> Tensor:
        return beam_search_optimal_codes(**arguments)

    return ours, theirs


def peer_arguments(case: Case, start: Coded) -> dict[str, Any]:
    return {
        "reference_weight": case.weight,
        "codebooks": start.codebooks[:, :, None],
        "prev_codes": start.codes.to(torch.int32),
        "scales": start.scale[..., None, None],
        "beam_size": case.target.beam,
    }


def share(weight: Tensor, gram: Tensor, coded: Coded) -> float:
    """The loss as a share of the energy."""
    error = weight - replace(coded, codes=coded.codes.long()).decode()
    return float(((error @ gram) * error).sum() / ((weight @ gram) * weight).sum())


def timed(search: Search) -> float:
    wait()
    begun = time.perf_counter()
    search()
    wait()
    return time.perf_counter() - begun


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random(width: int) -> tuple[str, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(2 * width, width // 8, generator=generator) @ torch.randn(width // 8, width, generator=generator)
    inputs = (shared / (width / 8) ** 0.5 + 0.5 * torch.randn(2 * width, width, generator=generator)) * torch.randn(
        width, generator=generator
    ).exp()
    problem = Problem(torch.randn(width, width, generator=generator), inputs.T @ inputs / len(inputs), len(inputs))
    return "random", problem.weight, problem.gram


def real() -> Iterator[tuple[str, Tensor, Tensor]]:
    """The up and down projections of the first block of the embedded model."""
    folder = default_model()
    source = open_model(folder)
    rows = load_rows(
        folder=folder, config=source.config, kind="causal_lm", purpose="calibration", text=(), samples=16, tokens=512, seed=0
    ).inputs
    shell = source.shell(torch.float32)
    block = source.anatomy.blocks[0]
    call = shell.calls({name: tensor[:1] for name, tensor in rows.items()}, {})[block.path]
    module = source.block(block, torch.float32)
    linears, grams = linear_modules(module, block), {}

    def keep(stage: Any, inputs: Tensor) -> None:
        grams.update({linear.path: gather(inputs).gram for linear in stage.linears})

    with watching(block, linears, module, keep, keep):
        run_block(module, shell.enter(rows, block.chain, {}), call)
    for path, gram in grams.items():
        if path.endswith(("up_proj", "down_proj")):
            yield path, get_weight(linears[path]), gram


if __name__ == "__main__":
    with torch.no_grad():
        main()
