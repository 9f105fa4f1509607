"""Inputs rescaled and shifted by channel before they are rounded: the model computes the same on every architecture until they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import thrifty
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.base.anatomy import Anatomy, Space
from thrifty.measure.certificate import Certificate
from thrifty.models import Source, open_model, run_block
from thrifty.models.shell import main_output
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.packing import packing
from thrifty.pipeline.steps import Step, Work
from thrifty.pipeline.view import BlockView
from thrifty.weights.activation.static import Static
from thrifty.weights.preset.rtn import RTN
from thrifty.weights.transform.coqmoe import CoQMoE
from thrifty.weights.transform.smoothquant import SmoothQuant

LENGTH = 24
SHIFTED = {"opt", "phi", "gpt2", "vit", "clip", "siglip", "llava", "gemma3_vision"}
"""Architectures with normalizations and linears that have biases, in one of their towers at least."""


def spaces_of(anatomy: Anatomy) -> list[Space]:
    return [space for block in anatomy.blocks for space in block.spaces]


def rewritten(source: Source, rows: dict[str, torch.Tensor], steps: list[Step]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(what the model puts out, what it puts out once the spaces of every block are rewritten, how many tensors that changed)."""
    work = Work.of(steps)
    plain = packing(source, Work.of([Step("rtn", {linear.path: RTN(8, 0) for linear in source.anatomy.linears})]))
    shell, done, changed = source.shell(torch.float32), ({}, {}), 0
    for chain in source.anatomy.chains:
        calls = shell.calls(rows, done[0])
        before, after = (shell.enter(rows, chain, outputs) for outputs in done)
        for block in (block for block in source.anatomy.blocks if block.chain == chain):
            view, call = BlockView(source, block, plain), calls[block.path]
            run = BlockRun(view, call, work, torch.float32, 2, "block", torch.device("cpu"), 0)
            run._transform(after)
            changed += len(view.replacements())
            before = run_block(source.block(block, torch.float32), before, call)
            after = run_block(source.block(block, torch.float32, torch.device("cpu"), view.replacements()), after, call)
        done[0][chain], done[1][chain] = before, after
    return shell.finish(rows, done[0]), shell.finish(rows, done[1]), changed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_function_stays_the_same(architecture: str, tmp_path: Path) -> None:
    source = open_model(tiny(architecture, tmp_path / "model"))
    spaces = spaces_of(source.anatomy)
    assert any(space.normed and space.holds_shift for space in spaces) == (architecture in SHIFTED)
    linears = [linear.path for linear in source.anatomy.linears]
    steps = [Step(method.name, dict.fromkeys(linears, method)) for method in (CoQMoE(), RTN(8, 0, activation=Static(bits=4)))]
    before, after, changed = rewritten(source, inputs(architecture, 3, LENGTH), steps)
    assert bool(changed) == any(space.normed for space in spaces)
    assert float((after - before).abs().max()) <= 1e-4
    assert not changed or not torch.equal(after, before)


def test_a_transform_after_a_shift_looks_at_the_inputs_again(tmp_path: Path) -> None:
    source = open_model(tiny("vit", tmp_path / "model"))
    linears = [linear.path for linear in source.anatomy.linears]
    methods = (CoQMoE(), SmoothQuant(), RTN(8, 0, activation=Static(bits=4)))
    before, after, _ = rewritten(
        source, inputs("vit", 3, LENGTH), [Step(method.name, dict.fromkeys(linears, method)) for method in methods]
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", ["stage", "block"])
@pytest.mark.parametrize("architecture", ["vit", "opt", "llama"])
def test_readers_compute_what_the_walk_does(architecture: str, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.api.request.STAGE_BYTES", 0 if order == "block" else 1 << 40)
    monkeypatch.setattr("thrifty.api.request.STAGE_SHARE", 0 if order == "block" else 1)
    folder, rows = tiny(architecture, tmp_path / "model"), inputs(architecture, 4, LENGTH)
    steps = [{"coqmoe": {}}, {"rtn": {"bits": 8, "group_size": 0, "activation": {"static": {"bits": 4}}}}]
    judged = inputs(architecture, 2, LENGTH, seed=1)
    thrifty.compress(folder, {"steps": steps}, rows, evaluation=judged, out=tmp_path / "out", verify="full", speed=False)
    assert {layer.details["input_bits"] for layer in Certificate.read(tmp_path / "out").layers} == {4.0}
    with torch.no_grad():
        found, original = (main_output(thrifty.load(path, torch.float32)(**judged)) for path in (tmp_path / "out", folder))
    assert 0 < float((found - original).square().sum() / original.square().sum()) < 0.5


def test_where_no_inputs_are_rounded_the_plan_says_that_nothing_changes(tmp_path: Path) -> None:
    anatomy = open_model(tiny("vit", tmp_path / "model")).anatomy
    linears = [linear.path for linear in anatomy.linears]
    for activation, count in ((None, 1), (Static(), 0)):
        methods = (CoQMoE(), RTN(8, 0, activation=activation))
        said = Work.of([Step(method.name, dict.fromkeys(linears, method)) for method in methods]).idle(anatomy)
        assert len(said) == count and all("coqmoe changes nothing" in words for words in said)


def test_rounding_the_norm_costs_the_function_nothing(tmp_path: Path) -> None:
    """In bfloat16 the stored gain and bias decide what the consumers undo; what they add to their own biases is all that is rounded."""
    source = open_model(tiny("vit", tmp_path / "model", dtype=torch.bfloat16))
    block = source.anatomy.blocks[0]
    linears = [linear.path for linear in block.linears]
    steps = [Step(method.name, dict.fromkeys(linears, method)) for method in (CoQMoE(), RTN(8, 0, activation=Static(bits=4)))]
    rows = inputs("vit", 3, LENGTH)
    shell = source.shell(torch.float32)
    hidden, call = shell.enter(rows, block.chain, {}), shell.calls(rows, {})[block.path]
    view = BlockView(source, block, packing(source, Work.of([Step("rtn", dict.fromkeys(linears, RTN(8, 0)))])))
    run = BlockRun(view, call, Work.of(steps), torch.float32, 3, "block", torch.device("cpu"), 0)
    run._transform(hidden)
    before = run_block(source.block(block, torch.float32), hidden, call)
    after = run_block(source.block(block, torch.float32, torch.device("cpu"), view.replacements()), hidden, call)
    assert float((after - before).square().sum() / before.square().sum()) < 1e-5
