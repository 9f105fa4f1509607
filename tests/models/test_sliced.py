"""A model with fewer channels equals the one of full width whose hidden states are held to these directions, in its own class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.models.test_rotated import REFUSED, logits
from tests.tiny import ARCHITECTURES, VOCABULARY, inputs, randomise, tiny
from thrifty.base.errors import InputError
from thrifty.core.slicing import Slice, drawn, keeping_mean
from thrifty.models import Rotated, Source, open_model
from thrifty.models.sliced import Sliced

TOO_NARROW = {"gpt2": "c_attn", "opt": "k_proj", "olmoe": "q_norm", "mamba2": "num_heads"}
"""Architectures some of whose widths follow from the hidden size, and what would change with it."""
SLICED = [name for name in ARCHITECTURES if name not in REFUSED]


def directions(width: int, kept: int, keeps_mean: bool) -> torch.Tensor:
    if keeps_mean:
        return keeping_mean(drawn(width - 1, keeps_mean=False)[:, : kept - 1]).float()
    return drawn(width, keeps_mean=False)[:, :kept].float()


def sliced_and_held(source: Source, architecture: str, kept: int) -> tuple[Sliced, Rotated]:
    """(the narrow model, the wide one with a projection onto the same directions wherever hidden states are written or read)."""
    sliced = Sliced(source, kept, "slice_gpt")
    matrix = directions(64, kept, sliced.keeps_mean)
    held = Rotated(source, lambda *_: Slice(matrix @ matrix.T))
    return sliced.settled(matrix, None, inputs(architecture, 1, 12)), held


@pytest.mark.parametrize("architecture", [name for name in SLICED if name not in TOO_NARROW])
def test_it_computes_what_the_wide_model_does_in_these_directions(architecture: str, tmp_path: Path) -> None:
    sliced, held = sliced_and_held(open_model(tiny(architecture, tmp_path)), architecture, 48)
    assert sliced.config.hidden_size == 48 and sliced.anatomy.hidden_size == 48
    assert float((logits(sliced, architecture) - logits(held, architecture)).abs().max()) <= 1e-4
    assert all(tuple(sliced.read(key).shape) == info.shape for key, info in sliced.tensors.items())
    assert sliced.anatomy.parameters < held.anatomy.parameters


@pytest.mark.parametrize("architecture", SLICED)
def test_with_all_channels_the_logits_stay(architecture: str, tmp_path: Path) -> None:
    source = open_model(tiny(architecture, tmp_path))
    sliced, _ = sliced_and_held(source, architecture, 64)
    assert float((logits(sliced, architecture) - logits(source, architecture)).abs().max()) <= 1e-4


def test_embeddings_that_are_multiplied_by_the_width_stay_as_loud(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**settings, head_dim=16, vocab_size=VOCABULARY)).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    sliced, held = sliced_and_held(open_model(tmp_path), "llama", 40)
    assert float((logits(sliced, "llama") - logits(held, "llama")).abs().max()) <= 1e-4


@pytest.mark.parametrize("architecture", TOO_NARROW)
def test_widths_that_follow_from_the_hidden_size_are_refused(architecture: str, tmp_path: Path) -> None:
    source = open_model(tiny(architecture, tmp_path))
    with pytest.raises(InputError, match=f"no config of {source.anatomy.architecture} .*{TOO_NARROW[architecture]}.*leave `slice_gpt` out"):
        Sliced(source, 48, "slice_gpt")


@pytest.mark.parametrize("architecture", ["gemma2", "bert"])
def test_what_cannot_be_turned_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{REFUSED[architecture]}.*leave `slice_gpt` out"):
        Sliced(open_model(tiny(architecture, tmp_path)), 48, "slice_gpt")


def test_the_epsilon_of_norms_counts_for_as_much(tmp_path: Path) -> None:
    """Hidden states so small that a norm mostly divides by its epsilon."""
    model = transformers.LlamaForCausalLM.from_pretrained(tiny("llama", tmp_path / "whole"))
    model.model.embed_tokens.weight.data *= 1e-3
    model.save_pretrained(tmp_path / "small")
    sliced, held = sliced_and_held(open_model(tmp_path / "small"), "llama", 32)
    assert sliced.config.rms_norm_eps == pytest.approx(2 * model.config.rms_norm_eps)
    torch.testing.assert_close(logits(sliced, "llama"), logits(held, "llama"), rtol=1e-3, atol=1e-5)
