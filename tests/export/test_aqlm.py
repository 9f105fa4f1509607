"""AQLM's public layout: written from additive codebooks, read by transformers' own integration with a layer made from its description."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import thrifty
from tests.tiny import inputs, tiny
from thrifty import api
from thrifty.base.errors import InputError
from thrifty.export import aqlm
from thrifty.models.shell import main_output


class QuantizedLinear(nn.Module):
    """A layer with the parameters of AQLM's, which looks its codewords up one by one."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        in_group_size: int,
        out_group_size: int,
        num_codebooks: int,
        nbits_per_codebook: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        groups = in_features // in_group_size
        code_type = torch.int8 if nbits_per_codebook <= 8 else torch.int16
        codes = torch.zeros(out_features // out_group_size, groups, num_codebooks, dtype=code_type)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.codebooks = nn.Parameter(torch.zeros(num_codebooks, 2**nbits_per_codebook, out_group_size, in_group_size))
        self.scales = nn.Parameter(torch.ones(out_features // out_group_size, 1, 1, 1))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, rows: Tensor) -> Tensor:
        size = self.codebooks.shape[1]
        index = self.codes.long() % size + size * torch.arange(self.codebooks.shape[0])
        words = self.codebooks.flatten(0, 1)[index].sum(2)  # [out groups, in groups, out in a group, in in a group]
        weight = (words * self.scales).swapaxes(1, 2).reshape(-1, rows.shape[-1])
        return nn.functional.linear(rows, weight, self.bias)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `aqlm` with that layer, as far as transformers can tell."""
    module = ModuleType("aqlm")
    module.QuantizedLinear = QuantizedLinear  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aqlm", module)
    for name in ("is_aqlm_available", "is_accelerate_available"):
        monkeypatch.setattr(f"transformers.quantizers.quantizer_aqlm.{name}", lambda: True)


def made(folder: Path, model: Path, target: dict[str, Any], architecture: str, only: str = "*.0.*q_proj") -> Path:
    steps = [{"solve": {"by": "round", "into": target}, "only": only}]
    thrifty.compress(model, {"steps": steps}, inputs(architecture, 2, 24), out=folder, speed=False, format="thrifty")
    return folder


@pytest.mark.parametrize(
    ("architecture", "target", "bits"),
    [
        ("qwen2", {"codebooks": 1, "bits": 9, "group_size": 4, "beam": 1}, 16),
        ("llama", {"codebooks": 2, "bits": 8, "group_size": 8, "beam": 1}, 8),  # codes of the upper half are negative
    ],
)
@torch.inference_mode()
def test_transformers_reads_it_with_a_layer_made_from_the_description(
    architecture: str, target: dict[str, Any], bits: int, tmp_path: Path, package: None
) -> None:
    model, rows = tiny(architecture, tmp_path / "model"), inputs(architecture, 2, 24)
    out = made(tmp_path / "out", model, {"additive": target}, architecture)
    written = api.export(out, "aqlm", tmp_path / "aqlm")
    config = json.loads((tmp_path / "aqlm" / "config.json").read_text())
    own = config["quantization_config"]
    assert config["dtype"] == "float16" and own["quant_method"] == "aqlm" and own["out_group_size"] == 1
    assert [own[name] for name in ("num_codebooks", "nbits_per_codebook", "in_group_size")] == list(target.values())[:3]
    tensors = load_file(tmp_path / "aqlm" / "model.safetensors")
    stem = next(key.removesuffix(".codes") for key in tensors if key.endswith(".codes"))
    assert tensors[f"{stem}.codes"].dtype == {8: torch.int8, 16: torch.int16}[bits]
    api.export(out, "dense", tmp_path / "dense")
    plain = load_file(tmp_path / "dense" / "model.safetensors")
    coded = [key.removesuffix(".codes") for key in tensors if key.endswith(".codes")]
    assert all(torch.equal(aqlm.decode(tensors, stem), plain[f"{stem}.weight"]) for stem in coded)
    weights = sum(plain[f"{stem}.weight"].numel() for stem in coded)
    assert written["bits_per_weight"] == 8 * sum(tensors[f"{one}.{part}"].nbytes for one in coded for part in aqlm.PARTS) / weights
    name = config["architectures"][0]
    found = getattr(transformers, name).from_pretrained(tmp_path / "aqlm", dtype=torch.float32)
    assert sum(isinstance(module, QuantizedLinear) for module in found.modules()) == len(coded)
    expected = getattr(transformers, name).from_pretrained(tmp_path / "dense", dtype=torch.float32)
    torch.testing.assert_close(main_output(found.eval()(**rows)), main_output(expected.eval()(**rows)), rtol=1e-5, atol=1e-5)


def test_what_the_layout_does_not_have(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    with pytest.raises(InputError, match="holds no additive codebooks; compress into additive with --format thrifty first"):
        api.export(model, "aqlm", tmp_path / "aqlm")
    posits = made(tmp_path / "posits", model, {"posit": {"bits": 6}}, "llama")
    with pytest.raises(InputError, match="is not held as additive codebooks"):
        api.export(posits, "aqlm", tmp_path / "aqlm")
    transposed = made(tmp_path / "gpt2", tiny("gpt2", tmp_path / "conv"), {"additive": {"codebooks": 1, "bits": 4}}, "gpt2", "*.0.*c_proj")
    with pytest.raises(InputError, match="no plain linear layers"):
        api.export(transposed, "aqlm", tmp_path / "aqlm")
    assert not (tmp_path / "aqlm").exists()
