"""A model with turned hidden states puts out what it did before, on every architecture whose hidden states can be turned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.base.errors import InputError
from thrifty.core.hadamard import Rotation
from thrifty.models import Rotated, open_model
from thrifty.models.shell import main_output
from thrifty.models.skeleton import build_skeleton
from thrifty.models.source import Source

REFUSED = {
    "gemma2": "post_attention_layernorm cannot be moved",
    "gemma3": "post_attention_layernorm cannot be moved",
    "bert": "masked lm",
    "clip": "dual encoder",
    "siglip": "dual encoder",
    "llava": "vision language",
    "gemma3_vision": "vision language",
}


def turned(width: int, keeps_mean: bool) -> Rotation:
    return Rotation.random(width, 5, keeps_mean=keeps_mean)


def logits(source: Source, architecture: str) -> torch.Tensor:
    model = build_skeleton(source.config, torch.float32)
    source.fill(model, torch.float32)
    with torch.inference_mode():
        return main_output(model.eval()(**inputs(architecture, 2, 12)))


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in REFUSED])
def test_the_logits_stay(architecture: str, tmp_path: Path) -> None:
    source = open_model(tiny(architecture, tmp_path))
    rotated = Rotated(source, turned)
    assert float((logits(rotated, architecture) - logits(source, architecture)).abs().max()) <= 1e-4
    inner = {key for key in rotated.tensors if any(part in key for part in ("q_norm", "k_norm", "mixer.norm"))}
    for block in source.anatomy.blocks:
        for linear in block.linears:
            same = torch.equal(rotated.read(linear.source), source.read(linear.source))
            assert same == (linear.role in ("x_proj", "dt_proj")), linear.path
    assert all(torch.equal(rotated.read(key), source.read(key)) for key in inner)
    assert rotated.digest() == source.digest() and rotated.original is source
    assert rotated.rotation.keeps_mean == (architecture in ("gpt2", "opt", "phi", "vit"))


@pytest.mark.parametrize("architecture", REFUSED)
def test_others_are_refused_in_a_sentence(architecture: str, tmp_path: Path) -> None:
    source = open_model(tiny(architecture, tmp_path))
    with pytest.raises(InputError, match=REFUSED[architecture]) as caught:
        Rotated(source, turned)
    assert source.anatomy.architecture in str(caught.value) and "leave `rotate` out" in str(caught.value)


def test_a_shared_head_gets_a_matrix_of_its_own(tmp_path: Path) -> None:
    source = open_model(tiny("qwen2", tmp_path))
    rotated = Rotated(source, turned)
    assert source.anatomy.tied and not rotated.anatomy.tied
    assert set(rotated.tensors) - set(source.tensors) == {"lm_head.weight"} <= set(rotated.shell_keys())
    assert rotated.config_changes == {"tie_word_embeddings": False} and source.config.tie_word_embeddings
    assert rotated.anatomy.parameters == source.anatomy.parameters + 96 * 64
    expected = turned(64, False).of(source.read("model.embed_tokens.weight") * source.read("model.norm.weight"))
    torch.testing.assert_close(rotated.read("lm_head.weight"), expected)


def test_a_part_of_a_tensor_is_turned_as_the_whole_is(tmp_path: Path) -> None:
    source = open_model(tiny("mixtral", tmp_path))
    rotated = Rotated(source, turned)
    parts = [linear for linear in source.anatomy.linears if linear.part is not None]
    for linear in parts:
        whole = rotated.read(linear.source)[linear.part.expert, linear.part.start : linear.part.stop]
        torch.testing.assert_close(rotated.read_part(linear.source, linear.part), whole, rtol=1e-5, atol=1e-6)


def test_a_bias_behind_a_gain_of_nothing_is_refused(tmp_path: Path) -> None:
    source = open_model(tiny("gpt2", tmp_path))
    rotated = Rotated(source, turned)
    key = source.disk_name("transformer.ln_f.weight")
    gain = source.read(key).clone()
    gain[3] = 0
    source._pickled = {key: gain}
    with pytest.raises(InputError, match="gains next to zero"):
        rotated.read(key)
