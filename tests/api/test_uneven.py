"""A network whose layers differ in width goes through the whole program as any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import thrifty
from tests.api.conftest import WINDOWS, Bench
from tests.cli.test_bad_input import add_tokenizer
from tests.export.test_uneven import write_pieces
from tests.tiny import inputs
from tests.uneven import write_by_hand


@pytest.mark.parametrize("name", ["llama", "pieces"])
def test_compressed_evaluated_and_loaded(name: str, bench: Bench, tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    model, _ = write_pieces(folder) if name == "pieces" else write_by_hand(name, folder)
    add_tokenizer(folder)
    recipe = {
        "evaluation": {"text": str(bench.test), "samples": 4, "tokens": 16},
        "steps": [{"smoothquant": {}}, {"gptq": {"bits": 8, "group_size": 8}}],
    }
    found = thrifty.compress(folder, recipe, str(bench.train), out=out, verify="full", speed=False, **WINDOWS)
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, out))
    assert after["uneven"] == before["uneven"] and "quantization_config" in after
    assert (out / "modeling_uneven.py").read_bytes() == (folder / "modeling_uneven.py").read_bytes()
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    packed = [layer["name"] for layer in json.loads((out / "certificate.json").read_text())["layers"]]
    if name == "pieces":
        assert {"model.layers.0.self_attn.q_proj.up", "model.layers.1.mlp.branch.down"} <= set(packed)
    with torch.no_grad():
        expected = model(**inputs("llama", 2, 12)).logits
        for loaded in (thrifty.load(out, dtype=torch.float32), transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)):
            assert (loaded(**inputs("llama", 2, 12)).logits - expected).abs().max() < 0.1 * expected.abs().max()
    measured = thrifty.evaluate(out, against=folder, text=str(bench.test), samples=4, tokens=16)
    kl = next(row["after"] for row in found["quality"] if row["metric"].startswith("kl"))
    assert kl < 0.05 and measured
