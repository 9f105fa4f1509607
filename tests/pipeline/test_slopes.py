"""Gradients taken block by block against those of the whole model in plain transformers, and a step that cuts by them."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

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
from thrifty.pipeline.slopes import descent, directions

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


def logits_of(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """[rows, predictions, classes]"""
    return main_output(model(**rows)).unflatten(0, (len(next(iter(rows.values()))), -1)).flatten(1, -2)


def counted(name: str, predictions: int) -> int:
    """How many of them count: the last of a text has nothing that follows."""
    return predictions if name in MODELS else predictions - 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba", "bert", "vit"])
def test_directions_are_those_of_the_whole_model(name, folder_of):
    source, rows = open_model(folder_of(name)), inputs(name, rows=3, length=12, seed=4)
    model = MODELS.get(name, transformers.AutoModelForCausalLM).from_pretrained(source.folder, dtype=torch.float32).eval()
    leaving: dict[str, Tensor] = {}
    for block in source.anatomy.blocks:
        keep = partial(lambda path, _, arguments, out: leaving.update({path: out[0] if isinstance(out, tuple) else out}), block.path)
        model.get_submodule(block.path).register_forward_hook(keep)
    drawn, expected = torch.Generator().manual_seed(7), {block.path: [] for block in source.anatomy.blocks}
    for row in range(3):
        logits = logits_of(model, {key: tensor[row : row + 1] for key, tensor in rows.items()})[0]
        p = logits.detach().softmax(-1)
        e = torch.randn(p.shape, generator=drawn)
        v = torch.stack([(one.diag().sqrt() - torch.outer(one, one.sqrt())) @ noise for one, noise in zip(p, e, strict=True)])
        number = counted(name, len(v))
        (logits * v)[:number].sum().backward(inputs=list(leaving.values()), retain_graph=True)
        for path, hidden in leaving.items():
            expected[path].append(hidden.grad / (2 * number) ** 0.5)
    found = dict((block.path, slopes) for block, slopes in directions(source, Rows.of(rows), Setting(seed=7, batch=2)))
    for path, slopes in found.items():
        right = torch.cat(expected[path]).reshape(slopes.shape)
        assert float((slopes - right).abs().max()) <= 1e-4 * float(right.abs().max()), path
    assert list(found) == [block.path for block in reversed(source.anatomy.blocks)]


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_their_products_are_the_divergence_of_predictions_in_the_mean(name, folder_of):
    """One row many times over, so that only the directions differ, and one token of it changed where it leaves the first block."""
    source = open_model(folder_of(name))
    one = inputs(name, rows=1, length=12, seed=4)
    model = MODELS.get(name, transformers.AutoModelForCausalLM).from_pretrained(source.folder, dtype=torch.float64).eval()
    many = {key: tensor.expand(1500, *tensor.shape[1:]).contiguous() for key, tensor in one.items()}
    *_, (block, slopes) = directions(source, Rows.of(many), Setting(seed=3, batch=500))
    change = torch.zeros(slopes.shape[1:], dtype=torch.float64)
    change[0 if name == "vit" else 5] = 1e-3 * torch.randn(slopes.shape[-1], generator=torch.Generator().manual_seed(1))

    def changing(_, arguments, out):
        return (out[0] + change, *out[1:]) if isinstance(out, tuple) else out + change

    exact = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in one.items()}
    with torch.no_grad():
        before = logits_of(model, exact)[0].log_softmax(-1)
        model.get_submodule(block.path).register_forward_hook(changing)
        after = logits_of(model, exact)[0].log_softmax(-1)
    number = counted(name, len(before))
    divergence = float((before.exp() * (before - after)).sum(-1)[:number].mean())
    found = float((slopes.double() * change).sum(-1).square().sum(-1).mean())
    assert found == pytest.approx(divergence, rel=0.12)


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
