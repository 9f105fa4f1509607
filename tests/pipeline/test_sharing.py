"""Sparsity that differs by block: the mean is kept, scores are those of the blocks, a stopped run goes on, and the plan prices it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import thrifty
from tests.pipeline.blocks import block_run, inputs_of
from tests.tiny import inputs, tiny
from thrifty.base.anatomy import Attention
from thrifty.base.errors import InputError
from thrifty.core.spectra import eigenvalues, hill
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model, run_block
from thrifty.pipeline.sharing import BlockScore, influence, pieces
from thrifty.pipeline.steps import Work
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve
from thrifty.weights.allocate.owl import OWL
from thrifty.weights.layerwise import Look

ALPHA = {"alpha_pruning": {"rule": "median"}}


def compress(model: Path, out: Path, *steps: dict[str, Any], name: str = "llama") -> Certificate:
    rows = {"calibration": inputs(name, 4, 24), "evaluation": inputs(name, 2, 24, seed=1)}
    thrifty.compress(model, {"steps": list(steps)}, out=out, speed=False, **rows)
    return Certificate.read(out)


def by_block(found: Certificate) -> list[float]:
    """The share of zeros of each block."""
    zeros: dict[int, list[float]] = {}
    for layer in found.layers:
        entry = zeros.setdefault(layer.block, [0.0, 0.0])
        entry[0] += layer.sparsity * layer.weights
        entry[1] += layer.weights
    return [zero / size for zero, size in zeros.values()]


@pytest.mark.parametrize("share", [ALPHA, {"farms": {"rule": "median"}}, {"owl": {"outlier": 2.0}}, "block_influence"], ids=str)
def test_the_mean_is_kept_and_blocks_differ(share: Any, tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    found = compress(model, tmp_path / "out", {"magnitude": {"sparsity": 0.6, "share": share}})
    shares = by_block(found)
    assert max(shares) - min(shares) > 0.05
    total = sum(layer.weights for layer in found.layers)
    assert sum(layer.sparsity * layer.weights for layer in found.layers) / total == pytest.approx(0.6, abs=0.003)
    assert found.phases["choose"] > 0


def test_the_result_is_that_of_the_shares_by_name(tmp_path: Path) -> None:
    """Two steps with a share each, the second for other linears; nothing else differs from naming the shares."""
    model = tiny("llama", tmp_path / "model")
    steps = [
        {"sparsegpt": {"sparsity": 0.5, "share": ALPHA}, "only": ["*self_attn*"]},
        {"solve": {"by": {"awp": {"iterations": 3}}, "into": {"top_k": {"sparsity": 0.7}}, "share": ALPHA}, "only": ["*mlp*"]},
    ]
    compress(model, tmp_path / "out", *steps)
    source = open_model(model)
    blocks = source.anatomy.blocks
    alphas = {
        part: [
            sum(hill(eigenvalues(source.read(linear.source))) for linear in block.linears if part in linear.path)
            / sum(part in linear.path for linear in block.linears)
            for block in blocks
        ]
        for part in ("self_attn", "mlp")
    }
    named = [
        {"sparsegpt": {"sparsity": share}, "only": [f"{block.path}.self_attn*"]}
        for block, share in zip(blocks, linear_map(alphas["self_attn"], 0.5), strict=True)
    ] + [
        {"solve": {"by": {"awp": {"iterations": 3}}, "into": {"top_k": {"sparsity": share}}}, "only": [f"{block.path}.mlp*"]}
        for block, share in zip(blocks, linear_map(alphas["mlp"], 0.7), strict=True)
    ]
    compress(model, tmp_path / "named", *named)
    files = [folder / "model.safetensors" for folder in (tmp_path / "out", tmp_path / "named")]
    assert files[0].read_bytes() == files[1].read_bytes()


def linear_map(alphas: list[float], sparsity: float, epsilon: float = 0.3) -> list[float]:
    """The published shares of blocks of one size."""
    ratios = [1 - epsilon + 2 * epsilon * (alpha - min(alphas)) / (max(alphas) - min(alphas)) for alpha in alphas]
    return [sparsity * ratio * len(ratios) / sum(ratios) for ratio in ratios]


def test_scores_see_what_reaches_each_linear(tmp_path: Path) -> None:
    recipe = {"steps": [{"wanda": {"share": {"owl": {"outlier": 2.0}}}}, {"magnitude": {"share": "block_influence"}}]}
    run, rows = block_run(tiny("llama", tmp_path / "model"), recipe, inputs("llama", 4, 24), index=1)
    looked = BlockScore(run.view, run.call, run.work, torch.float32, 3, "stage", torch.device("cpu"), 0)
    before = run_block(run.module, rows, run.call)
    torch.testing.assert_close(looked.compress(rows), before)
    weights = {linear.path: run.view.read(linear.path) for linear in run.block.linears}
    energies = {path: found.square().mean(0) for path, found in inputs_of(run, rows).items()}
    expected = OWL(outlier=2.0).score(Look(weights, energies))
    flat, after = rows.reshape(-1, rows.shape[-1]), before.reshape(-1, rows.shape[-1])
    cosine = (flat * after).sum(1) / flat.norm(dim=1) / after.norm(dim=1)
    assert looked.losses[f"0 {run.block.path}"] == [pytest.approx(expected)]
    assert looked.losses[f"1 {run.block.path}"] == [pytest.approx(1 - float(cosine.mean()), abs=1e-6)]


def test_what_lies_in_one_matrix_is_cut_apart(tmp_path: Path) -> None:
    block = open_model(tiny("gpt2", tmp_path / "model")).anatomy.blocks[0]
    fused = next(linear for linear in block.linears if linear.role == "qkv")
    weight = torch.randn(fused.out_features, fused.in_features)
    found = pieces(block, fused, weight)
    assert [len(piece) for piece in found.values()] == [fused.out_features // 3] * 3
    assert torch.equal(torch.cat(list(found.values())), weight)
    other = next(linear for linear in block.linears if linear.role != "qkv")
    assert list(pieces(block, other, weight)) == [other.path]
    assert isinstance(block.attention, Attention)


def test_a_stopped_run_looks_at_no_block_twice_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", tmp_path / "model")
    step = {"wanda": {"sparsity": 0.5, "share": "owl"}}
    compress(model, tmp_path / "whole", step)
    looked: list[str] = []
    real = BlockScore.compress

    def compressing(self: BlockScore, rows: object) -> object:
        if len(looked) == 1:
            looked.append("stopped")
            raise KeyboardInterrupt
        looked.append(self.block.path)
        return real(self, rows)

    monkeypatch.setattr(BlockScore, "compress", compressing)
    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "out", step)
    compress(model, tmp_path / "out", step)
    assert [path for path in looked if path != "stopped"] == [block.path for block in open_model(model).anatomy.blocks]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_weights_alone_need_no_calibration_and_the_plan_prices_the_look(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    plain, shared = {"magnitude": {}}, {"magnitude": {"share": "farms"}}
    thrifty.compress(model, shared, out=tmp_path / "out", evaluation=inputs("llama", 2, 24), speed=False)
    assert json.loads((tmp_path / "out/certificate.json").read_text())["data"]["calibration"] is None
    rows = {"evaluation": inputs("llama", 2, 24)}
    less, more = (thrifty.plan(model, recipe, **rows) for recipe in (plain, shared))
    assert less.cost.parts["sharing"] == 0 < more.cost.parts["sharing"]
    seen = thrifty.plan(model, {"magnitude": {"share": "owl"}}, calibration=inputs("llama", 4, 24), **rows)
    assert seen.cost.disk > more.cost.disk


def test_what_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    source = open_model(tiny("llama", tmp_path / "model"))
    for step, said in (
        ({"wanda": {"pattern": "2:4", "share": "farms"}}, "could differ by matrix"),
        ({"solve": {"by": "obs", "into": "int", "share": "owl"}}, "could differ by matrix"),
        ({"wanda": {"share": {"farms": {"positions": 0}}}}, "positions"),
    ):
        with pytest.raises(InputError, match=said):
            Work.of(resolve(complete(parse_recipe({"steps": [step]})), source.anatomy))
    work = Work.of(resolve(complete(parse_recipe({"steps": [{"wanda": {"share": "owl"}}]})), source.anatomy))
    assert work.needs_calibration and len(work.shares) == 1


def test_vectors_that_only_grow_change_nothing() -> None:
    rows = torch.randn(3, 5, 8)
    assert influence(rows, 2 * rows) == pytest.approx(0, abs=1e-6) and influence(rows, -rows) == pytest.approx(2)
    assert influence(rows, torch.ones(3, 5, 4)) != influence(rows, torch.ones(3, 5, 4))
