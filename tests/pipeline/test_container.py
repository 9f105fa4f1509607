"""Results in our container: every architecture, every layout, in both readers; their size is what was said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import thrifty
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty import api
from thrifty.api.request import Request, prepare
from thrifty.base.errors import InputError, RunError
from thrifty.measure.size import weight_bytes
from thrifty.models.shell import main_output
from thrifty.pipeline.price import output_bytes
from thrifty.runtime.linear import PackedLinear


def into(target: dict[str, Any], by: str = "round", **more: Any) -> dict[str, Any]:
    return {"solve": {"by": by, "into": target, **more}}


BAQ = into({"int": {"group_size": 0, "symmetric": False}}, by="obs", share="baq")
RECIPES: dict[str, list[dict[str, Any]]] = {
    "three bits": [{"rtn": {"bits": 3, "group_size": 0, "symmetric": False}}],
    "posit": [into({"posit": {"bits": 6}})],
    "2:4": [{"magnitude": {"pattern": "2:4"}}],
    "ternary": [into({"int": {"levels": 3, "group_size": 0}})],
    "fp6": [into({"float": {"format": "e2m3", "group_size": 0, "scale": "power_of_two"}})],
    "2:4 on a grid": [into({"both": {"mask": "n_m", "grid": {"int": {"bits": 3, "group_size": 0}}}})],
    "wide fixed": [into({"fixed": {"bits": 12}})],
    "anywhere": [{"hqq": {"bits": 3, "group_size": 16}}],
    "without zero": [into({"zero_free": {"bits": 2}})],
    "codebooks": [into({"additive": {"codebooks": 1, "bits": 3, "group_size": 4}})],
}
CASES = dict(zip(ARCHITECTURES, cycle(RECIPES.items()), strict=False))


def made(model: Path | None, steps: list[dict[str, Any]], rows: dict[str, torch.Tensor], out: Path) -> dict[str, Any]:
    return thrifty.compress(model, {"steps": steps}, rows, out=out, speed=False, format="thrifty")


def plain(folder: Path, **settings: Any) -> Any:
    """What transformers makes of a folder, float32."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **settings)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_round_trip_on_every_architecture(architecture: str, tmp_path: Path) -> None:
    name, steps = CASES[architecture]
    rows = inputs(architecture, 2, 24)
    found = made(tiny(architecture, tmp_path / "model"), steps, rows, tmp_path / "out")
    assert not found["warnings"] and not any(layer["simulated"] for layer in found["layers"])
    own = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert sum(len(group["matrices"]) for group in own["groups"]) == len(found["layers"]) > 0
    api.export(tmp_path / "out", "dense", tmp_path / "dense")
    model, said = plain(tmp_path / "out", output_loading_info=True)
    assert not any(said.values())
    expected = main_output(plain(tmp_path / "dense").eval()(**rows))
    assert torch.equal(main_output(model.eval()(**rows)), expected)
    ours = thrifty.load(tmp_path / "out", torch.float32)
    torch.testing.assert_close(main_output(ours(**rows)), expected, rtol=1e-6, atol=1e-6)
    packed = any(isinstance(module, PackedLinear) for module in ours.modules())
    assert packed == (architecture != "gpt2" and name not in ("2:4", "wide fixed", "codebooks"))


def test_experts_in_one_tensor_are_not_missed(tmp_path: Path) -> None:
    folder, rows = tiny("mixtral", tmp_path / "model", save_original_format=False), inputs("mixtral", 2, 24)
    assert any(key.endswith("experts.gate_up_proj") for key in load_file(folder / "model.safetensors"))
    made(folder, RECIPES["three bits"], rows, tmp_path / "out")
    model, said = plain(tmp_path / "out", output_loading_info=True)
    assert not any(said.values())
    ours = thrifty.load(tmp_path / "out", torch.float32)
    torch.testing.assert_close(main_output(ours(**rows)), main_output(model.eval()(**rows)), rtol=1e-6, atol=1e-6)


def test_columns_of_different_widths(tmp_path: Path) -> None:
    rows = inputs("qwen3_moe", 4, 24)
    folder = tiny("qwen3_moe", tmp_path / "model")
    found = made(folder, [{**BAQ, "only": ["*self_attn*", "*.experts.1.*"]}], rows, tmp_path / "out")
    assert not any(layer["simulated"] for layer in found["layers"])
    api.export(tmp_path / "out", "dense", tmp_path / "dense")
    model = plain(tmp_path / "out")
    expected = load_file(tmp_path / "dense" / "model.safetensors")
    model.save_pretrained(tmp_path / "saved")  # experts that are codes and others in one parameter: an ordinary model comes out
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == expected.keys() and all(torch.equal(saved[key], expected[key]) for key in saved)
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    with pytest.raises(RunError, match="cannot be saved from memory"):
        thrifty.load(tmp_path / "out").state_dict()


@pytest.mark.parametrize(
    ("steps", "bits", "tolerance"),
    [
        ([{"rtn": {"bits": 3, "group_size": 64}}], 3.25, 0.01),
        ([{"magnitude": {"pattern": "2:4"}}], 9.0, 0.01),
        ([into({"both": {"mask": "n_m", "grid": {"int": {"bits": 4, "group_size": 64}}}})], 3.25, 0.01),
        ([BAQ], 4.25, 0.03),
    ],
)
def test_sizes_are_those_of_the_plan_and_of_the_file(steps: list[dict[str, Any]], bits: float, tolerance: float, tmp_path: Path) -> None:
    rows = {"input_ids": torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(0))}
    job = prepare(Request(recipe={"steps": steps}, calibration=rows, format="thrifty"))
    found = made(None, steps, rows, tmp_path / "out")
    size = weight_bytes(tmp_path / "out")
    assert found["bytes"]["after"] == size == pytest.approx(output_bytes(job.source, job.packing), rel=0.01)
    sources = {linear.source for linear in job.source.anatomy.linears}
    rest = sum(info.bytes for key, info in job.source.tensors.items() if key not in sources)
    weights = sum(layer["weights"] for layer in found["layers"])
    assert found["bits_per_weight"] == pytest.approx(bits, rel=tolerance)
    assert rest + found["bits_per_weight"] * weights / 8 == pytest.approx(size, rel=0.01)


def test_less_than_the_container_has_is_stored_dense_and_said(tmp_path: Path) -> None:
    """A bit for 16 weights: a reader would take it for a header that asks for too much memory."""
    steps = [{**into({"additive": {"codebooks": 1, "bits": 1, "group_size": 16, "beam": 1}}), "only": "*layers.0*down_proj"}]
    found = made(tiny("llama", tmp_path / "model"), steps, inputs("llama", 2, 24), tmp_path / "out")
    assert any("no matrices of less than 0.5 bits a weight" in said for said in found["warnings"])
    assert plain(tmp_path / "out").num_parameters() > 0


def test_the_request_and_the_card_name_it(tmp_path: Path) -> None:
    found = made(tiny("gpt2", tmp_path / "model"), RECIPES["posit"], inputs("gpt2", 2, 24), tmp_path / "out")
    assert found["request"]["format"] == "thrifty"  # what `repeat` hands to `compress`
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import thrifty\n" in card and "--format thrifty" in card and "vLLM" not in card


def test_another_format_is_another_request(tmp_path: Path) -> None:
    folder, rows = tiny("llama", tmp_path / "model"), inputs("llama", 2, 24)
    made(folder, RECIPES["posit"], rows, tmp_path / "out")
    with pytest.raises(InputError, match="result of another request"):
        thrifty.compress(folder, {"steps": RECIPES["posit"]}, rows, out=tmp_path / "out", speed=False)
    with pytest.raises(InputError, match="format must be one of compressed-tensors, thrifty"):
        thrifty.compress(folder, {"steps": RECIPES["posit"]}, rows, out=tmp_path / "x", format="zip")  # type: ignore[arg-type]


def test_transformers_alone_refuses_it_and_reads_it_after_the_import(tmp_path: Path) -> None:
    made(tiny("llama", tmp_path / "model"), RECIPES["three bits"], inputs("llama", 2, 24), tmp_path / "out")
    program = f"""
import sys
from transformers import LlamaForCausalLM
try:
    LlamaForCausalLM.from_pretrained({str(tmp_path / "out")!r})
    sys.exit("it was read")
except RuntimeError as error:
    assert "raising an error" in str(error)
assert "thrifty" not in sys.modules
import thrifty
LlamaForCausalLM.from_pretrained({str(tmp_path / "out")!r})
"""
    spoken = {**os.environ, "TRANSFORMERS_VERBOSITY": "warning"}  # whatever a command has set in this process before
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=spoken)
    assert done.returncode == 0, done.stderr
    assert "Unknown quantization type, got thrifty" in done.stderr and "MISMATCH" in done.stderr


def test_the_program_starts_without_torch() -> None:
    program = "import sys, thrifty; assert not {'torch', 'transformers', 'pydantic'} & sys.modules.keys(), sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
