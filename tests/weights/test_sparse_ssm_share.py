"""SparseSSM's shares: the published schedule by hand, the trace from the inputs themselves, and who is asked."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import thrifty
from tests.pipeline.blocks import block_run, inputs_of
from tests.tiny import inputs, tiny
from tests.weights.problems import draw
from thrifty.base.errors import InputError
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.pipeline.sharing import BlockScore
from thrifty.pipeline.steps import Work
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve
from thrifty.weights.allocate.sparse_ssm_share import SparseSSMShare
from thrifty.weights.layerwise import Look

SHARE = {"sparse_ssm_share": {"alpha": 0.1}}


def test_shares_are_the_published_ones():
    """Retention 1 - S - alpha .. 1 - S for the least sensitive, 1 - S .. 1 - S + alpha for the most, by rank alone."""
    kind = SparseSSMShare(alpha=0.04)
    assert kind.share([5.0, 1.0, 9.0, 70.0], [3] * 4, 0.5) == pytest.approx([0.5, 0.54, 0.5, 0.46])
    assert kind.share([6, 5, 4, 3, 2, 1, 0], [3] * 7, 0.5) == pytest.approx([0.46, 0.48, 0.5, 0.5, 0.5, 0.52, 0.54])
    assert kind.share([1.0, 2.0, 3.0], [3] * 3, 0.7) == pytest.approx([0.72, 0.7, 0.68]), "one at either end gets half of alpha"
    assert kind.share([1.0], [3], 0.7) == pytest.approx([0.7])
    few = SparseSSMShare(alpha=0.04, ends=2).share(list(range(9)), [1] * 9, 0.5)
    assert few == pytest.approx([0.54, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.46])
    assert kind.share([float("nan")] * 2, [1, 1], 0.5) == pytest.approx([0.52, 0.48]), "the order decides where nothing else does"


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 1000)), min_size=1, max_size=12), st.floats(0, 0.99), st.floats(0, 0.5))
def test_the_mean_holds_and_what_reads_more_keeps_more(parts, sparsity, alpha):
    scores, sizes = zip(*parts, strict=True)
    found = SparseSSMShare(alpha).share(scores, sizes, sparsity)
    zeros = sum(share * size for share, size in zip(found, sizes, strict=True))
    assert zeros == pytest.approx(sparsity * sum(sizes), abs=1e-9 * sum(sizes))
    assert all(0 <= share <= max(0.998, sparsity) for share in found)
    ranked = [share for _, share in sorted(zip(scores, found, strict=True), key=lambda pair: pair[0])]
    assert all(one >= other - 1e-12 for one, other in pairwise(ranked))
    even = SparseSSMShare(alpha).share(scores, [1] * len(scores), 0.5)
    assert all(abs(share - 0.5) <= alpha + 1e-12 for share in even)


def test_the_score_is_the_published_trace():
    rows = draw(0, 200, 6)
    hessian = 2 / 200 * rows.T @ rows
    expected = float((hessian.diagonal() ** 2).sum() / 6)
    look = Look({"a": draw(1, 4, 6), "b": draw(2, 9, 6)}, dict.fromkeys("ab", rows.square().mean(0)))
    assert SparseSSMShare().score(look) == pytest.approx(expected)
    assert SparseSSMShare().score(Look({"a": draw(1, 4, 6)})) != expected


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_every_projection_is_scored_by_what_it_reads(name: str, tmp_path: Path) -> None:
    recipe = {"steps": [{"wanda": {"share": SHARE}}]}
    run, rows = block_run(tiny(name, tmp_path / "model"), recipe, inputs(name, 4, 24), index=1)
    looked = BlockScore(run.view, run.call, run.work, torch.float32, 3, "stage", torch.device("cpu"), 0)
    looked.compress(rows)
    read = inputs_of(run, rows)
    expected = {
        f"0 {path}": [pytest.approx(float((2 * found.square().mean(0)).square().mean()), rel=1e-4)]
        for path, found in read.items()
        if path.endswith((".in_proj", ".out_proj"))
    }
    assert len(expected) == 2 and looked.losses == expected


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("by", ["wanda", "sparsegpt"])
def test_projections_share_among_their_own_kind_and_the_rest_gets_what_was_asked_for(name: str, by: str, tmp_path: Path) -> None:
    model = tiny(name, tmp_path / "model")
    step = {by: {"sparsity": 0.5, "share": SHARE}}
    rows = {"calibration": inputs(name, 4, 24), "evaluation": inputs(name, 2, 24, seed=1)}
    thrifty.compress(model, {"steps": [step]}, out=tmp_path / "out", speed=False, **rows)
    zeros: dict[str, list[float]] = {}
    for layer in Certificate.read(tmp_path / "out").layers:
        zeros.setdefault(layer.name.rpartition(".")[2], []).append(layer.sparsity)
    # two blocks, so one matrix at either end: half of alpha up and down; Wanda has whole numbers of 64 inputs
    for role in ("in_proj", "out_proj"):
        assert sorted(zeros.pop(role)) == [pytest.approx(0.45, abs=1 / 64), pytest.approx(0.55, abs=1 / 64)]
    assert all(share == pytest.approx(0.5, abs=0.01) for shares in zeros.values() for share in shares)


def test_where_no_linear_has_such_a_role_it_is_refused(tmp_path: Path) -> None:
    def work(name: str, share: Any, **chosen: Any) -> Work:
        recipe = {"steps": [{"wanda": {"share": share}, **chosen}]}
        return Work.of(resolve(complete(parse_recipe(recipe)), open_model(tiny(name, tmp_path / name)).anatomy))

    with pytest.raises(InputError, match=r"among matrices of the roles in_proj, out_proj, and the linears chosen in Llama\w+ are none"):
        work("llama", "sparse_ssm_share")
    with pytest.raises(InputError, match="are none"):
        work("mamba", "sparse_ssm_share", only=["*x_proj"])
    assert work("llama", {"sparse_ssm_share": {"roles": ["up", "down"]}}).needs_calibration
