"""Keys and values in a file, against transformers' own cache, bit for bit."""

from __future__ import annotations

import copy
import errno
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tests.tiny import build, inputs
from thrifty.base.errors import RunError
from thrifty.runtime import spill as module
from thrifty.runtime.spill import SpilledLayer, SpillFile, spill, spill_caches, takes_caches

ARCHITECTURES = ["llama", "qwen3", "gpt2", "gemma2", "gemma3", "mistral", "opt", "qwen3_moe"]
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "repetition_penalty": 1.3}
STEP, KEPT = 4, 6


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPILL_STEP", STEP)
        yield


def spilled(cache: DynamicCache) -> list[SpilledLayer]:
    return [layer for layer in cache.layers if isinstance(layer, SpilledLayer)]


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_logits_are_equal_bit_for_bit(name: str) -> None:
    """A prompt in two pieces, then token by token, well past what stays in memory."""
    model = build(name)
    row = inputs(name, 2, 40)["input_ids"]
    plain, ours = (DynamicCache(config=model.config) for _ in range(2))
    spill(ours, KEPT, model.config.num_hidden_layers)
    for part in (row[:, :17], row[:, 17:22], *row[:, 22:].split(1, dim=1)):
        expected = model(input_ids=part, past_key_values=plain, use_cache=True).logits
        assert torch.equal(model(input_ids=part, past_key_values=ours, use_cache=True).logits, expected)
        assert ours.get_seq_length() == plain.get_seq_length()
    full = [layer for layer in plain.layers if type(layer) is DynamicLayer]
    assert len(spilled(ours)) == len(full)
    assert sum(type(layer) is DynamicSlidingWindowLayer for layer in ours.layers) == len(plain.layers) - len(full)
    for layer in spilled(ours):
        assert layer.older and layer.keys.shape[-2] < KEPT + STEP
        assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@torch.inference_mode()
def test_generation_is_equal_token_by_token(name: str, beams: int) -> None:
    plain, ours = build(name), build(name)
    assert takes_caches(ours)
    spill_caches(ours, KEPT)
    prompt = inputs(name, 2, 21)["input_ids"]
    mask = torch.ones_like(prompt)
    mask[1, :5] = 0
    settings = {**GREEDY, "num_beams": beams, "return_dict_in_generate": True, "attention_mask": mask}
    expected, found = plain.generate(prompt, **settings), ours.generate(prompt, **settings)
    assert torch.equal(found.sequences, expected.sequences) and expected.sequences.unique().numel() > 4
    assert all(layer.older for layer in spilled(found.past_key_values))
    assert len(spilled(found.past_key_values)) == (1 if name == "gemma3" else 2)


@torch.inference_mode()
def test_which_caches_spill() -> None:
    model = build("llama")
    spill_caches(model, KEPT)
    row = inputs("llama", 1, 30)["input_ids"]
    assert len(spilled(model(row, use_cache=True).past_key_values)) == 2
    assert len(spilled(model(row).past_key_values)) == 2  # as its config says
    assert model(row, use_cache=False).past_key_values is None
    mine, lazy, begun = DynamicCache(config=model.config), DynamicCache(), DynamicCache(config=model.config)
    for cache in (mine, lazy):
        assert model(row, past_key_values=cache).past_key_values is cache
        assert len(spilled(cache)) == 2 and cache.get_seq_length() == 30
    for index in range(2):
        begun.update(torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 16), index)
    assert not spilled(model(row, past_key_values=begun, use_cache=True).past_key_values)
    assert not takes_caches(build("mamba")) and not takes_caches(build("vit"))


# -- one layer ---------------------------------------------------------------------------------------------------------

DEEDS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 14)),
    st.tuples(st.just("crop"), st.integers(0, 30)),
    st.tuples(st.just("select"), st.lists(st.integers(0, 2), min_size=1, max_size=3)),
    st.tuples(st.just("repeat"), st.integers(1, 2)),
    st.tuples(st.just("prepare"), st.integers(1, 3)),
    st.tuples(st.just("copy"), st.none()),
    st.tuples(st.just("reset"), st.none()),
)


@given(deeds=st.lists(DEEDS, min_size=3, max_size=14), kept=st.integers(0, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_whatever_is_done_to_a_layer(deeds: list[tuple[str, Any]], kept: int, dtype: torch.dtype) -> None:
    plain, ours = DynamicLayer(), SpilledLayer(SpillFile(), kept)
    generator = torch.Generator().manual_seed(0)
    batch = 3
    for deed, value in deeds:
        if deed == "add":
            new = [torch.randn(batch, value, 2, width, generator=generator).to(dtype).transpose(1, 2) for width in (4, 3)]
            found, expected = ours.update(*new), plain.update(*new)
            assert all(torch.equal(one, other) and one.is_contiguous() for one, other in zip(found, expected, strict=True))
        elif deed == "crop":
            count = min(value, max(0, plain.get_seq_length() - 1))
            plain.crop(-count), ours.crop(-count)
        elif deed == "select" and plain.get_seq_length():
            rows = torch.tensor(value) % batch
            plain.batch_select_indices(rows), ours.batch_select_indices(rows)
            batch = len(rows)
        elif deed == "repeat" and plain.get_seq_length() and batch < 4:
            plain.batch_repeat_interleave(value), ours.batch_repeat_interleave(value)
            batch *= value
        elif deed == "prepare":
            ours.prepare(value)  # often for another number of tokens than come
        elif deed == "copy":
            ours = copy.deepcopy(ours)
        elif deed == "reset":
            plain.reset(), ours.reset()
            batch = 3
        assert ours.get_seq_length() == plain.get_seq_length()
        assert ours.get_mask_sizes(2) == plain.get_mask_sizes(2)


def states(tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 2, tokens, 4), torch.randn(1, 2, tokens, 4)


def test_the_next_layer_is_put_together_meanwhile() -> None:
    cache = DynamicCache()
    spill(cache, KEPT, 3)
    layers = spilled(cache)
    for index in range(3):
        cache.update(*states(20), index)
    assert layers[0]._ready is not None and layers[1]._ready is layers[2]._ready is None  # the first waits for the next pass
    ready = layers[0]._ready.result()[0]
    found, _ = cache.update(*states(1), 0)
    assert found.data_ptr() == ready.data_ptr()
    assert layers[0]._ready is None and layers[1]._ready is not None and layers[1]._ready.result()[0].shape[-2] == 21


def open_below(folder: Path) -> int:
    """How many files this process has open below a folder, nameless ones included."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(link.startswith(str(folder)) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_file_has_no_name_and_goes_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = DynamicCache()
    spill(cache, KEPT, 2)
    for index in (0, 1, 0, 1):
        cache.update(*states(30), index)
    assert list(tmp_path.iterdir()) == [] and open_below(tmp_path) > 0
    spilled(cache)[0]._settle()
    del cache
    for _ in range(100):  # the thread lets go of its last piece of work a moment later
        gc.collect()
        if not open_below(tmp_path):
            return
        time.sleep(0.05)
    pytest.fail("the file is still open")


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SpilledLayer(SpillFile(), KEPT)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="set TMPDIR"):
        layer.update(*states(20))


def test_crops_that_the_ordinary_cache_refuses_are_refused() -> None:
    layer = SpilledLayer(SpillFile(), KEPT)
    layer.update(*states(20))
    with pytest.raises(ValueError, match="positive"):
        layer.crop(3)
