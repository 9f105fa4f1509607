"""Gradients taken block by block against those of the whole model in plain transformers, and a step that cuts by them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers
from torch import Tensor, nn

import thrifty
from tests.tiny import inputs
from thrifty.base.anatomy import Linear
from thrifty.base.errors import InputError, RunError
from thrifty.data import Rows
from thrifty.models import Source, open_model
from thrifty.models.shell import main_output
from thrifty.pipeline import choosing
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.reshape import ReshapeWalk
from thrifty.pipeline.slopes import descent

MODELS = {
    "vit": transformers.AutoModelForImageClassification,
    "bert": transformers.AutoModelForMaskedLM,
}


def by_autograd(source: Source, name: str, rows: dict[str, Tensor], seed: int) -> list[dict[str, Tensor]]:
    """The gradient of the loss of each row by each parameter, by its name in the model."""
    model = MODELS.get(name, transformers.AutoModelForCausalLM).from_pretrained(source.folder, dtype=torch.float32).eval()
    drawn, found = torch.Generator().manual_seed(seed), []
    for row in range(len(next(iter(rows.values())))):
        one = {key: tensor[row : row + 1] for key, tensor in rows.items()}
        model.zero_grad()
        logits = main_output(model(**one)).flatten(0, -2)
        if name in MODELS:
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=drawn).flatten()
        else:
            logits, labels = logits[:-1], one["input_ids"][0, 1:]
        nn.functional.cross_entropy(logits, labels).backward()
        found.append({key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None})
    return found


def of(linear: Linear, gradients: dict[str, Tensor]) -> Tensor:
    """That of one matrix, [out, in]; transformers holds experts in one tensor, gate and up behind each other."""
    if linear.expert is None:
        found = gradients[linear.path + ".weight"]
        return found.T if linear.storage == "conv1d" else found
    experts, _, rest = linear.path.rpartition(f".{linear.expert}.")
    name = "down_proj" if rest == "down_proj" else "gate_up_proj"
    whole = gradients[f"{experts}.{name}"][linear.expert]
    return whole if name == "down_proj" else whole.chunk(2)[("gate_proj", "up_proj").index(rest)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi", "mixtral", "mamba", "mamba2", "bert", "vit"])
def test_they_are_those_of_the_whole_model(name, folder_of):
    source, rows = open_model(folder_of(name)), inputs(name, rows=3, length=12, seed=4)
    expected = by_autograd(source, name, rows, 7)
    setting = Setting(seed=7, batch=2)
    order = []
    for block, slopes in descent(source, Rows.of(rows), setting):
        order.append(block.path)
        assert set(slopes) == {linear.path for linear in block.linears}
        for linear in block.linears:
            each = torch.stack([of(linear, gradients) for gradients in expected])
            mean, square = each.mean(0), each.square().mean(0)
            assert float((slopes[linear.path].mean - mean).abs().max()) <= 1e-4 * float(mean.abs().max()), linear.path
            assert float((slopes[linear.path].square - square).abs().max()) <= 1e-4 * float(square.abs().max()), linear.path
    assert order == [block.path for block in reversed(source.anatomy.blocks)]


def test_a_neuron_is_scaled_alike_where_it_is_written_and_where_it_is_read(folder_of):
    """(1 + e) of a row of `up` is (1 + e) of the column of `down`, so the loss changes alike with both."""
    source = open_model(folder_of("llama"))
    for block, slopes in descent(source, Rows.of(inputs("llama", rows=2, length=9)), Setting()):
        weights = {linear.path: source.read(linear.source) for linear in block.linears}
        up, down = (f"{block.path}.mlp.{name}_proj" for name in ("up", "down"))
        written = (slopes[up].mean * weights[up]).sum(1)
        read = (slopes[down].mean * weights[down]).sum(0)
        assert written.abs().max() > 0
        assert torch.allclose(written, read, rtol=1e-3, atol=1e-6 * float(written.abs().max()))


def cut(folder_of, name: str, out, **settings) -> dict:
    step = {"taylor_units": {"ratio": 0.5, "rows": 4, **settings}}
    calibration, judged = inputs(name, rows=6, length=20, seed=1), inputs(name, rows=3, length=20, seed=2)
    return thrifty.compress(folder_of(name), {"steps": [step]}, calibration, evaluation=judged, out=out, speed=False, verify="full")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"uneven": True, "multiple_of": 1}),
        ("mixtral", {"order": "mixed", "cut": ("neurons", "heads", "experts")}),
        ("mamba", {"order": "second", "cut": ("channels", "states")}),
        ("vit", {}),
        ("bert", {"cut": ("neurons",)}),
    ],
)
def test_a_step_cuts_by_them(name, settings, folder_of, tmp_path):
    result = cut(folder_of, name, tmp_path / "out", **settings)
    assert result["verified"] == "full"
    assert result["structure"]["parameters"]["after"] < result["structure"]["parameters"]["before"]


def test_what_stays_is_worth_most(folder_of, tmp_path):
    """Of the original model, whatever was cut before; the kept rows are found in the file."""
    cut(folder_of, "llama", tmp_path / "out", cut=("neurons",))
    source, result = open_model(folder_of("llama")), open_model(tmp_path / "out")
    rows = {name: tensor[:4] for name, tensor in inputs("llama", rows=6, length=20, seed=1).items()}
    for block, slopes in descent(source, Rows.of(rows), Setting()):
        total = torch.zeros(96)
        for name in ("gate", "up", "down"):
            path = f"{block.path}.mlp.{name}_proj"
            worth = (slopes[path].mean * source.read(path + ".weight")).abs()
            total += worth.sum(0) if name == "down" else worth.sum(1)
        kept = total.topk(48).indices.sort().values
        path = f"{block.path}.mlp.up_proj.weight"
        assert torch.equal(result.read(path), source.read(path)[kept])


def test_a_stopped_run_does_not_follow_the_loss_again(folder_of, tmp_path, monkeypatch):
    cut(folder_of, "llama", tmp_path / "undisturbed")

    def stop(self, key):
        raise RunError("stopped")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="stopped"):
        patched.setattr(ReshapeWalk, "run", stop)
        cut(folder_of, "llama", tmp_path / "out")
    assert json.loads((tmp_path / "out/.run/slopes.json").read_text())["found"]
    monkeypatch.setattr(choosing, "descent", lambda *_: pytest.fail("followed again"))
    cut(folder_of, "llama", tmp_path / "out")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("undisturbed", "out"))
    assert first == second


@pytest.mark.parametrize("name", ["clip", "llava"])
def test_a_model_without_such_a_loss_is_refused(name, folder_of, tmp_path):
    with pytest.raises(InputError, match=r"taylor_units follows the loss .* does not have"):
        cut(folder_of, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_units_that_no_row_reaches_are_named(folder_of, tmp_path, monkeypatch):
    def unreached(*arguments):
        for block, slopes in descent(*arguments):
            yield block, {path: dataclasses.replace(one, mean=one.mean * 0) for path, one in slopes.items()}

    monkeypatch.setattr(choosing, "descent", unreached)
    result = cut(folder_of, "llama", tmp_path / "out", cut=("neurons",))
    assert sum("the loss of no row changes with it" in warning for warning in result["warnings"]) == 2
