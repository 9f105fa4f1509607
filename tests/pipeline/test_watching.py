"""A look at a block: every stage of every row is seen as in a whole pass, and what nobody reads is not computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.pipeline.blocks import block_run
from tests.tiny import ARCHITECTURES, DIFFUSION, inputs, tiny
from thrifty.base.anatomy import Space, Stage
from thrifty.models import run_block
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.watching import look, watching

ROWS = 5
"""In batches of two, so that the last is a smaller one."""

ROUTED = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")


def run_of(name: str, folder: Path) -> tuple[BlockRun, Tensor]:
    return block_run(tiny(name, folder), {"steps": [{"rtn": {"bits": 4}}]}, inputs(name, rows=ROWS, length=12))


def seen_of(run: BlockRun, rows: Tensor, whole: bool) -> dict[str, list[Tensor]]:
    """What was seen, in batches of two, by the name of the space."""
    seen: dict[str, list[Tensor]] = {}

    def on_stage(stage: Stage, values: Tensor) -> None:
        seen.setdefault(stage.reads.name, []).append(values.clone())

    def on_shared(space: Space, values: Tensor) -> None:
        seen.setdefault(f"shared {space.name}", []).append(values.clone())

    if whole:
        with watching(run.block, run.linears, run.module, on_stage, on_shared):
            for batch in rows.split(2):
                run_block(run.module, batch, run.call)
    else:
        look(run.block, run.module, rows.split(2), run.call, on_stage, on_shared)
    return seen


def ends(run: BlockRun, rows: Tensor) -> int:
    """How many of the batches that are looked at go through the block to its end."""
    count = 0

    def ended(_: nn.Module, arguments: object, output: object) -> None:
        nonlocal count
        count += 1

    handle = run.module.register_forward_hook(ended)
    look(run.block, run.module, rows.split(2), run.call, lambda *_: None, lambda *_: None)
    handle.remove()
    return count


@pytest.mark.parametrize("name", [*ARCHITECTURES, *DIFFUSION])
def test_every_row_is_seen_as_in_a_whole_pass(name: str, tmp_path: Path) -> None:
    run, rows = run_of(name, tmp_path / "model")
    found, expected = seen_of(run, rows, whole=False), seen_of(run, rows, whole=True)
    assert {stage.reads.name for stage in run.block.stages} <= expected.keys() == found.keys()
    assert all(len(found[key]) == len(expected[key]) and all(map(torch.equal, found[key], expected[key])) for key in expected)


@pytest.mark.parametrize("name", [name for name in (*ARCHITECTURES, *DIFFUSION) if name not in ROUTED])
def test_batches_after_the_first_stop_at_the_last_stage(name: str, tmp_path: Path) -> None:
    run, rows = run_of(name, tmp_path / "model")
    assert ends(run, rows) == 1


def test_blocks_with_experts_are_passed_whole(tmp_path: Path) -> None:
    run, rows = run_of("mixtral", tmp_path / "model")
    assert ends(run, rows) == 3


def test_a_stage_that_is_read_twice_in_a_pass_is_seen_twice(tmp_path: Path) -> None:
    """Where the order of stages does not tell which is the last, nothing is left out."""
    run, rows = run_of("llama", tmp_path / "model")
    once = run.module.forward

    def twice(hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        return once(once(hidden, *args, **kwargs), *args, **kwargs)

    run.module.forward = twice
    assert ends(run, rows) == 3
    assert all(len(batches) == 6 for batches in seen_of(run, rows, whole=False).values())


def test_what_goes_wrong_in_a_block_is_not_taken_for_its_end(tmp_path: Path) -> None:
    run, rows = run_of("llama", tmp_path / "model")

    def fails(stage: Stage, values: Tensor) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        look(run.block, run.module, rows.split(2), run.call, fails, lambda *_: None)
