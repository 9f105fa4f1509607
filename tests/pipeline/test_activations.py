"""Inputs that are rounded while the model runs: as readers of the result do it, on every architecture, and calibrated on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import thrifty
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.api.results import export
from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.core.activations import Histogram, Rounding
from thrifty.data import default_model, load_rows
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.models.disk import read_tensor
from thrifty.models.folder import scan_folder
from thrifty.models.shell import main_output
from thrifty.pipeline.price import _counting
from thrifty.weights.activation.dynamic import Dynamic
from thrifty.weights.activation.static import Static

LENGTH = 24
EXAMPLES = {f"{kind.name}{number or ''}": example for kind in (Dynamic, Static) for number, example in enumerate(kind.examples())}


def recipe(activation: object, bits: int = 8, group_size: int = 0) -> dict:
    step = {"bits": bits, "group_size": group_size}
    return {"steps": [{"rtn": {**step, "activation": activation} if activation else step}]}


def run(folder: Path, out: Path, steps: dict, architecture: str, **words) -> dict:
    return thrifty.compress(
        folder, steps, inputs(architecture, 4, LENGTH), evaluation=inputs(architecture, 2, LENGTH, seed=1), out=out, speed=False, **words
    )


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_readers_round_as_the_walk_does(architecture: str, name: str, tmp_path: Path) -> None:
    """`verify=full` compares the logits of transformers; where no reader would round, nothing is written and the reason is said."""
    folder = tiny(architecture, tmp_path / "model")
    example = EXAMPLES[name]
    steps = recipe({example.name: example.settings()})
    anatomy = open_model(folder).anatomy
    if any(linear.expert is not None or linear.storage == "conv1d" for linear in anatomy.linears) or not reads(folder):
        with pytest.raises(InputError, match=r"no reader would round the inputs of this model \(.+: .+\); leave `activation` out"):
            run(folder, tmp_path / "out", steps, architecture)
        assert not (tmp_path / "out").exists()
        return
    if architecture == "opt" and name == "dynamic":
        # Its feed-forward layers read matrices, whose every value has a scale of its own in transformers: nothing is rounded there.
        with pytest.raises(RunError, match="differ by"):
            run(folder, tmp_path / "out", steps, architecture, verify="full")
        return
    run(folder, tmp_path / "out", steps, architecture, verify="full")
    certificate = Certificate.read(tmp_path / "out")
    assert {layer.details["input_bits"] for layer in certificate.layers} == {8.0}
    ours = thrifty.load(tmp_path / "out", torch.float32)
    plain = type(ours).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    rows = inputs(architecture, 2, LENGTH, seed=2)
    with torch.no_grad():
        expected, found = main_output(plain(**rows)), main_output(ours(**rows))
        unrounded = main_output(thrifty.load(folder, torch.float32)(**rows))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, unrounded, rtol=1e-4, atol=1e-4)


def reads(folder: Path) -> bool:
    """Whether transformers takes codes into the linears of this model without decoding them while it loads."""
    source = open_model(folder)
    return not source.fills_linears and not any(block.state_space for block in source.anatomy.blocks)


def test_a_grid_of_four_bits_costs_a_byte_a_code_and_is_said_to(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    found = run(folder, tmp_path / "out", recipe("dynamic", bits=4, group_size=32), "llama", verify="full")
    assert found["bits_per_weight"] == pytest.approx(8 + 16 / 32, abs=0.02)
    assert any("a byte" in warning for warning in found["warnings"])


def test_static_grids_come_from_calibration_alone(tmp_path: Path) -> None:
    """Another evaluation text changes no byte; another calibration text does."""
    folder = tiny("llama", tmp_path / "model")
    files = []
    for number, (seed, judged) in enumerate(((0, 1), (0, 2), (3, 1))):
        out = tmp_path / f"out{number}"
        rows, held_out = inputs("llama", 4, LENGTH, seed=seed), inputs("llama", 2, LENGTH, seed=judged)
        thrifty.compress(folder, recipe("static"), rows, evaluation=held_out, out=out, speed=False)
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("order", ["stage", "block"])
def test_both_orders_fix_the_same_grids(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first stage, whose inputs no earlier rounding has touched: the range of what reaches it, as a hook sees it."""
    monkeypatch.setattr("thrifty.api.request.STAGE_BYTES", 0 if order == "block" else 1 << 40)
    monkeypatch.setattr("thrifty.api.request.STAGE_SHARE", 0 if order == "block" else 1)
    folder = tiny("llama", tmp_path / "model")
    run(folder, tmp_path / "out", recipe({"static": {"rule": "min_max"}}), "llama")
    model, seen = thrifty.load(folder, torch.float32), []
    model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(**inputs("llama", 4, LENGTH))
    whole = Histogram.of(seen[0])
    expected = Static(rule="min_max").fit(whole)
    tensors, _ = scan_folder(tmp_path / "out", allow_pickle=False)
    stored = {part: read_tensor(name, tensors[name]) for part in ("input_scale", "input_zero_point") if (name := f"{STEM}.{part}")}
    assert torch.equal(stored["input_scale"], expected.scale)
    assert torch.equal(stored["input_zero_point"].float(), expected.zero_point)


STEM = "model.layers.0.self_attn.q_proj"


def test_rewritten_inputs_are_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed grid after `smoothquant` fits the inputs as they are then, in either order."""
    folder = tiny("llama", tmp_path / "model")
    losses = []
    for number, share in enumerate((0, 1 << 40)):
        monkeypatch.setattr("thrifty.api.request.STAGE_BYTES", share)
        monkeypatch.setattr("thrifty.api.request.STAGE_SHARE", float(share > 0))
        steps = {"steps": [{"smoothquant": {}}, *recipe("static")["steps"]]}
        run(folder, tmp_path / str(number), steps, "llama", verify="full")
        tensors, _ = scan_folder(tmp_path / str(number), allow_pickle=False)
        losses.append(float(read_tensor("scale", tensors[f"{STEM}.input_scale"])))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_words_for_bad_recipes(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    with pytest.raises(InputError, match="zero points"):
        run(folder, tmp_path / "out", {"steps": [{"rtn": {"symmetric": False, "activation": "dynamic"}}]}, "llama")
    floats = {"by": "round", "into": {"float": {"format": "e4m3", "group_size": 0}}, "activation": "dynamic"}
    with pytest.raises(InputError, match="integers with fp8"):
        run(folder, tmp_path / "out", {"steps": [{"solve": floats}]}, "llama")
    assert not (tmp_path / "out").exists()


def test_a_dense_export_says_that_inputs_are_no_longer_rounded(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    run(folder, tmp_path / "out", recipe("dynamic"), "llama")
    said: list[str] = []
    with events.listening(lambda event: said.append(event.message) if event.kind == "warning" else None):
        export(tmp_path / "out", "dense", tmp_path / "dense")
    plain, ours = thrifty.load(tmp_path / "dense", torch.float32), thrifty.load(tmp_path / "out", torch.float32)
    for path, layer in ours.named_modules():
        if hasattr(layer, "rounding"):
            assert torch.equal(plain.get_submodule(path).weight, layer._decode())
    assert any("inputs are no longer rounded" in message for message in said)


def test_rounding_the_inputs_of_the_model_inside_the_package() -> None:
    """8 bits a token cost little, 4 cost much more."""
    folder = default_model()
    rows = load_rows(
        folder=folder, config=open_model(folder).config, kind="causal_lm", purpose="evaluation", text=(), samples=4, tokens=128, seed=0
    ).inputs["input_ids"]
    model = thrifty.load(folder, torch.float32)
    with torch.no_grad():
        expected = model(input_ids=rows).logits.log_softmax(-1)
        losses = {}
        for bits in (8, 4):
            handles = [
                layer.register_forward_pre_hook(lambda _, arguments, bits=bits: (Rounding(bits, "token", True)(arguments[0]),))
                for path, layer in model.named_modules()
                if path.endswith("_proj")
            ]
            found = model(input_ids=rows).logits.log_softmax(-1)
            losses[bits] = float((expected.exp() * (expected - found)).sum(-1).mean())
            for handle in handles:
                handle.remove()
    assert 0 < losses[8] < 0.005 < losses[4]


@pytest.mark.parametrize("order", ["stage", "block"])
def test_a_grid_for_each_channel_is_simulated(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run rounds by channel and says that no reader does: the file is dense, and its figures are not of that file."""
    monkeypatch.setattr("thrifty.api.request.STAGE_BYTES", 0 if order == "block" else 1 << 40)
    monkeypatch.setattr("thrifty.api.request.STAGE_SHARE", 0 if order == "block" else 1)
    folder = tiny("llama", tmp_path / "model")
    found = {}
    for name, activation in (("channel", {"static": {"bits": 3, "per": "channel"}}), ("tensor", {"static": {"bits": 3}}), ("none", None)):
        # judged on what it was calibrated on: 96 tokens of a random model tell little of the ends of a channel
        rows = inputs("llama", 4, LENGTH)
        found[name] = thrifty.compress(folder, recipe(activation), rows, evaluation=rows, out=tmp_path / name, speed=False)
    certificate = Certificate.read(tmp_path / "channel")
    assert all(layer.simulated and layer.details["input_bits"] == 3 and layer.bits == 8 for layer in certificate.layers)
    assert "quantization_config" not in json.loads((tmp_path / "channel" / "config.json").read_text())
    assert any("no reader rounds inputs by channel" in warning for warning in found["channel"]["warnings"])
    assert found["none"]["kl"]["value"] < found["channel"]["kl"]["value"] < found["tensor"]["kl"]["value"]


def test_counting_by_channel_is_priced(tmp_path: Path) -> None:
    """16 KiB a channel: of all stages (64, 64, 64 and 96 channels), and of the widest twice more."""
    source = open_model(tiny("llama", tmp_path / "model"))
    counted = []
    for per in ("channel", "tensor"):
        work = SimpleNamespace(activation=lambda path, per=per: Static(per=per))
        counted.append(_counting(source.anatomy.blocks[0], work))
    assert counted == [(3 * 64 + 96 + 2 * 96) * 16384, 0]


def test_what_no_reader_does_is_neither_verified_nor_packed(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    steps = recipe({"static": {"per": "channel"}})
    with pytest.raises(InputError, match="leave --verify full out"):
        run(folder, tmp_path / "out", steps, "llama", verify="full")
    with pytest.raises(InputError, match="no reader rounds inputs by channel"):
        run(folder, tmp_path / "out", steps, "llama", format="thrifty")
    assert not (tmp_path / "out").exists()


def test_experts_keep_their_inputs_where_grids_would_be_by_channel(tmp_path: Path) -> None:
    """Few tokens reach one; what all of them read is not split."""
    found = run(tiny("olmoe", tmp_path / "model"), tmp_path / "out", recipe({"static": {"per": "channel"}}), "olmoe")
    assert any("too few tokens reach an expert for a grid of each channel" in said for said in found["warnings"])
