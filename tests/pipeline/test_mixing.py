"""A step that mixes targets: the budget is kept, a stopped run goes on, files that cannot hold it are refused, and it beats equal bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import thrifty
from tests.pipeline.blocks import block_run
from tests.tiny import inputs, tiny
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model, run_block, set_weight
from thrifty.pipeline.mixing import BlockTrial, costs, foreseen
from thrifty.pipeline.steps import Work
from thrifty.pipeline.weighing import rows_followed
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve
from thrifty.weights.base import solve

GRIDS = [{"int": {"bits": bits, "range": "mse"}} for bits in (2, 4, 8)]


def mix(**settings: Any) -> dict[str, Any]:
    return {"steps": [{"mix": {"into": GRIDS, **settings}}]}


def compress(model: Path, out: Path, recipe: Any, name: str = "llama", **options: Any) -> Certificate:
    rows = {"calibration": inputs(name, 4, 24), "evaluation": inputs(name, 2, 24, seed=1)}
    thrifty.compress(model, recipe, out=out, speed=False, **rows, **options)
    return Certificate.read(out)


def work_of(folder: Path, recipe: Any) -> tuple[Any, Work]:
    source = open_model(folder)
    return source, Work.of(resolve(complete(parse_recipe(recipe)), source.anatomy))


def test_bits_stay_within_the_budget_and_the_result_is_that_of_the_same_targets_by_name(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    found = compress(model, tmp_path / "out", mix(budget=4.5), verify="full")
    bits = {layer.name: layer.bits for layer in found.layers}
    weights = {layer.name: layer.weights for layer in found.layers}
    assert len(set(bits.values())) > 1
    assert sum((bits[name] + 0.5) * weights[name] for name in bits) <= 4.5 * sum(weights.values())
    named = {"bits": 4, "range": "mse"}
    override = {name: {"into": {"int": {**named, "bits": int(count)}}} for name, count in bits.items()}
    steps = [{"solve": {"by": {"obs": {"act_order": True}}, "into": {"int": named}}, "override": override}]
    compress(model, tmp_path / "named", {"steps": steps})
    files = [folder / "model.safetensors" for folder in (tmp_path / "out", tmp_path / "named")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    source, work = work_of(model, mix(unit="bytes", budget=1e9))
    linears = list(source.anatomy.linears)
    spent = costs(source, work, work.mixes[linears[0].path][0], linears) / 8
    assert torch.equal(spent[:, 0], spent[:, 1]), "codes of 2 bits lie in places of 4"
    budget = float(spent[:, 1].sum() + spent[:, 2].sum()) / 2
    found = compress(model, tmp_path / "out", mix(unit="bytes", budget=budget))
    weights = sum(layer.weights for layer in found.layers)
    assert found.bits_per_weight * weights / 8 <= budget
    assert {layer.bits for layer in found.layers} == {4, 8}


def test_time_counts_multiplications_and_experts_by_their_tokens(tmp_path: Path) -> None:
    source, work = work_of(tiny("mixtral", tmp_path / "model"), mix(unit="time", budget=1.0, speeds=[4.0, 2.0, 1.0]))
    linears = list(source.anatomy.linears)
    spent = costs(source, work, work.mixes[linears[0].path][0], linears)
    for linear, row in zip(linears, spent.tolist(), strict=True):
        share = 1.0
        if linear.expert is not None:
            experts = source.anatomy.blocks[0].experts
            share = experts.experts_per_token / experts.num_experts
        size = linear.out_features * linear.in_features
        assert row == pytest.approx([size * share / speed for speed in (4, 2, 1)])


@pytest.mark.parametrize("weigh", ["block", "loss"])
def test_losses_are_what_one_matrix_alone_changes_in_the_rows(weigh: str, tmp_path: Path) -> None:
    run, rows = block_run(tiny("llama", tmp_path / "model"), mix(budget=4.5, rows=3, weigh=weigh), inputs("llama", 4, 24), index=1)
    trial = BlockTrial(run.view, run.call, run.work, torch.float32, 2, "stage", torch.device("cpu"), 0, followed=tmp_path)
    sensitive = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))  # of four rows, of which three are looked at
    save_file({"direction": sensitive}, tmp_path / f"{run.block.path}.safetensors")
    before = run_block(run.module, rows, run.call)
    torch.testing.assert_close(trial.compress(rows), before)
    seen = {}
    handle = run.linears[run.block.linears[0].path].register_forward_pre_hook(lambda _, arguments: seen.update(x=arguments[0]))
    run_block(run.module, rows, run.call)
    handle.remove()
    linear = run.block.linears[0]
    flat = seen["x"].reshape(-1, linear.in_features)
    task = Problem(run.view.read(linear.path), flat.T @ flat / len(flat), len(flat))
    choice, _ = run.work.mixes[linear.path]
    for option, measured in enumerate(trial.losses[linear.path]):
        set_weight(run.linears[linear.path], solve(task, choice.treatment(option)).values)
        changed = (run_block(run.module, rows, run.call) - before)[:3]
        if weigh == "loss":
            expected = float((changed * sensitive[:3]).sum(-1).square().sum() / 3)
        else:
            expected = float(changed.square().sum() / before[:3].square().sum())
        assert measured == pytest.approx(expected, rel=0.02 if weigh == "block" else 0.1)  # codes between two values fall either way
    assert all(found[0] > found[1] > found[2] > 0 for found in trial.losses.values())
    assert trial.losses.keys() == {linear.path for linear in run.block.linears}


def test_a_stopped_run_tries_no_block_twice_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", tmp_path / "model")
    compress(model, tmp_path / "whole", mix(budget=4.5))
    tried: list[str] = []
    real = BlockTrial.compress

    def compressing(self: BlockTrial, rows: object) -> object:
        if len(tried) == 1:
            tried.append("stopped")
            raise KeyboardInterrupt
        tried.append(self.block.path)
        return real(self, rows)

    monkeypatch.setattr(BlockTrial, "compress", compressing)
    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "out", mix(budget=4.5))
    compress(model, tmp_path / "out", mix(budget=4.5))
    assert [path for path in tried if path != "stopped"] == [block.path for block in open_model(model).anatomy.blocks]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out/certificate.json").read_text())["phases"]["choose"] > 0


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("llama", {"budget": 2.4}, "too small, the cheapest targets take 2.5 bits"),
        ("llama", {"budget": 100, "unit": "bytes"}, "too small, the cheapest targets take"),
        ("llama", {"budget": 9, "into": [*GRIDS, {"float": {"format": "e4m3", "group_size": 0}}]}, "codes of one format"),
        ("llama", {"into": [{"int": {"bits": bits, "symmetric": False}} for bits in (4, 8)], "budget": 6}, "only one bit width"),
        ("llama", {"into": [{"int": {"bits": 4, "group_size": 7}}, {"int": {}}], "budget": 5}, "does not divide"),
        ("llama", {"unit": "time", "budget": 1}, "speeds is wrong"),
        ("llama", {"into": GRIDS[:1]}, "into is wrong"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(name: str, settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        source, work = work_of(tiny(name, tmp_path / "model"), mix(**settings))
        foreseen(source, work)


def test_what_is_chosen_is_healed_as_if_it_had_been_named(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    heal = {"learned_rounding": {"iterations": 4, "batch": 2}}
    found = compress(model, tmp_path / "out", mix(budget=4.5, by="descent", heal=heal))
    bits = {layer.name: int(layer.bits) for layer in found.layers}
    assert len(set(bits.values())) > 1
    assert all({"block_error_before", "block_error"} <= layer.details.keys() for layer in found.layers)
    override = {name: {"into": {"int": {"bits": count, "range": "mse"}}} for name, count in bits.items()}
    step = {"solve": {"by": "descent", "into": {"int": {"bits": 4, "range": "mse"}}, "heal": heal}, "override": override}
    compress(model, tmp_path / "named", {"steps": [step]})
    files = [folder / "model.safetensors" for folder in (tmp_path / "out", tmp_path / "named")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ["clip", "dit"])
def test_where_nothing_is_predicted_blocks_decide(name: str, tmp_path: Path) -> None:
    model = tiny(name, tmp_path / "model")
    with pytest.raises(InputError, match="mix with weigh: loss follows the loss"):
        foreseen(*work_of(model, mix(weigh="loss")))
    assert rows_followed(*work_of(model, mix())) == 0
    assert rows_followed(*work_of(tiny("llama", tmp_path / "llama"), mix(rows=5))) == 5
    compress(model, tmp_path / "out", mix(into=[{"int": {"bits": bits}} for bits in (4, 8)], budget=6.5), name)


def test_two_mixes_of_one_linear_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already chosen by an earlier mix"):
        work_of(tiny("llama", tmp_path / "model"), {"steps": [{"mix": {}}, {"mix": {}}]})
