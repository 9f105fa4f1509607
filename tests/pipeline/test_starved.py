"""An expert that too few calibration tokens reached is calibrated on the inputs of all experts, and a warning names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from tests.pipeline.blocks import block_run, inputs_of
from tests.tiny import build, inputs
from thrifty.base.records import Problem
from thrifty.core.statistics import Statistics
from thrifty.pipeline.block import BlockRun
from thrifty.weights.base import solve

RECIPE = {"steps": [{"gptq": {"bits": 4, "group_size": 32}, "only": "*.experts.*"}]}
ROWS, LENGTH, RARE = 24, 24, 7
SHY = 2


def shy(name: str, folder: Path) -> Path:
    """A tiny model whose expert number `SHY` is chosen for the token `RARE` alone: the first channel of the hidden states is positive for
    every other token, and the expert's score falls with it."""
    model = build(name)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 1.0
        embedding[RARE, 0] = -1.0
        for path, parameter in model.named_parameters():
            if path.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter[..., 0, :] = 0  # nothing adds to that channel
            if path.endswith("layernorm.weight"):
                parameter[0] = 0.1  # and the other channels are not drowned
            if path.endswith("mlp.gate.weight"):
                parameter[:, 0] = parameter[SHY] = 0
                parameter[SHY, 0] = -1000.0
    model.save_pretrained(folder)
    return folder


def tokens(rare: int) -> dict[str, Tensor]:
    """Rows in which the token `RARE` stands `rare` times."""
    found = inputs("mixtral", ROWS, LENGTH)
    ids = found["input_ids"]
    ids[ids == RARE] = RARE + 1
    ids[:rare, 5] = RARE
    return found


def solved(run: BlockRun, paths: list[str], weights: list[Tensor], reads: Tensor) -> list[Tensor]:
    """What the run's own treatment makes of matrices that read these inputs."""
    statistics = Statistics.of(reads)
    problem = Problem(torch.cat(weights), statistics.gram, statistics.tokens, seed=run.seed)
    values = solve(problem, run.work.treatments[paths[0]][0]).values
    return list(values.split([len(weight) for weight in weights]))


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Equal but for codes that lie between two steps of the grid and follow the order of a sum."""
    assert (found != expected).float().mean() < 0.01


def original(run: BlockRun, path: str) -> Tensor:
    block = run.view.source.block(run.block, torch.float32)
    return block.get_submodule(path.removeprefix(run.block.path + ".")).weight.detach()


@pytest.mark.parametrize("order", ["stage", "block"])
@pytest.mark.parametrize("rare", [0, 10])
@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_the_inputs_of_all_experts_stand_in(name: str, rare: int, order: str, tmp_path: Path) -> None:
    run, rows = block_run(shy(name, tmp_path / "model"), RECIPE, tokens(rare), index=1, order=order)
    experts = run.block.experts.path
    gate, up, down = (f"{experts}.{SHY}.{role}_proj" for role in ("gate", "up", "down"))
    before = inputs_of(run, rows)
    assert len(before.get(gate, ())) == rare
    everything = before[run.block.routers[0].path]
    weights = {path: original(run, path) for path in (gate, up, down)}

    run.compress(rows)

    for path, expected in zip((gate, up), solved(run, [gate, up], [weights[gate], weights[up]], everything), strict=True):
        assert_alike(run.view.read(path), expected)
    # In stage order the first matrices of an expert are compressed before what it makes of its inputs is looked at.
    reads = {path: run.view.read(path) if order == "stage" else weights[path] for path in (gate, up)}
    neurons = silu(everything @ reads[gate].T) * (everything @ reads[up].T)
    (expected,) = solved(run, [down], [weights[down]], neurons)
    assert_alike(run.view.read(down), expected)
    assert [run.reports[path].tokens for path in (gate, up, down)] == [ROWS * LENGTH] * 3

    if rare:  # on its own tokens the result would be another
        own = before[gate]
        alone = solved(run, [gate, up], [weights[gate], weights[up]], own)
        alone += solved(run, [down], [weights[down]], silu(own @ reads[gate].T) * (own @ reads[up].T))
        assert all((run.view.read(path) != values).float().mean() > 0.1 for path, values in zip((gate, up, down), alone, strict=True))

    said = [warning for warning in run.warnings if f"only {rare} calibration tokens reached this expert" in warning]
    assert [warning.split(":")[0] for warning in said] == [f"{gate}, {up}", down]
    assert said == run.warnings  # of no other expert


def test_the_other_experts_are_solved_on_their_own_tokens(tmp_path: Path) -> None:
    run, rows = block_run(shy("olmoe", tmp_path / "model"), RECIPE, tokens(10), index=1)
    before = inputs_of(run, rows)
    run.compress(rows)
    others = [number for number in range(run.block.experts.num_experts) if number != SHY]
    for number in others:
        gate, up, down = (f"{run.block.experts.path}.{number}.{role}_proj" for role in ("gate", "up", "down"))
        own = before[gate]
        expected = solved(run, [gate, up], [original(run, gate), original(run, up)], own)
        expected += solved(run, [down], [original(run, down)], silu(own @ expected[0].T) * (own @ expected[1].T))
        for path, values in zip((gate, up, down), expected, strict=True):
            assert_alike(run.view.read(path), values)
            assert run.reports[path].tokens == len(own) < ROWS * LENGTH


def test_rows_that_all_reach_an_expert_are_not_replaced(tmp_path: Path) -> None:
    """Fewer tokens than inputs in all: the other experts have nothing to add."""
    few = {"input_ids": torch.full((2, 4), RARE)}
    run, rows = block_run(shy("mixtral", tmp_path / "model"), RECIPE, few)
    run.compress(rows)
    own = [f"{run.block.experts.path}.{SHY}.{role}_proj" for role in ("gate", "up", "down")]
    assert [run.reports[path].tokens for path in own] == [8, 8, 8]
    assert not any(path in warning for warning in run.warnings for path in own)


@pytest.mark.parametrize("order", ["stage", "block"])
def test_a_transform_sees_what_stands_in(order: str, tmp_path: Path) -> None:
    """The neurons of an expert without tokens are rescaled like those of the others, and the warning is given once."""
    only = "*.experts.*.down_proj"
    recipe = {"steps": [{"awq": {}, "only": only}, {"gptq": {"bits": 4, "group_size": 32}, "only": only}]}
    run, rows = block_run(shy("mixtral", tmp_path / "model"), recipe, tokens(0), index=1, order=order)
    everything = inputs_of(run, rows)[run.block.routers[0].path]
    gate, up, down = (f"{run.block.experts.path}.{SHY}.{role}_proj" for role in ("gate", "up", "down"))
    weights = {path: original(run, path) for path in (gate, up, down)}
    run.compress(rows)
    assert len(run.warnings) == 1
    assert not torch.equal(run.view.read(up), weights[up])
    gated = silu(everything @ weights[gate].T)
    exact = (gated * (everything @ weights[up].T)) @ weights[down].T
    found = (gated * (everything @ run.view.read(up).T)) @ run.view.read(down).T
    assert 0 < (found - exact).square().mean() / exact.square().mean() < 0.01
