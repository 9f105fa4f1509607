"""Structural steps from a recipe to a folder that plain transformers loads."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import thrifty
from tests.models.cutting import run_zeroed, tensors_of
from tests.tiny import ARCHITECTURES, inputs
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Cut
from thrifty.cli.main import main
from thrifty.models import Source, open_model
from thrifty.models.shell import main_output
from thrifty.models.units import units_of
from thrifty.pipeline.reshape import ReshapeWalk
from thrifty.structure.base import Seen, choose


def reshaped(folder: Path, name: str, out: Path, step: dict, **settings) -> dict:
    """The result of one structural step, calibrated and judged on random rows."""
    calibration = inputs(name, rows=6, length=20, seed=1)
    judged = inputs(name, rows=3, length=20, seed=2)
    return thrifty.compress(folder, {"steps": [step]}, calibration, evaluation=judged, out=out, speed=False, **settings)


def loaded(folder: Path) -> torch.nn.Module:
    """What plain transformers makes of a folder."""
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModelForImageClassification if "vit" in config.model_type else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def smallest_gone(source: Source, kept: dict[str, int]) -> dict[str, list[Cut]]:
    """What `magnitude_units` removes of each block: it looks at weights alone, so this can be known of the original."""
    found = {}
    for block in source.anatomy.blocks:
        units = tuple(units for units in units_of(source, block).units if units.alike in kept)
        tensors = tensors_of(source, block)
        found[block.path] = [Cut(item, choose(_norms(item, tensors), kept[item.alike])) for item in units]
    return found


def _norms(units, tensors) -> torch.Tensor:
    """The norm of everything that a unit owns in matrices and biases, entry by entry."""
    total = torch.zeros(units.count, dtype=torch.float64)
    for unit in range(units.count):
        for member in units.members:
            if member.side:
                tensor = tensors[member.source] if member.expert is None else tensors[member.source][member.expert]
                for start, size in member.runs:
                    part = tensor.narrow(member.dim, member.offset + start + unit * size, size)
                    total[unit] += float(part.double().square().sum())
        total[unit] += sum(float(tensors[key].double().square().sum()) for keys in units.owned[unit : unit + 1] for key in keys)
    return total


CASES = {
    "llama": {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    "qwen3": {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
    "gemma3": {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gpt2": {"n_inner": 128, "n_head": 4},
    "vit": {"intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16},
    "mixtral": {"intermediate_size": 48, "num_attention_heads": 2, "num_local_experts": 2},
    "mamba": {"intermediate_size": 64, "state_size": 4},
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, folder_of, tmp_path):
    cut = {"mixtral": ["neurons", "heads", "experts"], "mamba": ["channels", "states"]}.get(name, ["neurons", "heads"])
    settings = {"ratio": 0.5, "cut": cut}
    result = reshaped(folder_of(name), name, tmp_path / "out", {"magnitude_units": settings}, verify="full")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert {key: written[key] for key in CASES[name]} == CASES[name]
    assert "auto_map" not in written
    assert "quantization_config" not in written
    source = open_model(folder_of(name))
    kept = {key.partition(" ")[0]: item["after"] for key, item in result["structure"].items() if key != "parameters"}
    cuts = smallest_gone(source, kept)
    rows = inputs(name, rows=2, length=9, seed=5)
    model = loaded(tmp_path / "out")
    with torch.no_grad():
        found = main_output(model(**rows))
    expected = run_zeroed(source, cuts, rows)
    assert torch.allclose(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)
    stored = load_file(tmp_path / "out/model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) < sum(info.numel for info in source.tensors.values())
    assert result["structure"]["parameters"]["after"] == sum(parameter.numel() for parameter in model.parameters())
    if name != "vit":
        prompt = rows["input_ids"][:, :5]
        words = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        assert torch.equal(model.generate(prompt, use_cache=True, **words), model.generate(prompt, use_cache=False, **words))


OTHERS = [name for name in ARCHITECTURES if name not in CASES]
STEPS = [{name: {"ratio": 0.5}} for name in ("flap", "wanda_units", "random_units")]
STEPS += [{"short_gpt": {"ratio": 0.5}}, {"wanda_units": {"ratio": 0.4, "cut": ["experts", "states", "neurons"]}}]


@pytest.mark.parametrize(("name", "step"), list(zip(OTHERS, itertools.cycle(STEPS), strict=False)))
def test_every_other_architecture(name, step, folder_of, tmp_path):
    """Each with one of the methods in turn: transformers gives the logits of the walk."""
    if name == "mamba2":  # has nothing else
        step = {"wanda_units": {"ratio": 0.5, "cut": ["states"]}}
    result = reshaped(folder_of(name), name, tmp_path / "out", step, verify="full")
    assert result["verified"] == "full"
    assert result["structure"]["parameters"]["after"] < result["structure"]["parameters"]["before"]


def test_flap_gives_back_the_means_in_biases_that_the_config_can_hold(folder_of, tmp_path):
    step = {"flap": {"ratio": 0.5}}
    result = reshaped(folder_of("llama"), "llama", tmp_path / "out", step, verify="full")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["mlp_bias"] is True
    assert written["attention_bias"] is True
    stored = load_file(tmp_path / "out/model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.bias"].abs().max() > 0
    assert stored["model.layers.0.mlp.gate_proj.bias"].abs().max() == 0
    without = reshaped(folder_of("llama"), "llama", tmp_path / "plain", {"flap": {"ratio": 0.5, "compensate_bias": False}})
    assert result["kl"]["value"] < without["kl"]["value"]
    assert not any("bias" in warning for warning in result["warnings"])


def test_an_architecture_without_a_place_for_the_bias_says_so(folder_of, tmp_path):
    result = reshaped(folder_of("qwen3"), "qwen3", tmp_path / "out", {"flap": {"ratio": 0.5, "cut": ["neurons"]}}, verify="full")
    assert any("has no bias at its down matrices" in warning for warning in result["warnings"])
    assert {layer["name"].rpartition(".")[2] for layer in result["layers"]} == {"gate_proj", "up_proj", "down_proj"}
    assert all(layer["sparsity"] == 0.5 and 0 < layer["relative_error"] < 1 for layer in result["layers"])


UNEVEN = {
    "llama": ["neurons", "heads"],
    "qwen3": ["neurons", "heads"],
    "gemma3": ["neurons", "heads"],
    "gpt2": ["neurons", "heads"],
    "vit": ["neurons", "heads"],
    "mixtral": ["neurons", "heads", "experts"],
    "mamba": ["channels", "states"],
}


def smaller(name: str, uneven: bool) -> dict:
    """A step that leaves odd numbers of units; products of experts want multiples of 16 bytes."""
    return {"magnitude_units": {"ratio": 0.4, "cut": UNEVEN[name], "uneven": uneven, "multiple_of": 4 if name == "mixtral" else 1}}


def lopsided(folder: Path, out: Path) -> Path:
    """The same Mixtral with a few small neurons in the experts of its last block, beside which the rest differs little."""
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in tensors.items():
        if "layers.1." in key and "experts." in key:
            (tensor.T if "w2" in key else tensor)[:8] *= 0.1
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("name", UNEVEN)
def test_blocks_may_keep_different_numbers(name, folder_of, tmp_path):
    """Logits are those of the original with the rest switched off, also of architectures whose config has no number for fewer heads."""
    folder, step = folder_of(name), smaller(name, uneven=True)
    folder = lopsided(folder, tmp_path / "model") if name == "mixtral" else folder
    result = reshaped(folder, name, tmp_path / "out", step, verify="full")
    source, small = open_model(folder), open_model(tmp_path / "out")
    counts = [{units.alike: units.count for units in units_of(small, block).units} for block in small.anatomy.blocks]
    cuts = {}
    for block, kept in zip(source.anatomy.blocks, counts, strict=True):
        units = [item for item in units_of(source, block).units if item.kind in UNEVEN[name]]
        tensors = tensors_of(source, block)
        cuts[block.path] = [Cut(item, choose(_norms(item, tensors), kept[item.alike])) for item in units]
    rows = inputs(name, rows=2, length=9, seed=5)
    with torch.no_grad():
        found = main_output(loaded(tmp_path / "out")(**rows))
    expected = run_zeroed(source, cuts, rows)
    assert torch.allclose(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)
    assert result["structure"]["parameters"]["after"] < result["structure"]["parameters"]["before"]
    assert counts[0] != counts[1]


def test_results_load_without_this_package(folder_of, tmp_path):
    """Equal widths without a flag, different ones with the code beside them: the same logits, and generation with and without a cache."""
    names = []
    for name, uneven in itertools.product(UNEVEN, (False, True)):
        out = tmp_path / "results" / f"{name}-{'uneven' if uneven else 'even'}"
        folder = lopsided(folder_of(name), tmp_path / name) if name == "mixtral" and uneven else folder_of(name)
        reshaped(folder, name, out, smaller(name, uneven))
        rows, auto = inputs(name, 2, 12), "AutoModelForImageClassification" if name == "vit" else "AutoModelForCausalLM"
        with torch.no_grad():
            expected = main_output(loaded(out)(**rows))
        torch.save({"inputs": rows, "logits": expected, "auto": auto, "code": uneven}, out / "expected.pt")
        names.append(out.name)
    script = Path(__file__).parent.parent / "export" / "uneven_apart.py"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-I", str(script), str(tmp_path / "results")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == sorted(names)


def test_an_uneven_result_of_flap_has_its_biases_and_goes_on_when_stopped(folder_of, tmp_path, monkeypatch):
    step = {"flap": {"ratio": 0.4, "uneven": True}}
    reshaped(folder_of("qwen3"), "qwen3", tmp_path / "whole", step, verify="full")
    real, seen = ReshapeWalk._cut, []

    def failing(self, view, known):
        seen.append(view.block.path)
        if len(seen) == 2:
            raise RunError("stopped")
        return real(self, view, known)

    monkeypatch.setattr(ReshapeWalk, "_cut", failing)
    with pytest.raises(RunError, match="stopped"):
        reshaped(folder_of("qwen3"), "qwen3", tmp_path / "again", step)
    reshaped(folder_of("qwen3"), "qwen3", tmp_path / "again", step)
    assert len(seen) == 3
    stored = load_file(tmp_path / "again/model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.bias"].abs().max() > 0
    assert "model.layers.0.mlp.gate_proj.bias" not in stored
    for name in ("model.safetensors", "config.json", "modeling_uneven.py"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_architecture_whose_layers_cannot_differ_is_refused(folder_of, tmp_path):
    with pytest.raises(InputError, match="layers of clip cannot differ in width"):
        reshaped(folder_of("clip"), "clip", tmp_path / "out", {"magnitude_units": {"uneven": True}})


def test_a_block_that_does_nothing_is_removed_and_nothing_changes(folder_of, tmp_path):
    folder = tmp_path / "idle"
    folder.mkdir()
    for file in folder_of("llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.0.{name}.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = reshaped(folder, "llama", tmp_path / "out", {"short_gpt": {"ratio": 0.5}}, verify="full")
    assert result["structure"]["text (blocks)"] == {"before": 2, "after": 1}
    assert result["kl"]["value"] == pytest.approx(0, abs=1e-9)
    rows = inputs("llama", rows=2, length=9)
    with torch.no_grad():
        before, after = (loaded(place)(**rows).logits for place in (folder, tmp_path / "out"))
    assert torch.allclose(before, after, atol=1e-6)
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 1


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(folder_of, tmp_path, monkeypatch):
    step = {"flap": {"ratio": 0.5}}
    reshaped(folder_of("llama"), "llama", tmp_path / "whole", step)
    real, seen = ReshapeWalk._cut, []

    def failing(self, view, known):
        seen.append(view.block.path)
        if len(seen) == 2:
            raise RunError("stopped")
        return real(self, view, known)

    monkeypatch.setattr(ReshapeWalk, "_cut", failing)
    with pytest.raises(RunError, match="stopped"):
        reshaped(folder_of("llama"), "llama", tmp_path / "again", step)
    assert not (tmp_path / "again/certificate.json").exists()
    reshaped(folder_of("llama"), "llama", tmp_path / "again", step)
    assert seen == ["model.layers.0", "model.layers.1", "model.layers.1"]
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"steps": [{"gptq": {}}, {"flap": {}}]}, "gptq stores codes, and a step of another kind after it needs plain weights"),
        ({"steps": [{"flap": {}, "skip": ["*.down_proj"]}]}, "takes no only, skip or override; choose by its setting cut"),
        ({"steps": [{"flap": {"cut": ["channels"]}}]}, "has none of the channels that flap would remove"),
        ({"steps": [{"efficient_vla": {}}]}, "would remove 1 of 2 blocks, but 1 at the beginning and 1 at the end are to stay"),
        ({"steps": [{"flap": {"ratio": 1.0}}]}, "ratio is wrong"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_written(recipe, words, folder_of, tmp_path):
    with pytest.raises(InputError, match=words):
        thrifty.compress(folder_of("llama"), recipe, inputs("llama", 2, 8), out=tmp_path / "out", speed=False)
    assert not (tmp_path / "out").exists()


def test_what_an_architecture_cannot_have_is_left_and_said(folder_of, tmp_path):
    result = reshaped(folder_of("gpt2"), "gpt2", tmp_path / "out", {"random_units": {"ratio": 0.5}})
    assert any("no config of GPT2LMHeadModel has fewer heads" in warning for warning in result["warnings"])
    assert result["structure"]["text:mlp.hidden (neurons)"] == {"before": 256, "after": 128}


def test_a_block_that_differs_from_itself_with_units_switched_off_is_refused(folder_of, monkeypatch, tmp_path):
    monkeypatch.setattr("thrifty.pipeline.reshape.zeroed", lambda tensors, cuts: dict(tensors))
    with pytest.raises(RunError, match=r"model.layers.0: without the removed parts of mlp.hidden it differs by .* so it cannot be cut"):
        reshaped(folder_of("llama"), "llama", tmp_path / "out", {"random_units": {"ratio": 0.5, "cut": ["neurons"]}})
    assert not (tmp_path / "out/config.json").exists()


def test_the_program_plans_and_compresses(folder_of, tmp_path, capsys):
    recipe = '{"steps": [{"flap": {"ratio": 0.25}}]}'
    words = [str(folder_of("llama")), "--recipe", recipe, "--samples", "4", "--tokens", "16", "--json"]
    assert main(["plan", *words]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["compress", *words, "--out", str(tmp_path / "out")]) == 0
    made = json.loads(capsys.readouterr().out)
    size = (tmp_path / "out/model.safetensors").stat().st_size
    assert planned["cost"]["output"] == pytest.approx(size, rel=0.02)
    assert planned["cost"]["seconds"] > 0
    assert made["bytes"]["after"] == size
    assert made["structure"]["text:mlp.hidden (neurons)"] == {"before": 96, "after": 72}
    assert (
        main(["compress", str(folder_of("llama")), "--recipe", '{"steps": [{"flap": {}}, {"rtn": {}}]}', "--out", str(tmp_path / "no")])
        == 2
    )


def test_scores_see_blocks_as_they_are_after_earlier_ones_were_cut(folder_of, tmp_path, monkeypatch):
    """The second block's statistics are those of rows that went through the first one cut."""
    seen: list[Seen] = []
    real = ReshapeWalk._look
    monkeypatch.setattr(ReshapeWalk, "_look", lambda self, *words: seen.append(real(self, *words)) or seen[-1])
    reshaped(folder_of("llama"), "llama", tmp_path / "out", {"flap": {"ratio": 0.5}})
    model = loaded(tmp_path / "out")
    with torch.no_grad():
        hidden = model(**inputs("llama", rows=6, length=20, seed=1), output_hidden_states=True).hidden_states[1]
    assert torch.allclose(seen[1].rows, hidden, atol=1e-5)
