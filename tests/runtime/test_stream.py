"""Blocks that stay on disk against the same blocks in memory, bit for bit."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import build, inputs
from thrifty.base.errors import RunError
from thrifty.models.disk import TensorInfo
from thrifty.runtime.stream import BlockStore


def blocks(count: int = 4, width: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(width, 40 + number), nn.GELU(), nn.Linear(40 + number, width)) for number in range(count)]
    return nn.Sequential(*made)


def on_disk(model: nn.Sequential, staying: int = 0) -> BlockStore:
    store = BlockStore()
    for block in list(model)[staying:]:
        store.add(block, {})
    return store


@pytest.mark.parametrize("staying", [0, 2, 3])
@torch.no_grad()
def test_outputs_are_equal(staying: int) -> None:
    whole, ours = blocks(), blocks()
    store = on_disk(ours, staying)
    matrices = [
        parameter for block in list(ours)[staying:] for parameter in block.parameters() if parameter.ndim != 1 or not parameter.numel()
    ]
    assert len(matrices) == 2 * (4 - staying) and not any(parameter.numel() for parameter in matrices)
    assert store.written_bytes == sum(p.numel() * 4 for block in list(whole)[staying:] for p in block.parameters() if p.ndim > 1)
    for seed in range(3):
        rows = torch.randn(5, 24, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(ours(rows), whole(rows))
        assert not any(parameter.numel() for parameter in matrices)


@torch.no_grad()
def test_blocks_in_any_order_and_copies_of_the_model() -> None:
    whole, ours = blocks(), blocks()
    on_disk(ours)
    twin = copy.deepcopy(ours)
    rows = torch.randn(5, 24)
    for number in (2, 2, 0, 3, 1, 0, 1):
        assert torch.equal(ours[number](rows), whole[number](rows))
    assert torch.equal(twin(rows), whole(rows)) and torch.equal(ours(rows), whole(rows))


def test_a_pass_that_breaks_off_leaves_nothing_behind() -> None:
    whole, ours = blocks(), blocks()
    on_disk(ours)
    rows = torch.randn(5, 24)
    with pytest.raises(RuntimeError, match="shapes"):
        ours[1](rows[:, :7])
    assert torch.is_grad_enabled() and not ours[1][0].weight.numel()
    found = ours(rows)
    assert torch.equal(found, whole(rows)) and not found.requires_grad and torch.is_grad_enabled()


@torch.inference_mode()
def test_inference_mode() -> None:
    whole, ours = blocks(), blocks()
    on_disk(ours)
    rows = torch.randn(5, 24)
    assert torch.equal(ours(rows), whole(rows))


def in_file(tensor: Tensor, file: Path, before: int) -> TensorInfo:
    content = tensor.detach().numpy().tobytes()
    file.write_bytes(b"x" * before + content)
    return TensorInfo(file, tensor.dtype, tuple(tensor.shape), before, len(content))


@torch.no_grad()
def test_what_lies_in_a_file_already_is_read_from_there(tmp_path: Path) -> None:
    whole, ours = blocks(3), blocks(3)
    store = BlockStore()
    for number, block in enumerate(ours):
        where = {name: in_file(block.get_parameter(name), tmp_path / f"{number}{name}", 5 * number) for name in ("0.weight", "2.weight")}
        store.add(block.to("meta") if number == 1 else block, where)
    for name in ("0", "2"):
        getattr(ours[1], name).bias = getattr(whole[1], name).bias
    assert store.written_bytes == 0
    rows = torch.randn(7, 24)
    assert torch.equal(ours(rows), whole(rows))
    (tmp_path / "12.weight").write_bytes(b"short")
    with pytest.raises(RunError, match=r"ends within 2\.weight"):
        for _ in range(2):
            ours(rows)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba"])
@torch.no_grad()
def test_blocks_of_models(name: str) -> None:
    """Attention, experts in one tensor of three dimensions, matrices stored transposed, convolutions."""
    whole, ours = build(name), build(name)
    store, sizes = BlockStore(), 0
    for block in ours.base_model.h if name == "gpt2" else ours.base_model.layers:
        sizes += sum(tensor.nbytes for tensor in block.parameters() if tensor.ndim > 1)
        store.add(block, {})
    row = inputs(name, 2, 11)
    assert torch.equal(ours(**row).logits, whole(**row).logits)
    assert store.written_bytes == sizes


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="set TMPDIR"):
        on_disk(blocks())
