"""Places of the state that nothing reads or writes go first, and the result has a smaller state."""

from __future__ import annotations

import json

import pytest
import torch

from tests.structure.rebuilding import compressed
from tests.structure.views import view_of
from thrifty.structure.sparse_ssm_states import SparseSSMStates


@pytest.mark.parametrize("by", ["vote", "error"])
def test_places_that_nothing_writes_go_first(by, source_of):
    """The rows of the projection that make B are silenced for two places: neither published votes nor exact errors keep them."""
    view, seen, _ = view_of(source_of("mamba"), "mamba", "states")
    (units,) = view.units
    rank = view.module.mixer.time_step_rank
    with torch.no_grad():
        view.module.mixer.x_proj.weight[[rank + 1, rank + 3]] = 0
        view.module.mixer.A_log.copy_(view.module.mixer.A_log.abs() + 0.5)
    (scores,) = SparseSSMStates(ratio=2 / units.count, by=by).score(view, seen).values()
    assert set(scores.argsort()[:2].tolist()) == {1, 3}


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_result_has_a_smaller_state(name, folder_of, tmp_path):
    compressed(folder_of(name), name, tmp_path / "out", {"sparse_ssm_states": {"by": "error"}})
    before, after = (json.loads((folder / "config.json").read_text())["state_size"] for folder in (folder_of(name), tmp_path / "out"))
    assert after == before // 2
