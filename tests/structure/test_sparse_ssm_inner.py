"""What lies inside a mixer: exact counts, products of what each channel reads, outputs that move least, and one chain with the rest."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import thrifty
from tests.structure.rebuilding import block_of, compressed
from tests.tiny import inputs
from thrifty.base.errors import InputError
from thrifty.models.scans import convolution_reads, time_step_reads
from thrifty.structure.rebuild import Plan
from thrifty.structure.sparse_ssm import mixer_in
from thrifty.structure.sparse_ssm_inner import SparseSSMInner, tap_grams

NAMES = {"mamba": {"conv1d", "dt_proj"}, "mamba2": {"conv1d"}}


def test_the_products_are_those_of_what_each_tap_reads():
    read = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(0))
    found = tap_grams(read, 4)
    for channel in range(2):
        seen = [
            [read[row, step - 3 + tap, channel] if step - 3 + tap >= 0 else 0.0 for tap in range(4)]
            for row in range(3)
            for step in range(7)
        ]
        windows = torch.tensor(seen)
        torch.testing.assert_close(found[channel], windows.T @ windows / 21)
        kernel = torch.randn(4)
        out = functional.conv1d(read[:, :, channel][:, None], kernel[None, None], padding=3)[..., :7]
        torch.testing.assert_close(kernel @ found[channel] @ kernel, out.square().mean())


@pytest.mark.parametrize("by", ["obs", "wanda", "magnitude"])
@pytest.mark.parametrize("name", NAMES)
def test_exactly_so_many_entries_go(name, by, source_of):
    view, seen, _ = block_of(source_of(name), name)
    for share in (0.0, 0.3, 1.0):
        found = SparseSSMInner(share, by).rebuild(view, seen, Plan()).tensors
        assert {key.split(".")[-2] for key in found} == NAMES[name]
        for key, after in found.items():
            before = view.tensor(key)
            assert after.shape == before.shape and int((after == 0).sum()) == round(share * before.numel())
            if not share:
                torch.testing.assert_close(after, before, rtol=1e-6, atol=0)


def test_what_they_put_out_moves_least(source_of):
    """Half of the entries, by what both put out: the published way against Wanda, and that against magnitude."""
    view, seen, _ = block_of(source_of("mamba"), "mamba")
    mixer, hidden = mixer_in(view, seen)
    read = convolution_reads(mixer, hidden)
    kernel, projection = mixer.conv1d.weight.detach().clone(), mixer.dt_proj.weight.detach().clone()
    steps = time_step_reads(mixer, hidden)
    lost = {}
    for by in ("obs", "wanda", "magnitude"):
        method = SparseSSMInner(0.5, by)
        taps = method.pruned(kernel[:, 0], tap_grams(read, 4))
        moved = functional.conv1d(read.mT, taps[:, None] - kernel, groups=len(kernel), padding=3)[..., : read.shape[1]]
        rows = steps.flatten(0, 1)
        other = method.pruned(projection, (rows.T @ rows / len(rows))[None])
        lost[by] = (float(moved.square().sum()), float((rows @ (other - projection).T).square().sum()))
    for place in (0, 1):
        assert lost["obs"][place] < lost["wanda"][place] <= lost["magnitude"][place]


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_an_ordinary_checkpoint(name, folder_of, tmp_path):
    compressed(folder_of(name), name, tmp_path / "out", {"sparse_ssm_inner": {}})
    before, after = (load_file(folder / "model.safetensors") for folder in (folder_of(name), tmp_path / "out"))
    changed = {key.split(".")[-2] for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    assert changed == NAMES[name] and before.keys() == after.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_of_sparse_ssm_is_one_chain(name, folder_of, tmp_path):
    steps = [{"sparse_ssm": {"mode": "memoryless"}}, {"sparse_ssm_inner": {}}, {"sparsegpt": {"share": "sparse_ssm_share"}}]
    rows = {"calibration": inputs(name, 6, 20, seed=1), "evaluation": inputs(name, 3, 20, seed=2)}
    thrifty.compress(folder_of(name), {"steps": steps}, out=tmp_path / "out", speed=False, verify="full", **rows)
    before, after = (load_file(folder / "model.safetensors") for folder in (folder_of(name), tmp_path / "out"))
    pruned = {
        key for key in before if key.split(".")[-2] in {"conv1d", "dt_proj", "in_proj", "x_proj", "out_proj"} and before[key].ndim > 1
    }
    for key in pruned:
        assert int((after[key] == 0).sum()) / after[key].numel() == pytest.approx(0.5, abs=0.03), key
    assert {key for key in before if not torch.equal(before[key], after[key])} == pruned | {key for key in before if key.endswith("A_log")}


def test_a_model_without_mixers_is_refused(source_of):
    with pytest.raises(InputError, match="no state-space mixers"):
        SparseSSMInner().plan(source_of("llama").anatomy)
