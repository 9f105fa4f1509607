"""The printed description names what matters."""

from __future__ import annotations

import pytest
from rich.console import Console

from tests.tiny import ARCHITECTURES
from thrifty.models.describe import describe


def _printed(anatomy) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(describe(anatomy))
    return console.export_text()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_stage_and_every_gap_is_shown(name, source_of):
    anatomy = source_of(name).anatomy
    text = _printed(anatomy)
    assert anatomy.architecture in text
    for block in anatomy.blocks:
        for linear in block.linears:
            assert linear.path.rpartition(".")[2] in text
    for line in anatomy.missing:
        assert line.partition(":")[0] in text


def test_equal_blocks_are_shown_once(source_of):
    text = _printed(source_of("llama").anatomy)
    assert text.count("q_proj") == 1
    assert "blocks 0-1" in text


def test_blocks_that_differ_are_shown_apart(source_of):
    text = _printed(source_of("qwen3_moe").anatomy)
    assert "block 0" in text
    assert "block 1" in text
    assert "experts: 4, 2 for each token" in text


def test_traits_are_named(source_of):
    assert "one plus weight" in _printed(source_of("gemma2").anatomy)
    assert "shares its weight" in _printed(source_of("gpt2").anatomy)
    assert "stored transposed" in _printed(source_of("gpt2").anatomy)
    assert "state space: inner width 128, state 16, 4 heads" in _printed(source_of("mamba2").anatomy)
