"""SVD-LLM: the best two matrices for what was seen, and results that transformers loads."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import thrifty  # noqa: F401  # its model types are registered
from tests.structure.rebuilding import block_of, compressed, error
from tests.tiny import inputs
from thrifty.base.errors import InputError
from thrifty.structure.svd_llm import SVDLLM


def test_factors_lose_what_their_singular_values_say_and_less_than_the_plain_ones(source_of):
    view, seen, read = block_of(source_of("llama"), "llama")
    for path, space in ((f"{view.block.path}.mlp.down_proj", "mlp.hidden"), (f"{view.block.path}.self_attn.q_proj", "attention.input")):
        weight, lost = view.read(path), {}
        for whiten in (True, False):
            step = SVDLLM(0.4, whiten=whiten)
            plan = step.plan(source_of("llama").anatomy)
            up, down = step.rebuild(view, seen, plan).matrices[path]
            assert up.shape == (weight.shape[0], plan.forms[path].rank)
            lost[whiten] = error(read[space], weight, up @ down)
        sizes = torch.linalg.svdvals(read[space].double() @ weight.double().T)[up.shape[1] :]
        assert lost[True] == pytest.approx(float(sizes.square().sum()), rel=1e-3)
        assert lost[True] < lost[False]


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_the_result_is_the_original_with_products_in_place(name, folder_of, tmp_path):
    auto = AutoModelForImageClassification if name == "vit" else AutoModelForCausalLM
    certificate = compressed(folder_of(name), name, tmp_path / "out", {"svd_llm": {"ratio": 0.3}})
    counts = certificate["structure"]["parameters"]
    original = auto.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    result = auto.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert counts["before"] - counts["after"] == original.num_parameters() - result.num_parameters() > 0
    for layer in certificate["layers"]:
        assert 0.25 < layer["sparsity"] < 0.5 and 0 <= layer["relative_error"] < 1
        factors = result.get_submodule(layer["name"])
        product = factors.up.weight @ factors.down.weight
        original.get_submodule(layer["name"]).weight.data = product.T if name == "gpt2" else product
    rows = inputs(name, rows=2, length=12, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(result(**rows).logits, original(**rows).logits, rtol=1e-4, atol=1e-4)
    assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == f"uneven_{name}"


def test_matrices_of_experts_are_left_and_said(source_of):
    plan = SVDLLM().plan(source_of("mixtral").anatomy)
    assert plan.warnings and not any("experts" in path for path in plan.forms)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="ratio"):
        SVDLLM(1.0)
