"""SparseSSM's mask: counts that are exact, scores that find what does not matter, results that load as they did."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.structure.rebuilding import block_of, compressed
from thrifty.base.errors import InputError
from thrifty.core.state_space import FORGETS, masked
from thrifty.structure.rebuild import Plan
from thrifty.structure.sparse_ssm import SparseSSM, scan_in


@pytest.mark.parametrize("by", ["weighted", "vote", "error", "magnitude"])
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_exactly_so_many_entries_go(name, by, source_of):
    view, seen, _ = block_of(source_of(name), name)
    before = view.tensor(f"{view.block.path}.mixer.A_log")
    for share in (0.0, 0.25, 1.0):
        ((_, after),) = SparseSSM(share, by, "memoryless").rebuild(view, seen, Plan()).tensors.items()
        assert after.shape == before.shape
        assert int((after == FORGETS).sum()) == round(share * before.numel())
        assert torch.equal(after[after != FORGETS], before[after != FORGETS])


def test_a_pattern_keeps_so_many_of_each_group(source_of):
    view, seen, _ = block_of(source_of("mamba"), "mamba")
    ((_, after),) = SparseSSM(pattern=(1, 4), mode="memoryless").rebuild(view, seen, Plan()).tensors.items()
    assert bool(((after != FORGETS).reshape(len(after), -1, 4).sum(-1) == 1).all())


@pytest.mark.parametrize("mode", ["unit_decay", "memoryless"])
def test_exact_errors_cost_the_outputs_least(mode, source_of):
    """Half of the entries, by what the scan loses of its outputs: exact errors against the published scores, magnitude and a draw."""
    view, seen, _ = block_of(source_of("mamba"), "mamba")
    scan = scan_in(view, seen)
    y = scan.output()

    def lost(gone):
        return float((scan.output(masked(scan.a_log, gone, mode)) - y).square().sum())

    found = {by: lost(SparseSSM(0.5, by, mode).gone(scan, scan.a_log)) for by in ("weighted", "vote", "error", "magnitude")}
    draw = torch.rand(scan.a_log.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert found["error"] < min(found["weighted"], found["vote"], found["magnitude"], lost(draw))


@pytest.mark.parametrize(("name", "settings"), [("mamba", {"by": "error", "mode": "memoryless"}), ("mamba2", {"sparsity": 0.25})])
def test_the_result_is_an_ordinary_checkpoint(name, settings, folder_of, tmp_path):
    compressed(folder_of(name), name, tmp_path / "out", {"sparse_ssm": settings})
    before, after = (load_file(folder / "model.safetensors") for folder in (folder_of(name), tmp_path / "out"))
    changed = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
    assert changed and all(key.endswith("A_log") for key in changed) and before.keys() == after.keys()
    assert not (tmp_path / "out" / "modeling_uneven.py").exists()


def test_what_it_cannot_take_is_refused(source_of):
    with pytest.raises(InputError, match="no state-space mixers"):
        SparseSSM().plan(source_of("llama").anatomy)
    with pytest.raises(InputError, match="does not fit"):
        SparseSSM(pattern=(2, 5)).plan(source_of("mamba").anatomy)
