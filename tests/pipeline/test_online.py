"""Inputs that are turned while the model runs: on every architecture, in the container and in its readers, and refused elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import thrifty
from tests.pipeline.test_container import plain
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty import api
from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.measure.certificate import Certificate
from thrifty.models import Source, open_model
from thrifty.models.shell import main_output
from thrifty.pipeline.block import BlockRun
from thrifty.pipeline.container import ContainerPacking
from thrifty.pipeline.steps import Work
from thrifty.pipeline.view import BlockView
from thrifty.runtime.linear import PackedLinear
from thrifty.weights.transform.online import Online

LENGTH = 24
WITHOUT = ("mamba", "mamba2", "mixtral", "olmoe")
"""Architectures without neurons that are turned: none at all, or all of them those of experts."""


def steps(*rewrites: dict[str, Any], bits: int = 4, activation: dict[str, Any] | None = None) -> dict[str, Any]:
    more = {"activation": activation} if activation else {}
    return {"steps": [*rewrites, {"rtn": {"bits": bits, "group_size": 0, **more}}]}


def run(folder: Path, out: Path, recipe: dict[str, Any], architecture: str = "llama", **words: Any) -> dict[str, Any]:
    rows = {"calibration": inputs(architecture, 4, LENGTH), "evaluation": inputs(architecture, 2, LENGTH, seed=1)}
    return thrifty.compress(folder, recipe, out=out, speed=False, **{"format": "thrifty", **rows, **words})


def through(source: Source, rows: dict[str, Tensor], work: Work) -> tuple[Tensor, set[str]]:
    """(what the model puts out once its blocks are rewritten and nothing is solved, the linears whose inputs are turned)."""
    paths = frozenset(linear.path for linear in source.anatomy.linears if linear.expert is None)
    shell, done, turned = source.shell(torch.float32), {}, set()
    for chain in source.anatomy.chains:
        hidden, calls = shell.enter(rows, chain, done), shell.calls(rows, done)
        for block in source.anatomy.blocks:
            if block.chain == chain:
                view = BlockView(source, block, ContainerPacking({}, source.dtype, False, (), reading=paths))
                block_run = BlockRun(view, calls[block.path], work, torch.float32, 2, "stage", torch.device("cpu"), seed=0)
                hidden = block_run.compress(hidden)
                turned |= set(view.turns)
        done[chain] = hidden
    return shell.finish(rows, done), turned


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_stay(architecture: str, tmp_path: Path) -> None:
    source, rows = open_model(tiny(architecture, tmp_path)), inputs(architecture, 2, 12)
    expected, none = through(source, rows, Work((), {}, {}))
    work = Work(({linear.path: Online() for linear in source.anatomy.linears},), {}, {})
    found, turned = through(source, rows, work)
    roles = {linear.path: linear.role for linear in source.anatomy.linears}
    assert not none and {roles[path] for path in turned} <= {"down", "fc2"}
    assert bool(turned) == (architecture not in WITHOUT)
    assert float((found - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        ("llama", {"dynamic": {"bits": 4}}),
        ("opt", {"dynamic": {"bits": 6, "per": "tensor"}}),
        ("phi", {"static": {"bits": 8}}),
        ("vit", {"dynamic": {"bits": 8, "symmetric": False}}),
        ("qwen2_moe", {"dynamic": {"bits": 4}}),
    ],
    ids=lambda value: str(value),
)
def test_readers_turn_and_round_as_the_walk_does(architecture: str, activation: dict[str, Any], tmp_path: Path) -> None:
    folder, out = tiny(architecture, tmp_path / "model"), tmp_path / "out"
    found = run(folder, out, steps({"online": {}}, activation=activation), architecture, verify="full")
    own = json.loads((out / "config.json").read_text())["quantization_config"]
    layers = {layer.name: layer for layer in Certificate.read(out).layers}
    turned = {name for name, layer in layers.items() if "inputs_turned_by" in layer.details}
    rounded = {name for name, layer in layers.items() if "input_bits" in layer.details}
    assert own["version"] == 2 and turned and turned < rounded
    named = [key for group in own["inputs"] for key in group["matrices"]]
    sources = [linear.source for linear in open_model(folder).anatomy.linears if linear.path in rounded]
    assert sorted(named) == sorted(sources) and {group["bits"] for group in own["inputs"]} == {next(iter(activation.values()))["bits"]}
    assert any("experts are called together" in said for said in found["warnings"]) == (architecture == "qwen2_moe")
    rows = inputs(architecture, 2, LENGTH, seed=2)
    model, ours = plain(out).eval(), thrifty.load(out, torch.float32)
    with torch.no_grad():
        expected = main_output(model(**rows))
        torch.testing.assert_close(main_output(ours(**rows)), expected, rtol=1e-4, atol=1e-4)
    assert {path for path, module in ours.named_modules() if isinstance(module, PackedLinear) and module.reading.order} == turned
    with pytest.raises(RunError, match="rounded while it runs is not saved"):
        model.save_pretrained(tmp_path / "saved")
    if architecture == "llama":
        with pytest.raises(InputError, match="which GGUF does not hold"):
            api.export(out, "gguf", tmp_path / "out.gguf")


def test_without_rounding_every_reader_gets_plain_matrices(tmp_path: Path) -> None:
    """W' = (W H) H^T: the same function, and an ordinary model that can be saved."""
    folder, rows = tiny("llama", tmp_path / "model"), inputs("llama", 2, LENGTH, seed=2)
    run(folder, tmp_path / "out", steps({"online": {}}, bits=8), verify="full")
    api.export(tmp_path / "out", "dense", tmp_path / "dense")
    model, dense = plain(tmp_path / "out").eval(), plain(tmp_path / "dense").eval()
    model.save_pretrained(tmp_path / "saved")
    ours, original = thrifty.load(tmp_path / "out", torch.float32), plain(folder).eval()
    with torch.no_grad():
        expected = original(**rows).logits
        for one in (model, dense, ours, plain(tmp_path / "saved").eval()):
            found = one(**rows).logits
            torch.testing.assert_close(found, dense(**rows).logits, rtol=1e-4, atol=1e-4)
            assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_rounded_inputs_need_no_turn(tmp_path: Path) -> None:
    """3 bits take 3 bits in the container, and inputs are rounded there, too."""
    out, said = tmp_path / "out", []
    found = run(tiny("llama", tmp_path / "model"), out, steps(bits=3, activation={"dynamic": {}}), verify="full")
    own = json.loads((out / "config.json").read_text())["quantization_config"]
    (group,) = own["inputs"]
    assert group["bits"] == 8 and sorted(group["matrices"]) == sorted(key for held in own["groups"] for key in held["matrices"])
    assert found["bits_per_weight"] < 3.6
    with events.listening(lambda event: said.append(event.message)):
        api.export(out, "dense", tmp_path / "dense")
    assert any("inputs are no longer rounded" in message for message in said)
    rows = inputs("llama", 2, LENGTH, seed=2)
    with torch.no_grad():
        rounded, unrounded = thrifty.load(out, torch.float32)(**rows).logits, plain(tmp_path / "dense").eval()(**rows).logits
    assert not torch.allclose(rounded, unrounded, rtol=1e-4, atol=1e-4)
    assert float((rounded - unrounded).norm() / unrounded.norm()) < 0.05


def test_bfloat16_kernels_read_turned_inputs(tmp_path: Path) -> None:
    rows = inputs("llama", 2, LENGTH, seed=2)
    run(tiny("llama", tmp_path / "model"), tmp_path / "out", steps({"online": {}}, bits=8, activation={"dynamic": {"bits": 8}}))
    ours, wide = thrifty.load(tmp_path / "out"), thrifty.load(tmp_path / "out", torch.float32)
    with torch.no_grad():
        apart = ours(**rows).logits.float() - wide(**rows).logits
        assert float(apart.norm() / wide(**rows).logits.norm()) < 0.05


def test_other_formats_and_orders_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    four = {"dynamic": {"bits": 4}}
    for recipe, words, message in (
        (steps({"online": {}}, activation=four), {"format": "compressed-tensors"}, "which only the container holds; add --format thrifty"),
        (steps({"online": {}}, {"awq": {}}), {}, "awq rewrites what online has turned; put online behind it"),
        ({"steps": [{"online": {}}, {"rtn": {"group_size": 0}}, {"distill": {}}]}, {}, "does not train matrices whose inputs are turned"),
        ({"steps": [{"online": {}}, {"magnitude": {"pattern": "2:4"}}]}, {}, r"no reader would turn .*down_proj: .*; leave `online` out"),
    ):
        with pytest.raises(InputError, match=message):
            run(folder, tmp_path / "out", recipe, **words)
    for architecture in ("gpt2", "mixtral"):
        with pytest.raises(InputError, match="no reader would turn the inputs of this model"):
            run(tiny(architecture, tmp_path / architecture), tmp_path / "out", steps({"online": {}}), architecture)
    assert not (tmp_path / "out").exists()
