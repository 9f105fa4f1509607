"""GGUF from results in our container: the codes go over, block for block, and what no block holds is written dense."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

import thrifty
from thrifty import api
from thrifty.base import events

ROLES = {"*q_proj": "Q2_K", "*k_proj": "Q3_K", "*v_proj": "Q6_K", "*o_proj": "Q5_K", "*gate_proj": "Q4_K"}
BYTES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model inside the package with each type of K-quants, ternary codes and posits."""
    place = tmp_path_factory.mktemp("gguf") / "small"
    kinds = {role: {"k_quant": {"type": kind}} for role, kind in ROLES.items()}
    kinds |= {"*up_proj": {"ternary": {"group_size": 0}}, "*down_proj": {"posit": {"bits": 6}}}
    steps = [{"solve": {"by": "round", "into": target}, "only": role} for role, target in kinds.items()]
    rows = {"input_ids": torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(0))}
    found = thrifty.compress(None, {"steps": steps}, rows, out=place, speed=False, format="thrifty")
    assert not found["warnings"]
    rates = {layer["name"].rpartition(".")[2]: layer["bits"] for layer in found["layers"]}
    assert all(rates[role.removeprefix("*")] == pytest.approx(8 * BYTES[kind] / 256) for role, kind in ROLES.items())
    return place


def test_every_matrix_is_in_the_type_that_it_was_solved_for(small: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    with events.listening(lambda event: warnings.append(event.message) if event.kind == "warning" else None):
        written = api.export(small, "gguf", tmp_path / "small.gguf")
    assert written["types"] == {"BF16": 1, "F32": 9, "F16": 4, "TQ1_0": 4, **dict.fromkeys(ROLES.values(), 4)}
    assert len(warnings) == 1 and "4 matrices have codes that no block type of GGUF holds exactly and are stored dense" in warnings[0]
    assert "ffn_down" in warnings[0]
    api.export(small, "dense", tmp_path / "dense")
    expected = load_file(tmp_path / "dense" / "model.safetensors")
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "small.gguf").tensors}
    for role, kind in ROLES.items():
        name = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate"}[role[1:]]
        tensor = found[f"blk.2.{name}.weight"]
        assert tensor.tensor_type.name == kind
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert tensor.data.nbytes == values.size // 256 * BYTES[kind]
        plain = next(value for key, value in expected.items() if key.startswith("model.layers.2.") and key.endswith(f"{role[1:]}.weight"))
        if role in ("*q_proj", "*k_proj"):  # llama.cpp turns neighbouring channels, transformers those half a head apart
            plain = plain.reshape(-1, 2, 32, 256).transpose(1, 2).reshape(-1, 256)
        assert np.array_equal(torch.from_numpy(values).to(torch.bfloat16).float().numpy(), plain.float().numpy())
