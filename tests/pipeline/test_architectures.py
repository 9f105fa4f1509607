"""The contract of every method of weights: on every architecture it runs, is certified, and reloads in plain transformers.

A new method joins by existing: its `examples()` are run, as a step of its own or as a part of `solve`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import thrifty
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.base.errors import InputError
from thrifty.base.method import Method
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.models.shell import main_output
from thrifty.pipeline.catalogue import load_methods
from thrifty.weights.base import Allocator, Preset, Solver, Target, Transform
from thrifty.weights.target.int import Int

ROWS, LENGTH = 4, 24


def recipes() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(a name, the steps) of every example of every method of weights."""
    for name, method in load_methods().items():
        for number, example in enumerate(method.examples()):
            steps = _steps(example)
            if steps is not None:
                yield f"{name}{number or ''}", steps


def _steps(example: Method) -> list[dict[str, Any]] | None:
    word = {example.name: example.settings()}
    if isinstance(example, Preset):
        return [word]
    if isinstance(example, Transform):
        return [word, {"rtn": {}}]
    if isinstance(example, Target):
        return [{"solve": {"by": {"round": {}}, "into": word}}]
    if isinstance(example, Solver):
        return [{"solve": {"by": word, "into": {"int": {}}}}]
    if isinstance(example, Allocator):
        return [{"solve": {"by": {"obs": {}}, "into": {"int": _accepted(example).settings()}, "share": word}}]
    return None


def _accepted(allocator: Allocator) -> Int:
    for target in (Int(), Int(group_size=0, symmetric=False)):
        try:
            allocator.accepts(target)
            return target
        except InputError:
            continue
    raise AssertionError(f"{allocator.name} accepts no integer grid")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny model of that name."""
    root = tmp_path_factory.mktemp("contract")

    def get(name: str) -> Path:
        return root / name if (root / name).exists() else tiny(name, root / name)

    return get


@pytest.mark.parametrize(("steps"), [pytest.param(steps, id=name) for name, steps in recipes()])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contract(architecture: str, steps: list[dict[str, Any]], folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of(architecture)
    anatomy = open_model(folder).anatomy
    odd = [linear.path for linear in anatomy.linears if linear.in_features % 32]
    recipe = {"steps": [{**step, "skip": odd} if odd else step for step in steps]}
    rows = inputs(architecture, ROWS, LENGTH)
    out = tmp_path / "out"
    # `full` compares the logits of plain transformers with those of the walk.
    found = thrifty.compress(folder, recipe, rows, evaluation=inputs(architecture, 2, LENGTH, seed=1), out=out, verify="full")
    certificate = Certificate.read(out)
    assert {layer.name for layer in certificate.layers} == {linear.path for linear in anatomy.linears} - set(odd)
    assert all(0 < layer.relative_error < 1 for layer in certificate.layers), [layer.relative_error for layer in certificate.layers]
    assert found["bytes"]["after"] <= found["bytes"]["before"] + 200 * len(certificate.layers)
    assert certificate.quality, "nothing was measured"
    assert all(torch.isfinite(torch.tensor(entry.difference)) for entry in certificate.quality)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_runtime_gives_what_transformers_gives(architecture: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of(architecture)
    odd = [linear.path for linear in open_model(folder).anatomy.linears if linear.in_features % 32]
    recipe = {"steps": [{"rtn": {"bits": 4, "group_size": 32}, **({"skip": odd} if odd else {})}]}
    thrifty.compress(
        folder, recipe, out=tmp_path / "out", evaluation=inputs(architecture, 2, LENGTH), calibration=inputs(architecture, 1, LENGTH)
    )
    rows = inputs(architecture, 2, LENGTH, seed=2)
    import transformers

    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    plain = getattr(transformers, config.architectures[0]).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = thrifty.load(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected, found = main_output(plain(**rows)), main_output(ours(**rows))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
