"""Rewrites of every architecture, with nothing rounded: the logits stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import ARCHITECTURES, DIFFUSION, inputs, tiny
from thrifty.models import Source, open_model
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.packing import packing
from thrifty.pipeline.steps import Work
from thrifty.pipeline.view import BlockView
from thrifty.weights.base import Transform
from thrifty.weights.transform.hadamard import Hadamard
from thrifty.weights.transform.hadanorm import HadaNorm
from thrifty.weights.transform.smoothquant import SmoothQuant

WITHOUT_VALUES = ("gpt2", "mamba", "mamba2", "flux")
WITH_BIASES = ("gpt2", "opt", "phi", "bert", "vit", "clip", "siglip", "llava", "gemma3_vision", *DIFFUSION)


def rewritten(source: Source, rows: dict[str, Tensor], transforms: tuple[Transform, ...]) -> tuple[Tensor, set[str]]:
    """(what the model puts out once its blocks are rewritten and nothing is solved, every disk key that changed)."""
    work = Work(tuple({linear.path: method for linear in source.anatomy.linears} for method in transforms), {}, {})
    shell, done, changed = source.shell(torch.float32), {}, set()
    for chain in source.anatomy.chains:
        hidden, calls = shell.enter(rows, chain, done), shell.calls(rows, done)
        for block in source.anatomy.blocks:
            if block.chain == chain:
                view = BlockView(source, block, packing(source, work))
                run = BlockRun(view, calls[block.path], work, torch.float32, 2, "stage", torch.device("cpu"), seed=0)
                hidden = run.compress(hidden)
                changed |= set(view.replacements())
        done[chain] = hidden
    return shell.finish(rows, done), changed


@pytest.mark.parametrize("architecture", (*ARCHITECTURES, *DIFFUSION))
def test_the_logits_stay(architecture: str, tmp_path: Path) -> None:
    source, rows = open_model(tiny(architecture, tmp_path)), inputs(architecture, 2, 12)
    plain, _ = rewritten(source, rows, ())
    for transforms, suits in (
        ((Hadamard(),), architecture not in WITHOUT_VALUES),
        ((HadaNorm(),), architecture in WITH_BIASES),
        ((Hadamard(), SmoothQuant(), HadaNorm(0.0)), True),
    ):
        found, changed = rewritten(source, rows, transforms)
        assert bool(changed) == suits
        assert float((found - plain).abs().max()) <= 1e-4
        work = Work(tuple({linear.path: method for linear in source.anatomy.linears} for method in transforms), {}, {})
        said = " ".join(work.idle(source.anatomy))
        assert suits or (f"{transforms[0].name} changes nothing" in said and source.anatomy.architecture in said)


def test_statistics_that_do_not_follow_are_taken_again(tmp_path: Path) -> None:
    """Smoothing after a rotation sees the largest rotated inputs, as it does in a model that was rotated before."""
    source, rows = open_model(tiny("llama", tmp_path)), inputs("llama", 2, 12)
    block = source.anatomy.blocks[0]
    space = next(space for space in block.spaces if space.name == "attention.output")
    seen: list[Tensor] = []

    class Noting(SmoothQuant):
        def rewrite(self, space, weights, statistics, treatment):  # type: ignore[no-untyped-def]
            if space.name == "attention.output":
                seen.append(statistics.absolute_max)
            return None

    for transforms in ((Noting(),), (Hadamard(), Noting())):
        rewritten(source, rows, transforms)
    before, after = seen[0], seen[2]
    assert bool(after.isfinite().all())
    assert float(after.square().sum()) < float(before.square().sum() * space.unit_size)
    assert not torch.allclose(before, after)


def test_norms_that_a_linear_moves_keep_the_function_where_it_is_rounded(tmp_path: Path) -> None:
    """In bfloat16 the stored biases decide what the consumers undo; the rows of the matrix are rounded once more, and that is all."""
    source, rows = open_model(tiny("dit", tmp_path, dtype=torch.bfloat16)), inputs("dit", 4, 12)
    plain, _ = rewritten(source, rows, ())
    found, changed = rewritten(source, rows, (SmoothQuant(), HadaNorm(0.5)))
    assert sum(key.endswith("norm1.linear.weight") for key in changed) == 2
    assert float((found - plain).square().sum() / plain.square().sum()) < 1e-4
