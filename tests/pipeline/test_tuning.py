"""Training all matrices together: on every causal model, off no grid, resumed anywhere, and better than what it started from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import thrifty
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.base.errors import InputError
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.pipeline import stored, tuning
from thrifty.train import loop

LENGTH = 24
STEP = {"solve": {"by": "obs", "into": {"zero_free": {"group_size": 32}}}}
TUNE = {"distill": {"steps": 4, "batch": 2}}


def run(architecture: str, folder: Path, out: Path, steps: list[dict], **words) -> dict:
    return thrifty.compress(
        folder,
        {"steps": steps},
        inputs(architecture, 6, LENGTH),
        evaluation=inputs(architecture, 2, LENGTH, seed=1),
        out=out,
        speed=False,
        **words,
    )


def odd(folder: Path) -> dict:
    """What no group of 32 divides is left out."""
    skipped = [linear.path for linear in open_model(folder).anatomy.linears if linear.in_features % 32]
    return {"skip": skipped} if skipped else {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_causal_model_and_classifier_is_trained_and_read_back(architecture: str, tmp_path: Path) -> None:
    folder = tiny(architecture, tmp_path / "model")
    anatomy = open_model(folder).anatomy
    steps = [{**STEP, **odd(folder)}, TUNE]
    if anatomy.kind != "causal_lm" and architecture != "vit":
        with pytest.raises(InputError, match=f"distill needs a causal language model.+{anatomy.architecture} is {anatomy.kind}"):
            run(architecture, folder, tmp_path / "out", steps)
        return
    run(architecture, folder, tmp_path / "out", steps, verify="full")
    certificate = Certificate.read(tmp_path / "out")
    moved = [layer for layer in certificate.layers if layer.relative_error != layer.details["error_before_tuning"]]
    assert len(moved) > len(certificate.layers) / 2
    assert all(layer.method == "solve+distill" for layer in certificate.layers)
    assert certificate.phases["tune"] > 0


STOPS = {"first walk": (tuning.Start, "save", 2), "training": (tuning.Network, "loss", 3), "second walk": (stored, "save_file", 2)}
"""What breaks, and at which call: the second block, the third step, the second block of the result."""


TRAINED = {
    "grids": [{"awq": {}}, STEP, TUNE],
    "ends of grids": [
        {
            "solve": {
                "by": "q_sam2",
                "into": {"int": {"bits": 8, "group_size": 0}},
                "activation": "static",
            }
        },
        {"distill": {**TUNE["distill"], "ends": "statistics"}},
    ],
    "codebooks and codes": [
        {"solve": {"by": {"aqlm": {"rounds": 1}}, "into": {"additive": {"bits": 4, "beam": 2}}}},
        {"distill": {**TUNE["distill"], "moves": 0.05}},
    ],
}


def bytes_of(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.safetensors"))}


@pytest.mark.parametrize(
    ("place", "trained"), [*((place, "grids") for place in STOPS), ("training", "ends of grids"), ("training", "codebooks and codes")]
)
def test_a_run_that_stops_anywhere_ends_with_the_same_bytes(
    place: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("llama", tmp_path / "model")
    steps = TRAINED[trained]
    run("llama", folder, tmp_path / "whole", steps)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVED", -1.0)
        owner, name, last = STOPS[place]
        whole, calls = getattr(owner, name), []

        def stops(*arguments, **words):
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return whole(*arguments, **words)

        patched.setattr(owner, name, stops)
        with pytest.raises(KeyboardInterrupt):
            run("llama", folder, tmp_path / "out", steps)
    assert (tmp_path / "out" / ".run").exists()
    run("llama", folder, tmp_path / "out", steps)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert not (tmp_path / "out" / ".run").exists()


def test_a_rewritten_model_is_trained_as_it_was_rewritten(tmp_path: Path) -> None:
    """With no step to speak of nothing moves: the result is that of the steps before, rewriting included."""
    folder = tiny("llama", tmp_path / "model")
    steps = [{"awq": {}}, {"rtn": {"bits": 4}}]
    plain = run("llama", folder, tmp_path / "plain", steps)
    still = run("llama", folder, tmp_path / "still", [*steps, {"distill": {"steps": 1, "rate": 1e-9}}], verify="full")
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "still")
    assert plain["kl"] == still["kl"]


def test_what_is_not_selected_stays(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    run("llama", folder, tmp_path / "out", [STEP, {**TUNE, "only": ["*.down_proj"]}])
    for layer in Certificate.read(tmp_path / "out").layers:
        assert (layer.method == "solve+distill") == layer.name.endswith("down_proj")
        if not layer.name.endswith("down_proj"):
            assert layer.relative_error == pytest.approx(layer.details["error_before_tuning"], rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([TUNE, STEP], "must be the last one"),
        ([TUNE], "they solve none of its linears"),
        ([{"rtn": {}, "only": ["*.q_proj"]}, {**TUNE, "only": ["*.down_proj"]}], "they solve none of its linears"),
        ([{"solve": {"by": "round", "into": {"float": {}}}}, TUNE], "trains plain values, evenly spaced grids.+and additive codebooks"),
        ([STEP, {"distill": {"moves": 0.1}}], "moves is for additive codebooks"),
        ([{"wanda": {}}, {"distill": {"ends": "range"}}], "ends is for even grids"),
        ([{"magnitude": {}}, {"rtn": {}}, TUNE], "what an earlier step pruned"),
        ([{"solve": {"by": "obs", "into": {"int": {"group_size": 0, "symmetric": False}}, "share": "baq"}}, TUNE], "different widths"),
        ([STEP, {**TUNE, "override": {"*.down_proj": {"steps": 9}}}], "override cannot change"),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused(steps: list[dict], words: str, tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    with pytest.raises(InputError, match=words):
        run("llama", folder, tmp_path / "out", steps)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", [{"wanda": {"pattern": "2:4"}}, {"sparsegpt": {"sparsity": 0.6}}], ids=["2:4", "unstructured"])
@pytest.mark.parametrize("rank", [0, 2])
def test_what_was_pruned_stays_zero_while_the_rest_is_trained(step: dict, rank: int, tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    run("llama", folder, tmp_path / "before", [step])
    run("llama", folder, tmp_path / "after", [step, {"distill": {"steps": 4, "batch": 2, "rank": rank, "rate": 0.05}}])
    before, after = (open_model(tmp_path / name) for name in ("before", "after"))
    for linear in before.anatomy.linears:
        old, new = before.read(linear.source), after.read(linear.source)
        assert torch.equal(old != 0, new != 0)
        assert not torch.equal(old, new)


def test_pruning_is_healed_on_the_model_inside_the_package(tmp_path: Path) -> None:
    """On held-out text, by all values and by changes of a low rank; what has more freedom gives back more."""
    words = "calibration: {samples: 32, tokens: 64}, evaluation: {samples: 16, tokens: 64}"
    step = "wanda: {sparsity: 0.6}"
    steps = {"before": step, "free": f"{step}}}, {{distill: {{steps: 20}}", "low": f"{step}}}, {{distill: {{steps: 20, rank: 8}}"}
    before, free, low = (
        thrifty.compress(recipe=f"{{{words}, steps: [{{{chosen}}}]}}", out=tmp_path / name, speed=False) for name, chosen in steps.items()
    )
    assert free["kl"]["value"] < low["kl"]["value"] < 0.95 * before["kl"]["value"]
    assert [layer["sparsity"] for layer in free["layers"]] == [layer["sparsity"] for layer in before["layers"]]


def test_two_bits_of_the_model_inside_the_package_come_nearer_to_it(tmp_path: Path) -> None:
    """On held-out text, after three dozen steps on a little of the calibration text."""
    words = "calibration: {samples: 64, tokens: 128}, evaluation: {samples: 16, tokens: 128}"
    step = "solve: {by: obs, into: {zero_free: {group_size: 32}}}"
    steps = {"before": step, "distilled": f"{step}}}, {{distill: {{steps: 36}}", "on the text": f"{step}}}, {{next_token: {{steps: 36}}"}
    before, distilled, on_the_text = (
        thrifty.compress(recipe=f"{{{words}, steps: [{{{chosen}}}]}}", out=tmp_path / name, speed=False) for name, chosen in steps.items()
    )
    assert distilled["bits_per_weight"] == before["bits_per_weight"]
    assert distilled["kl"]["value"] < 0.95 * before["kl"]["value"]
    assert distilled["perplexity"]["after"]["value"] < before["perplexity"]["after"]["value"]
    # at equal steps the original teaches more than the text does
    assert distilled["kl"]["value"] < on_the_text["kl"]["value"]
    assert distilled["top1_agreement"] > on_the_text["top1_agreement"]


@pytest.mark.parametrize("ends", ["statistics", "range"])
def test_an_image_classifier_begins_as_calibrated_and_comes_nearer(ends: str, tmp_path: Path) -> None:
    folder = tiny("vit", tmp_path / "model")
    step = {"solve": {"by": "q_sam2", "into": {"int": {"bits": 2, "group_size": 0, "symmetric": ends == "range"}}}}
    before = run("vit", folder, tmp_path / "before", [step])
    run("vit", folder, tmp_path / "still", [step, {"distill": {"steps": 1, "rate": 1e-9, "ends": ends}}], verify="full")
    assert bytes_of(tmp_path / "before") == bytes_of(tmp_path / "still")
    after = run("vit", folder, tmp_path / "after", [step, {"distill": {"steps": 30, "batch": 6, "ends": ends, "rate": 0.01}}])
    assert after["kl"]["value"] < before["kl"]["value"]
    with pytest.raises(InputError, match="next_token needs a causal language model, whose next tokens"):
        run("vit", folder, tmp_path / "out", [step, {"next_token": {}}])


ADDITIVE = {"solve": {"by": {"aqlm": {"rounds": 1}}, "into": {"additive": {"codebooks": 4, "bits": 4, "beam": 2}}}}


@pytest.mark.parametrize("moves", [0.0, 0.05])
def test_codebooks_are_trained_and_go_into_the_container(moves: float, tmp_path: Path) -> None:
    """They begin as they were found, come nearer on the rows that they are trained on, take as many bytes, and are read back as trained."""
    folder = tiny("llama", tmp_path / "model")
    rows = inputs("llama", 6, LENGTH)
    words = {"evaluation": rows, "speed": False, "verify": "full"}

    def made(name: str, *steps: dict, format: str = "thrifty") -> dict:
        return thrifty.compress(folder, {"steps": [ADDITIVE, *steps]}, rows, out=tmp_path / name, format=format, **words)

    before = made("before")
    made("still", {"distill": {"steps": 1, "rate": 1e-9, "moves": moves}})
    assert bytes_of(tmp_path / "before") == bytes_of(tmp_path / "still")
    tune = {"distill": {"steps": 30, "batch": 6, "rate": 0.01, "moves": moves}}
    after, dense = made("after", tune), made("dense", tune, format="compressed-tensors")
    assert after["kl"]["value"] < 0.95 * before["kl"]["value"]
    assert dense["kl"] == after["kl"]
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors")) for name in ("before", "after")]
    assert sizes[0] == sizes[1] and bytes_of(tmp_path / "before") != bytes_of(tmp_path / "after")
    packed, plain = (thrifty.load(tmp_path / name, dtype=torch.float32) for name in ("after", "dense"))
    with torch.inference_mode():
        torch.testing.assert_close(packed(**rows).logits, plain(**rows).logits, rtol=1e-5, atol=1e-5)


def test_fixed_grids_of_inputs_are_trained_where_ends_follow_statistics(tmp_path: Path) -> None:
    """They begin as calibration found them, follow the inputs of a batch a little, and move by what is learned; the file has it all."""
    folder = tiny("llama", tmp_path / "model")
    step = TRAINED["ends of grids"][0]
    run("llama", folder, tmp_path / "before", [step])
    run("llama", folder, tmp_path / "still", [step, {"distill": {"steps": 1, "rate": 1e-9, "ends": "statistics"}}], verify="full")
    run("llama", folder, tmp_path / "after", [step, {"distill": {"steps": 4, "rate": 0.05, "ends": "statistics"}}], verify="full")
    before, still, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "still", "after"))
    names = [name for name in before if name.endswith("input_scale")]
    assert names
    for name in names:  # one batch counts a tenth of the statistics
        torch.testing.assert_close(before[name], still[name], rtol=0.1, atol=0)
    assert any(bool((after[name] / still[name] - 1).abs() > 0.02) for name in names)
    # the matrices of a stage read the same inputs
    assert torch.equal(*(after[f"model.layers.0.self_attn.{name}_proj.input_scale"] for name in ("q", "k")))
