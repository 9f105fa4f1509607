"""The contract of every method of weights: on every architecture it runs, is certified, and reloads in plain transformers.

A new method joins by existing: its `examples()` are run, as a step of its own or as a part of `solve`. Methods whose results are stored
alike share the stages of one model among them, each architecture in another way: one run has room for many. What a method may lose, and how
many bytes its result may take, is worked out here from the weights and the target alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

import thrifty
from tests.tiny import ARCHITECTURES, DIFFUSION, add_reader, inputs, tiny
from thrifty.base.anatomy import Linear
from thrifty.base.errors import InputError
from thrifty.base.method import Method
from thrifty.base.records import Encoded
from thrifty.export.compressed import packed_bytes, scheme_of
from thrifty.measure.certificate import Certificate
from thrifty.measure.size import tensor_bytes
from thrifty.models import Source, open_model
from thrifty.models.shell import main_output
from thrifty.pipeline.catalogue import load_methods
from thrifty.pipeline.packing import FLOATS_SINCE
from thrifty.pipeline.steps import Work
from thrifty.pipeline.view import read_matrix
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve
from thrifty.recipe.settings import build_method
from thrifty.weights.base import Allocator, Preset, Solver, Target, Transform
from thrifty.weights.target.int import Int
from thrifty.weights.target.top_k import TopK

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
        # what readers do while the model runs, our container alone holds: tests/pipeline/test_online.py
        return None if example.while_running else [word, {"rtn": {}}]
    if isinstance(example, Target):
        return [{"solve": {"by": {"round": {}}, "into": word}}]
    if isinstance(example, Solver):
        into = _reached(example)
        return [{"solve": {"by": word, "into": {into.name: into.settings()}}}]
    if isinstance(example, Allocator):
        into = _accepted(example)
        return [{"solve": {"by": {"obs": {}}, "into": {into.name: into.settings()}, "share": word}}]
    return None


def _reached(solver: Solver) -> Target:
    """An integer grid, or where the solver is for other targets, an example of one that it accepts."""
    others = [example for method in load_methods().values() if issubclass(method, Target) for example in method.examples()]
    for target in (Int(), *others):
        try:
            solver.accepts(target)
            return target
        except InputError:
            continue
    raise AssertionError(f"{solver.name} accepts no target")


def _accepted(allocator: Allocator) -> Target:
    for target in (Int(), Int(group_size=0, symmetric=False), TopK()):
        try:
            allocator.accepts(target)
            return target
        except InputError:
            continue
    raise AssertionError(f"{allocator.name} accepts neither an integer grid nor a mask")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of the tiny model of that name, its weights in that type."""
    root = tmp_path_factory.mktemp("contract")

    def get(name: str, dtype: torch.dtype = torch.float32) -> Path:
        folder = root / f"{name}-{str(dtype).removeprefix('torch.')}"
        return folder if folder.exists() else tiny(name, folder, dtype=dtype)

    return get


RECIPES = tuple(recipes())


def alike() -> dict[str, list[dict[str, Any]]]:
    """The first steps of all recipes, by what follows them and how their results are stored."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for _, (first, *rest) in RECIPES:
        ((name, settings),) = first.items()
        groups.setdefault("rescaled" if rest else _storage(build_method(name, settings)), []).append(first)
    return groups


def _storage(preset: Method) -> str:
    """In what form the result of a preset is stored."""
    assert isinstance(preset, Preset)
    treatment = preset.expand()
    if treatment.allocator is not None and treatment.allocator.within_matrix:
        return "dense"
    outline = treatment.target.outline(64, 64)
    if outline.layout == "int":
        return f"{place(outline)}-{outline.group_size}-{'-'.join(outline.tensors)}"
    return outline.standard or "dense"


def place(outline: Encoded) -> int:
    """Bits that the format gives to an integer code: it has places of 4 and of 8."""
    return 4 if outline.bits <= 4 else 8


ALIKE = alike()


@pytest.mark.parametrize(("architecture", "group"), [*product(ARCHITECTURES, ALIKE), (DIFFUSION[0], "rescaled")])
def test_contract(architecture: str, group: str, folder_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = folder_of(architecture)
    stages = [
        paths
        for block in open_model(folder).anatomy.blocks
        for stage in block.stages
        if (paths := [linear.path for linear in stage.linears if linear.in_features % 32 == 0])
    ]
    random.Random(architecture).shuffle(stages)
    left = ALIKE[group]
    lost = Lost([], [])
    rounds = -(-len(left) // len(stages))
    for still in range(rounds, 0, -1):
        size = -(-len(left) // still)  # the last round is no smaller than the others by more than one
        now, left = left[:size], left[size:]
        steps = [{**step, "only": list(chain.from_iterable(stages[number :: len(now)]))} for number, step in enumerate(now)]
        steps += [{"rtn": {}}] if group == "rescaled" else []
        lost += keeps_the_contract(architecture, steps, folder, tmp_path / f"{len(left)} left")
    lost.is_little()


@pytest.mark.parametrize(
    ("architecture", "steps"),
    [
        pytest.param(architecture, steps, id=f"{architecture}-{name}")
        for architecture, (name, steps) in zip((*ARCHITECTURES, *DIFFUSION), cycle(RECIPES), strict=False)
    ],
)
def test_contract_in_bfloat16(architecture: str, steps: list[dict[str, Any]], folder_of: Callable[..., Path], tmp_path: Path) -> None:
    keeps_the_contract(architecture, steps, folder_of(architecture, torch.bfloat16), tmp_path / "out").is_little()


@dataclass
class Lost:
    """What layers lose, in parts of what rounding their weights to nearest, or dropping the smallest, would: by methods that look at
    weights alone, and by those that calibrate. In the mean over all that a test solved; a single small matrix says little."""

    plain: list[float]
    calibrated: list[float]

    def __add__(self, other: Lost) -> Lost:
        return Lost(self.plain + other.plain, self.calibrated + other.calibrated)

    def is_little(self) -> None:
        assert not self.plain or sum(self.plain) / len(self.plain) < 1.2, self
        assert not self.calibrated or sum(self.calibrated) / len(self.calibrated) < 0.95, self


def keeps_the_contract(architecture: str, steps: list[dict[str, Any]], folder: Path, out: Path) -> Lost:
    source = open_model(folder)
    anatomy = source.anatomy
    odd = [linear.path for linear in anatomy.linears if linear.in_features % 32]
    recipe = {"steps": [{**step, "skip": odd} if odd else step for step in steps]}
    rows = inputs(architecture, ROWS, LENGTH)
    # `full` compares the logits of plain transformers with those of the walk.
    found = thrifty.compress(folder, recipe, rows, evaluation=inputs(architecture, 2, LENGTH, seed=1), out=out, verify="full", speed=False)
    certificate = Certificate.read(out)
    assert {layer.name for layer in certificate.layers} == {linear.path for linear in anatomy.linears} - set(odd)
    work = Work.of(resolve(complete(parse_recipe(recipe)), anatomy))
    lost = losses(source, work, certificate)
    is_packed(source, work, certificate, out)
    assert found["bytes"]["after"] <= found["bytes"]["before"] + 200 * len(certificate.layers)
    assert certificate.quality, "nothing was measured"
    assert all(torch.isfinite(torch.tensor(entry.difference)) for entry in certificate.quality)
    assert folder.name in (out / "report.html").read_text(encoding="utf-8")
    return lost


def losses(source: Source, work: Work, certificate: Certificate) -> Lost:
    """No layer loses much more than rounding its weights to nearest, or dropping the smallest, or both, would; how much each does.

    An output projection alone may lose more: its inputs in these small models lie in few directions, where an error may happen to lie, too.
    """
    linears = {linear.path: linear for linear in source.anatomy.linears}
    lost = Lost([], [])
    for layer in certificate.layers:
        linear, treatment = linears[layer.name], work.treatments[layer.name][-1]
        weight = read_matrix(source, linear).to(torch.float32)
        outline = treatment.target.outline(*weight.shape)
        if outline.layout == "dense" and not treatment.target.nominal_sparsity:  # it gives nothing up
            assert layer.relative_error < 1e-12, layer
            continue
        if outline.layout in ("numbers", "additive") or outline.bits <= 2:
            plain = nearest(weight, treatment.target)
        elif treatment.target.nominal_sparsity:
            run = getattr(getattr(treatment.target, "mask", treatment.target), "m", weight.shape[1])
            plain = dropped(weight, run, round(layer.sparsity * run))
        else:
            plain = rounded(weight, outline.bits, outline.group_size)
        both = plain + rounded(weight, outline.bits, outline.group_size) if hasattr(treatment.target, "mask") else plain
        assert 0 < layer.relative_error < (2 if linear.role == "o" else 1.4) * both, (layer, both)
        (lost.calibrated if treatment.calibrated else lost.plain).append(layer.relative_error / plain)
    return lost


def rounded(weight: Tensor, bits: float, group_size: int) -> float:
    """What rounding to the nearest of evenly spaced values loses, as a share of the sum of squares; groups share a step."""
    groups = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    step = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 0.5)
    return float((groups - (groups / step).round() * step).square().sum() / groups.square().sum())


def nearest(weight: Tensor, target: Target) -> float:
    """What rounding to the numbers of a format loses, as a share of the sum of squares: they are not evenly spaced, or too few to span all
    weights."""
    return float((weight - target.fit(weight).project(weight)).square().sum() / weight.square().sum())


def dropped(weight: Tensor, run: int, zeros: int) -> float:
    """What dropping the smallest `zeros` of each `run` inputs loses, as a share of the sum of squares."""
    smaller = weight.square().reshape(-1, run).sort(dim=1).values[:, :zeros]
    return float(smaller.sum() / weight.square().sum())


def is_packed(source: Source, work: Work, certificate: Certificate, out: Path) -> None:
    """What is quantized is stored as codes, to the byte; where no reader has a form for it, it is dense and the certificate says so."""
    stored = tensor_bytes(out)
    linears = {linear.path: linear for linear in source.anatomy.linears}
    expected = weights = 0
    outlines = {layer.name: work.treatments[layer.name][-1].target.outline(*_shape(linears[layer.name])) for layer in certificate.layers}
    # Experts are read packed only as integers without zero points; if one is not, the whole model is stored dense.
    whole = any(
        linears[name].expert is not None and ("zero_point" in outline.tensors or outline.standard) for name, outline in outlines.items()
    )
    dense = False
    for layer in certificate.layers:
        linear, outline = linears[layer.name], outlines[layer.name]
        asymmetric = "zero_point" in outline.tensors
        if outline.layout == "dense":
            continue
        old = outline.standard not in ("", "fp8") and Version(transformers.__version__) < FLOATS_SINCE
        if layer.simulated or linear.storage != "linear" or whole or old or source.library != "transformers":
            assert linear.source in stored
            dense = True
            continue
        stem = linear.source.removesuffix(".weight")
        groups = linear.out_features * (linear.in_features // outline.group_size if outline.group_size else 1)
        # Scales of experts are as wide as the model's weights, those that transformers decodes while loading hold every value.
        decoded = outline.bits > 4 and (source.fills_linears or bool(source.anatomy.blocks[0].state_space))
        scale = source.dtype.itemsize if linear.expert is not None else 4 if decoded else 2
        codes = linear.out_features * linear.in_features
        if outline.standard:
            expected += packed_bytes(*_shape(linear), scheme_of(outline), torch.float32 if decoded else torch.bfloat16)
            weights += codes
            assert f"{stem}.weight_scale" in stored
            continue
        expected += int(codes * place(outline) / 8 + groups * (scale + asymmetric * place(outline) / 8)) + 16
        weights += codes
        assert f"{stem}.weight_packed" in stored and linear.source not in stored
    assert dense == any("stored dense at full size" in warning for warning in certificate.warnings)
    stems = {key.removesuffix("_scale") for key in stored if key.endswith(".weight_scale")}
    packed = sum(size for key, size in stored.items() if ".weight_" in key or key in stems)
    assert packed <= 1.01 * expected
    if weights:
        assert certificate.bits_per_weight == pytest.approx(8 * packed / weights, rel=0.01)


def _shape(linear: Linear) -> tuple[int, int]:
    return linear.out_features, linear.in_features


@pytest.mark.parametrize("architecture", ["llama", "mamba", "bert", "vit", "clip", "llava"])
def test_data_from_files(architecture: str, tmp_path: Path) -> None:
    """Text through the model's tokenizer, images through its processor, as a user gives them."""
    folder = tiny(architecture, tmp_path / "model")
    add_reader(architecture, folder)
    odd = [linear.path for linear in open_model(folder).anatomy.linears if linear.in_features % 32]
    data: dict[str, dict[str, Any]] = {purpose: {"samples": 3} for purpose in ("calibration", "evaluation")}
    for number, (purpose, wanted) in enumerate(data.items()):
        if architecture in ("llama", "mamba", "bert"):
            wanted |= {"text": str(tmp_path / f"{purpose}.txt"), "tokens": 16}
            Path(wanted["text"]).write_text(" ".join(f"the {purpose} of {word} {word * 7}" for word in range(number, 200)))
        else:
            wanted["images"] = str(tmp_path / purpose)
            pictures(tmp_path / purpose, number)
    recipe = {**data, "steps": [{"gptq": {"bits": 4, "group_size": 32}, **({"skip": odd} if odd else {})}]}
    found = thrifty.compress(folder, recipe, out=tmp_path / "out", verify="full")
    certificate = Certificate.read(tmp_path / "out")
    for purpose, wanted in data.items():
        source = found["data"][purpose]
        assert source["rows"] == 3 and source["source"] in (wanted.get("text"), wanted.get("images"))
    assert found["data"]["calibration"]["digest"] != found["data"]["evaluation"]["digest"]
    assert all(0 < layer.relative_error < 0.012 for layer in certificate.layers)
    assert certificate.quality


def pictures(folder: Path, seed: int) -> None:
    """Three images of random colours."""
    image = pytest.importorskip("PIL.Image")
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for number in range(3):
        colours = torch.randint(0, 256, (40, 36, 3), generator=generator, dtype=torch.uint8)
        image.fromarray(colours.numpy()).save(folder / f"{number}.png")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_runtime_gives_what_transformers_gives(architecture: str, folder_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = folder_of(architecture)
    odd = [linear.path for linear in open_model(folder).anatomy.linears if linear.in_features % 32]
    recipe = {"steps": [{"rtn": {"bits": 4, "group_size": 32}, **({"skip": odd} if odd else {})}]}
    thrifty.compress(
        folder, recipe, out=tmp_path / "out", evaluation=inputs(architecture, 2, LENGTH), calibration=inputs(architecture, 1, LENGTH)
    )
    rows = inputs(architecture, 2, LENGTH, seed=2)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    plain = getattr(transformers, config.architectures[0]).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = thrifty.load(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected, found = main_output(plain(**rows)), main_output(ours(**rows))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
