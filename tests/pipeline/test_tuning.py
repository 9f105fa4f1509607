"""Training all matrices together: on all that have one chain, off no grid, resumed anywhere, and better than what it started from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import thrifty
from tests.tiny import ARCHITECTURES, DIFFUSION, inputs, tiny
from thrifty.base.errors import InputError
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.pipeline import stored, tuning
from thrifty.train import loop
from thrifty.tune.temp_balance import TempBalance

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


@pytest.mark.parametrize("architecture", ARCHITECTURES + DIFFUSION)
def test_every_model_that_it_can_is_trained_and_read_back(architecture: str, tmp_path: Path) -> None:
    folder = tiny(architecture, tmp_path / "model")
    anatomy = open_model(folder).anatomy
    steps = [{**STEP, **odd(folder)}, TUNE]
    if anatomy.kind != "causal_lm" and architecture not in ("vit", "dit", "pixart"):
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


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, last: int) -> Iterator[None]:
    """What runs in here breaks at the last of so many calls; until then every step of training is saved."""
    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVED", -1.0)
        whole, calls = getattr(owner, name), []

        def stops(*arguments, **words):
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return whole(*arguments, **words)

        patched.setattr(owner, name, stops)
        with pytest.raises(KeyboardInterrupt):
            yield


def bytes_of(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.safetensors"))}


@pytest.mark.parametrize(
    ("architecture", "place", "trained"),
    [
        *(("llama", place, "grids") for place in STOPS),
        ("llama", "training", "ends of grids"),
        ("llama", "training", "codebooks and codes"),
        ("dit", "training", "codebooks and codes"),
    ],
)
def test_a_run_that_stops_anywhere_ends_with_the_same_bytes(
    architecture: str, place: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny(architecture, tmp_path / "model")
    steps = TRAINED[trained]
    run(architecture, folder, tmp_path / "whole", steps)
    with stopping(monkeypatch, *STOPS[place]):
        run(architecture, folder, tmp_path / "out", steps)
    assert (tmp_path / "out" / ".run").exists()
    run(architecture, folder, tmp_path / "out", steps)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert not (tmp_path / "out" / ".run").exists()


@pytest.mark.parametrize(("rate", "harmful"), [(1.0, True), (1e-6, False)])
def test_training_that_does_harm_is_said_and_still_known_after_a_stop(
    rate: float, harmful: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("llama", tmp_path / "model")
    steps = [{"rtn": {"bits": 8, "group_size": 32}}, {"distill": {"steps": 20, "batch": 6, "rate": rate, "warm_up": 1.0}}]
    with stopping(monkeypatch, *STOPS["second walk"]):
        run("llama", folder, tmp_path / "out", steps)
    warnings = run("llama", folder, tmp_path / "out", steps)["warnings"]
    assert any("the loss rose from" in warning and f"a rate below {rate:g} may help" in warning for warning in warnings) == harmful


RATES = {"farms_rates": {"every": 2, "side": 16, "positions": 3}}


@pytest.mark.parametrize("step", [STEP, {"wanda": {"sparsity": 0.5}}], ids=["codes", "zeros"])
def test_a_run_with_rates_that_stops_between_two_looks_ends_with_the_same_bytes(
    step: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("llama", tmp_path / "model")
    steps = [step, {"distill": {**TUNE["distill"], "rates": RATES}}]
    run("llama", folder, tmp_path / "whole", steps)
    run("llama", folder, tmp_path / "plain", [step, TUNE])
    assert bytes_of(tmp_path / "whole") != bytes_of(tmp_path / "plain")
    with stopping(monkeypatch, tuning.Network, "loss", 4):
        run("llama", folder, tmp_path / "out", steps)
    run("llama", folder, tmp_path / "out", steps)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_rates_that_do_not_differ_are_the_plain_schedule(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    for name, more in (("plain", {}), ("even", {"rates": {"temp_balance": {"every": 1, "least": 1.0, "most": 1.0}}})):
        run("llama", folder, tmp_path / name, [STEP, {"distill": {**TUNE["distill"], **more}}])
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "even")


def test_matrices_that_lie_in_one_are_looked_at_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 holds queries, keys and values in one: three squares for it, and a rate for what it holds from their mean."""
    folder, seen, chosen = tiny("gpt2", tmp_path / "model"), [], []
    whole = TempBalance.factors
    monkeypatch.setattr(TempBalance, "alpha", lambda self, weight: float(seen.append(tuple(weight.shape)) or len(seen)))
    monkeypatch.setattr(TempBalance, "factors", lambda self, alphas: chosen.append(dict(alphas)) or whole(self, alphas))
    tune = {"distill": {"steps": 1, "batch": 2, "rates": "temp_balance"}, "only": ["*.c_attn", "*.c_fc"]}
    run("gpt2", folder, tmp_path / "out", [{"rtn": {"bits": 4}}, tune])
    assert seen == [(64, 64)] * 3 + [(256, 64)] + [(64, 64)] * 3 + [(256, 64)]
    assert list(chosen[0].values()) == [2.0, 4.0, 6.0, 8.0]


def test_looking_at_spectra_is_in_the_price(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    rows = {"calibration": inputs("llama", 6, LENGTH), "evaluation": inputs("llama", 2, LENGTH, seed=1)}
    rates = {"farms_rates": {"every": 1, "side": 8, "positions": 100}}
    plain, rated = (
        thrifty.plan(folder, {"steps": [STEP, {"distill": {"steps": 10_000, "batch": 1, **more}}]}, **rows).cost
        for more in ({}, {"rates": rates})
    )
    assert rated.seconds > plain.seconds and rated.memory >= plain.memory


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


FEATURES = {"distill_features": {"steps": 4, "batch": 2, "rate": 0.003}}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "olmoe", "mamba", "bert", "vit", "clip"])
def test_features_of_every_model_with_one_chain_are_trained_and_read_back(architecture: str, tmp_path: Path) -> None:
    folder = tiny(architecture, tmp_path / "model")
    anatomy = open_model(folder).anatomy
    steps = [{"wanda": {"sparsity": 0.5}}, FEATURES]
    if anatomy.kind not in ("causal_lm", "masked_lm", "vision"):
        with pytest.raises(InputError, match=f"distill_features needs a language model or an image encoder.+{anatomy.architecture} is"):
            run(architecture, folder, tmp_path / "out", steps)
        return
    run(architecture, folder, tmp_path / "out", steps, verify="full")
    before, after = open_model(folder), open_model(tmp_path / "out")
    for block in before.anatomy.blocks:
        inside = [key for key in before.block_keys(block) if len(before.tensors[key].shape) == 1]
        assert inside and any(not torch.equal(before.read(key), after.read(key)) for key in inside)
    assert all(torch.equal(before.read(key), after.read(key)) for key in before.shell_keys())


def test_the_loss_of_features_is_that_of_both_models_in_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step, of a vision transformer after a cut: the first token apart from the sixteen patches."""
    folder, rows = tiny("vit", tmp_path / "model"), inputs("vit", 6, LENGTH)
    cut = {"dgmr": {}}
    run("vit", folder, tmp_path / "cut", [cut])
    found: list[float] = []
    whole = tuning.Network.loss

    def noted(network: tuning.Network, chosen: torch.Tensor) -> torch.Tensor:
        found.append(float(whole(network, torch.arange(6)).detach()))
        return whole(network, chosen)

    monkeypatch.setattr(tuning.Network, "loss", noted)
    run("vit", folder, tmp_path / "out", [cut, FEATURES])
    with torch.no_grad():
        expected, before = (thrifty.load(place).vit(**rows).last_hidden_state for place in (folder, tmp_path / "cut"))
        after = thrifty.load(tmp_path / "out").vit(**rows).last_hidden_state
    first, last = (
        float((states - expected)[:, 0].square().mean() + (states - expected)[:, 1:].square().mean()) for states in (before, after)
    )
    assert found[0] == pytest.approx(first, rel=1e-4)
    assert last < first


def test_biases_and_norms_stay_where_they_are_not_asked_for(tmp_path: Path) -> None:
    folder = tiny("vit", tmp_path / "model")
    before = open_model(folder)
    vectors = [key for key, info in before.tensors.items() if len(info.shape) == 1]
    for name, step in (
        ("off", {"distill_features": {"steps": 2, "batch": 2, "vectors": False}}),
        ("part", {**FEATURES, "only": ["*.fc1"]}),
    ):
        run("vit", folder, tmp_path / name, [{"wanda": {"sparsity": 0.5}}, step])
        after = open_model(tmp_path / name)
        assert all(torch.equal(before.read(key), after.read(key)) for key in vectors)


def test_a_chain_that_trains_biases_and_norms_and_stops_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("vit", tmp_path / "model")
    steps = [{"dgmr": {}}, FEATURES, {"rtn": {"bits": 8}}]
    run("vit", folder, tmp_path / "whole", steps)
    with stopping(monkeypatch, tuning.Network, "loss", 3):
        run("vit", folder, tmp_path / "out", steps)
    run("vit", folder, tmp_path / "out", steps)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("ends", ["statistics", "range"])
def test_an_image_classifier_begins_as_calibrated_and_comes_nearer(ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("vit", tmp_path / "model")
    step = {"solve": {"by": "q_sam2", "into": {"int": {"bits": 2, "group_size": 0, "symmetric": ends == "range"}}}}
    before = run("vit", folder, tmp_path / "before", [step])
    run("vit", folder, tmp_path / "still", [step, {"distill": {"steps": 1, "rate": 1e-9, "ends": ends}}], verify="full")
    assert bytes_of(tmp_path / "before") == bytes_of(tmp_path / "still")
    begun: dict[str, torch.Tensor] = {}
    watched = tuning._begun
    monkeypatch.setattr(
        tuning, "_begun", lambda walk, path, block, device: begun.update(block.latent) or watched(walk, path, block, device)
    )
    after = run("vit", folder, tmp_path / "after", [step, {"distill": {"steps": 30, "batch": 6, "ends": ends, "rate": 0.01}}])
    calibrated = {layer.name for layer in Certificate.read(tmp_path / "before").layers if "ridge" in layer.details}
    assert calibrated and begun.keys() == calibrated
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


@pytest.mark.parametrize(
    ("architecture", "step", "more"),
    [
        ("dit", TRAINED["codebooks and codes"][0], {"moves": 0.05}),
        ("pixart", {"gptq": {"bits": 2, "group_size": 32}}, {"vectors": True}),
    ],
)
def test_the_noise_that_is_found_comes_nearer_to_the_originals(
    architecture: str, step: dict, more: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of both models in diffusers, and falls on the rows that it is trained on."""
    folder, rows, found = tiny(architecture, tmp_path / "model"), inputs(architecture, 6, LENGTH), []
    whole = tuning.Network.loss

    def noted(network: tuning.Network, chosen: torch.Tensor) -> torch.Tensor:
        lost = whole(network, chosen)
        found.append(float(lost.detach()))
        return lost

    monkeypatch.setattr(tuning.Network, "loss", noted)
    words = {"evaluation": rows, "speed": False}
    before = thrifty.compress(folder, {"steps": [step]}, rows, out=tmp_path / "before", **words)
    tune = {"distill": {"steps": 10, "batch": 6, **more}}
    after = thrifty.compress(folder, {"steps": [step, tune]}, rows, out=tmp_path / "after", **words)
    with torch.no_grad():
        expected, start, end = (thrifty.load(tmp_path / name, torch.float32)(**rows).sample for name in ("model", "before", "after"))
    first, last = (float((noise - expected).square().mean()) for noise in (start, end))
    assert found[0] == pytest.approx(first, rel=1e-3)
    assert max(last, found[-1]) < 0.9 * first
    assert after["relative_error"]["value"] < 0.9 * before["relative_error"]["value"]


def test_what_embeds_the_time_step_outside_the_blocks_as_well_stays(tmp_path: Path) -> None:
    """The first block of a DiT lends it to what stands behind the last; the other vectors are trained."""
    folder = tiny("dit", tmp_path / "model")
    run("dit", folder, tmp_path / "out", [{"rtn": {}}, {"distill": {"steps": 2, "batch": 2, "rate": 0.01, "vectors": True}}])
    before, after = open_model(folder), open_model(tmp_path / "out")
    moved = {key for key, info in before.tensors.items() if len(info.shape) == 1 and not torch.equal(before.read(key), after.read(key))}
    assert "transformer_blocks.0.attn1.to_q.bias" in moved and "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias" in moved
    assert not any(key.startswith(("transformer_blocks.0.norm1.emb", "proj_out", "pos_embed")) for key in moved)


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
