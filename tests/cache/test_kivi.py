"""The packed cache: against a slow reference in numpy, against transformers' own cache, and against the same bits spent otherwise."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration

import thrifty
from tests.tiny import build, inputs
from tests.uneven import write_by_hand
from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.cache.build import KeyValueCache
from thrifty.cache.kivi import KIVI
from thrifty.cache.layer import PackedLayer
from thrifty.data import default_model, load_rows
from thrifty.measure.intervals import mean_interval
from thrifty.measure.language import WindowScores, causal_targets, score_windows
from thrifty.runtime.load import load

SMALL = KIVI(bits=2, group_size=8, residual_length=16)
DECODERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "mixtral", "olmoe", "opt", "phi", "mistral", "qwen3_moe", "llava")


def states(length: int, seed: int = 0, batch: int = 2, heads: int = 3, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Random keys, some of whose channels are large in every token, and values."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(batch, heads, length, dim, generator=generator) for _ in range(2))
    keys[..., ::5] = 8 * keys[..., ::5] + 20
    return keys, values


def filled(method: KIVI, keys: Tensor, values: Tensor, calls: list[int] | None = None) -> PackedLayer:
    """A layer that was given these tokens in calls of so many; in one by default."""
    layer = PackedLayer(method)
    for part in zip(*(tensor.split(calls or tensor.shape[2], dim=2) for tensor in (keys, values)), strict=True):
        layer.update(*part)
    return layer


def read(layer: PackedLayer) -> tuple[Tensor, Tensor]:
    """All keys and values as attention gets them, without adding a token."""
    empty = layer.keys[:, :, :0], layer.values[:, :, :0]
    return copy.deepcopy(layer).update(*empty)


# -- oracle: numpy, one number after the other ------------------------------------------------------------------------------


def rounded(group: np.ndarray, bits: int) -> np.ndarray:
    """A group on its grid, worked out number by number in float32."""
    low, high = np.float32(min(group)), np.float32(max(group))
    scale = np.float32((high - low) / np.float32(2**bits - 1))
    return np.array([low + np.float32(round(float((x - low) / scale))) * scale if scale else low for x in group], dtype=np.float32)


def reference(method: KIVI, keys: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What is read after these tokens, by the paper's words: keys up to the last multiple of R, values up to the last R."""
    keys, values = keys.numpy().copy(), values.numpy().copy()
    batch, heads, length, dim = keys.shape
    size = method.group_size
    for row in range(batch):
        for head in range(heads):
            for start in range(0, length // method.residual_length * method.residual_length, size):
                for channel in range(dim):
                    tokens = slice(start, start + size)
                    keys[row, head, tokens, channel] = rounded(keys[row, head, tokens, channel], method.bits)
            for token in range(max(0, length - method.residual_length)):
                for start in range(0, dim, size):
                    channels = slice(start, start + size)
                    values[row, head, token, channels] = rounded(values[row, head, token, channels], method.bits)
    return keys, values


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("length", [15, 16, 17, 45, 48])
def test_what_is_read_is_what_the_paper_says(bits: int, length: int) -> None:
    method = KIVI(bits=bits, group_size=8, residual_length=16)
    given_keys, given_values = states(length, seed=length)
    for found, expected in zip(read(filled(method, given_keys, given_values)), reference(method, given_keys, given_values), strict=True):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_keys_by_token_are_grouped_like_values() -> None:
    method = KIVI(bits=2, group_size=8, residual_length=16, keys="token")
    _, given_values = states(64)
    assert torch.equal(method.load_keys(method.store_keys(given_values)), method.load_values(method.store_values(given_values)))


def test_bytes_are_those_of_codes_scales_and_minima() -> None:
    """64 tokens: keys 64 packed; values 48 packed, 16 plain. Batch 2, 3 heads of 16, float16."""
    given_keys, given_values = (tensor.half() for tensor in states(64))
    layer = filled(SMALL, given_keys, given_values)
    per_token = 2 * 3 * 16
    packed_token = per_token * 2 // 8 + 2 * 2 * per_token // 8  # two bits a number; two of 2 bytes for 8 numbers
    assert layer.nbytes == (64 + 48) * packed_token + 16 * per_token * 2
    assert layer.plain_nbytes == 2 * 64 * per_token * 2


# -- properties -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.sampled_from(["channel", "token"]), st.integers(2, 8))
def test_one_call_or_many_store_the_same(calls: list[int], keys: str, bits: int) -> None:
    method = KIVI(bits=bits, group_size=8, residual_length=16, keys=keys)  # type: ignore[arg-type]
    one, many = (filled(method, *states(sum(calls)), split) for split in (None, calls))
    assert (one.get_seq_length(), one.nbytes) == (sum(calls), many.nbytes) and many.get_seq_length() == sum(calls)
    for part in ("packed_keys", "packed_values"):
        left, right = getattr(one, part), getattr(many, part)
        assert (left is None) == (right is None)
        for name in () if left is None else left.tensors:
            assert torch.equal(left.tensors[name], right.tensors[name])
    assert torch.equal(one.keys, many.keys) and torch.equal(one.values, many.values)


@given(st.integers(1, 70), st.integers(1, 40))
def test_new_tokens_and_the_newest_are_exact(before: int, new: int) -> None:
    given_keys, given_values = states(before + new)
    layer = filled(SMALL, given_keys[:, :, :before], given_values[:, :, :before])
    found_keys, found_values = layer.update(given_keys[:, :, before:], given_values[:, :, before:])
    assert torch.equal(found_keys[:, :, before:], given_keys[:, :, before:])
    assert torch.equal(found_values[:, :, before:], given_values[:, :, before:])
    plain = before % 16
    assert torch.equal(found_keys[:, :, before - plain :], given_keys[:, :, before - plain :])
    assert torch.equal(found_values[:, :, max(0, before - 16) :], given_values[:, :, max(0, before - 16) :])
    if before > 16:
        assert not torch.equal(found_values[:, :, :1], given_values[:, :, :1])


@given(st.integers(1, 70), st.integers(0, 75), st.integers(0, 40))
def test_a_cut_cache_reads_as_before_and_grows_on(length: int, back: int, more: int) -> None:
    given_keys, given_values = states(length + more)
    layer = filled(SMALL, given_keys[:, :, :length], given_values[:, :, :length])
    expected = [part[:, :, : max(0, length - back)] for part in read(layer)]
    layer.crop(-back)
    assert layer.get_seq_length() == max(0, length - back)
    for found, part in zip(read(layer), expected, strict=True):
        assert torch.equal(found, part)
    kept = layer.get_seq_length()
    added = given_keys[:, :, length:], given_values[:, :, length:]
    for found, part in zip(layer.update(*added), added, strict=True):
        assert found.shape[2] == kept + more and torch.equal(found[:, :, kept:], part)
    assert all(found.shape[2] == kept + more for found in read(layer))
    assert layer.keys.shape[2] < 16 + 8 and layer.values.shape[2] <= 16


def test_what_is_taken_back_while_recording_leaves_no_trace() -> None:
    """Assisted generation proposes tokens and takes some back; across the end of a packed piece, too."""
    given_keys, given_values = states(40)
    layer = filled(SMALL, given_keys[:, :, :30], given_values[:, :, :30])
    layer.activate_past_recording()
    layer.update(given_keys[:, :, 30:], given_values[:, :, 30:])
    layer.crop(-9)
    expected = filled(SMALL, given_keys[:, :, :31], given_values[:, :, :31])
    assert all(torch.equal(left, right) for left, right in zip(read(layer), read(expected), strict=True))
    assert layer.nbytes == expected.nbytes
    with pytest.raises(ValueError, match="negative"):
        layer.crop(3)


def test_rows_are_reordered_selected_and_repeated() -> None:
    for length in (10, 45):
        layer = filled(SMALL, *states(length, batch=3))
        before = read(layer)
        order = torch.tensor([2, 0, 0])
        layer.reorder_cache(order)
        assert all(torch.equal(found, part[order]) for found, part in zip(read(layer), before, strict=True))
        layer.batch_select_indices(torch.tensor([0, 1]))
        layer.batch_repeat_interleave(2)
        rows = torch.tensor([2, 2, 0, 0])
        assert all(torch.equal(found, part[rows]) for found, part in zip(read(layer), before, strict=True))


def test_an_empty_layer_takes_every_call() -> None:
    layer = PackedLayer(SMALL)
    assert (layer.get_seq_length(), layer.get_mask_sizes(3), layer.get_max_length(), layer.nbytes) == (0, (3, 0), -1, 0)
    layer.crop(-1)
    layer.reorder_cache(torch.tensor([0]))
    layer.prefetch()
    layer.offload()
    layer.update(*states(40))
    layer.offload()
    layer.prefetch()
    assert layer.get_mask_sizes(3) == (43, 0)
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.nbytes == 0
    assert torch.equal(layer.update(*states(4))[0], states(4)[0])


def test_what_was_packed_is_let_go() -> None:
    """The plain part holds its own tokens only, not the memory of those that are packed."""
    layer = filled(SMALL, *states(45))
    for back in (2, 16, 0):
        for part in (layer.keys, layer.values, *layer.packed_keys.tensors.values(), *layer.packed_values.tensors.values()):
            assert part.untyped_storage().nbytes() == part.nbytes
        layer.crop(-back)


def test_everything_is_moved() -> None:
    layer = filled(SMALL, *states(45))
    parts = [layer.keys, layer.values, *layer.packed_keys.tensors.values(), *layer.packed_values.tensors.values()]
    assert {part.device.type for part in parts} == {"cpu"}
    layer.device = torch.device("meta")  # as if the layer computed elsewhere
    layer.prefetch()
    parts = [layer.keys, layer.values, *layer.packed_keys.tensors.values(), *layer.packed_values.tensors.values()]
    assert {part.device.type for part in parts} == {"meta"}


def test_a_number_that_is_not_finite_shows() -> None:
    given_keys, given_values = states(45)
    given_keys[0, 0, 3, 2] = torch.nan
    found = read(filled(SMALL, given_keys, given_values))[0]
    assert bool(found[0, 0, :8, 2].isnan().all()) and int(found.isnan().sum()) == 8


# -- whole models -------------------------------------------------------------------------------------------------------------


SETTINGS = {"do_sample": False, "pad_token_id": 0}


@cache
def model_of(name: str) -> torch.nn.Module:
    return build(name)


@pytest.mark.parametrize("name", DECODERS)
def test_short_texts_are_generated_as_by_the_plain_cache(name: str) -> None:
    """Nothing is packed before `residual_length` tokens: the same tokens, and the same scores to the bit."""
    model = model_of(name)
    given = inputs(name, 2, 12)
    settings = {**SETTINGS, "max_new_tokens": 12, "min_new_tokens": 12, "output_scores": True, "return_dict_in_generate": True}
    packed = thrifty.kv_cache(model, KIVI(group_size=16, residual_length=64))
    plain, found = (model.generate(**given, **settings, **more) for more in ({}, {"past_key_values": packed}))
    assert torch.equal(plain.sequences, found.sequences)
    assert all(torch.equal(left, right) for left, right in zip(plain.scores, found.scores, strict=True))
    assert packed.nbytes == packed.plain_nbytes > 0


def test_layers_of_different_width_are_packed_each_as_it_is(tmp_path: Path) -> None:
    """A network whose second layer has fewer heads of keys, as structural pruning leaves it."""
    write_by_hand("llama", tmp_path / "uneven")
    model, tokens = thrifty.load(tmp_path / "uneven", dtype=torch.float32), inputs("llama", 2, 20)["input_ids"]
    past = thrifty.kv_cache(model, KIVI(bits=8, group_size=16, residual_length=16))
    settings = {**SETTINGS, "max_new_tokens": 20, "min_new_tokens": 20}
    assert torch.equal(model.generate(tokens, past_key_values=past, **settings), model.generate(tokens, **settings))
    assert [layer.keys.shape[1] for layer in past.layers] == [2, 1] and past.nbytes < past.plain_nbytes


def test_layers_with_a_window_keep_transformers_own() -> None:
    small = KIVI(group_size=16, residual_length=16)
    kinds = {name: [type(layer) for layer in thrifty.kv_cache(model_of(name), small).layers] for name in ("gemma3", "llama", "mistral")}
    own = [type(layer) for layer in DynamicCache(config=model_of("mistral").config).layers]
    assert kinds == {"gemma3": [own[0], PackedLayer], "llama": [PackedLayer, PackedLayer], "mistral": own}


def test_a_model_whose_layers_all_have_windows_is_told_so() -> None:
    heard: list[events.Event] = []
    with events.listening(heard.append):
        thrifty.kv_cache(model_of("llama"), "kivi: {group_size: 16}")
        assert heard == []
        thrifty.kv_cache(model_of("mistral"))
    assert [event.message for event in heard] == ["no layer of this mistral keeps all tokens, so kivi packs nothing"]


def step_by_step(model: torch.nn.Module, tokens: Tensor, past: object) -> Tensor:
    """Logits of a text that is read token by token through a cache."""
    with torch.inference_mode():
        return torch.cat([model(input_ids=token, past_key_values=past).logits for token in tokens.split(1, dim=1)], dim=1)


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_eight_bits_are_close_to_plain_and_two_less_so(name: str) -> None:
    model, tokens = model_of(name), inputs(name, 2, 70)["input_ids"]
    plain = step_by_step(model, tokens, DynamicCache(config=model.config))
    errors = []
    for bits in (8, 4, 2):
        past = thrifty.kv_cache(model, KIVI(bits=bits, group_size=16, residual_length=16))
        found = step_by_step(model, tokens, past)
        assert torch.equal(found[:, :16], plain[:, :16])
        errors.append(float((found - plain)[:, 16:].square().mean().sqrt() / plain.std()))
        assert past.nbytes < past.plain_nbytes
    assert 0 < errors[0] < 0.02 and errors[0] < errors[1] / 4 and errors[1] < errors[2] / 2


def test_a_prompt_in_one_call_attends_exactly() -> None:
    model, tokens = model_of("llama"), inputs("llama", 2, 70)["input_ids"]
    with torch.inference_mode():
        plain = model(input_ids=tokens, past_key_values=DynamicCache(config=model.config)).logits
        past = thrifty.kv_cache(model, KIVI(group_size=16, residual_length=16))
        assert torch.equal(model(input_ids=tokens, past_key_values=past).logits, plain)
        later = model(input_ids=tokens[:, :1], past_key_values=past).logits
    assert past.get_seq_length() == 71 and not torch.equal(later, plain[:, -1:])


def test_padding_on_the_left_changes_nothing_before_tokens_are_packed() -> None:
    """A short text beside a longer one, padded; and where tokens are packed, padding is masked in the packed part, too."""
    model, tokens = model_of("llama"), inputs("llama", 2, 20)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    tokens[1, :7] = 0
    settings = {**SETTINGS, "max_new_tokens": 20, "min_new_tokens": 20}
    for method, same in ((KIVI(bits=2, group_size=16), 1.0), (KIVI(bits=8, group_size=16, residual_length=16), 0.9)):
        past = [thrifty.kv_cache(model, method) for _ in range(2)]
        both = model.generate(input_ids=tokens, attention_mask=mask, past_key_values=past[0], **settings)
        alone = model.generate(input_ids=tokens[1:, 7:], attention_mask=mask[1:, 7:], past_key_values=past[1], **settings)
        assert float((both[1, 20:] == alone[0, 13:]).float().mean()) >= same


def test_beams_are_reordered_with_their_past() -> None:
    """Beam search in 8 bits ends where it ends with the plain cache, though every step reorders packed rows."""
    model, tokens = model_of("llama"), inputs("llama", 2, 20)["input_ids"]
    settings = {**SETTINGS, "max_new_tokens": 24, "num_beams": 3}
    past = thrifty.kv_cache(model, KIVI(bits=8, group_size=16, residual_length=16))
    plain, found = (model.generate(input_ids=tokens, **settings, **more) for more in ({}, {"past_key_values": past}))
    assert past.nbytes < past.plain_nbytes and torch.equal(plain, found)


def test_assisted_generation_takes_tokens_back() -> None:
    """Proposals from the prompt itself, of which most are taken back, end in the tokens of one at a time."""
    model, tokens = model_of("llama"), inputs("llama", 1, 8)["input_ids"].repeat(1, 4)
    settings = {**SETTINGS, "max_new_tokens": 30, "min_new_tokens": 30}
    method = KIVI(bits=8, group_size=16, residual_length=16)
    alone, assisted = (
        model.generate(input_ids=tokens, past_key_values=thrifty.kv_cache(model, method), **settings, **more)
        for more in ({}, {"prompt_lookup_num_tokens": 4})
    )
    assert torch.equal(alone, assisted)


# -- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert", r"a bert \(BertForMaskedLM\) does not generate, so it keeps no keys and values"),
        ("vit", r"a vit \(ViTForImageClassification\) does not generate"),
        ("mamba", "a mamba has no attention heads"),
        ("mamba2", "a mamba2 has no attention heads"),
    ],
)
def test_models_without_keys_and_values_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        thrifty.kv_cache(model_of(name), "kivi")


def test_what_is_no_decoder_of_transformers_is_refused() -> None:
    shape = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    with pytest.raises(InputError, match="a t5 keeps two caches"):
        thrifty.kv_cache(T5ForConditionalGeneration(T5Config(**shape)))
    with pytest.raises(InputError, match="a model of transformers; got Linear"):
        thrifty.kv_cache(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("kivi", "^kivi: group_size 32 does not divide the head size 16 of the values; 16 does$"),
        ("kivi: {group_size: 24, residual_length: 72}", "head size 16 of the values; 8 does"),
        ("kivi: {group_size: 7, residual_length: 21}", "head size 16 of the values; 16 does, with residual_length 32"),
        ("kivi: {bits: 9}", "^cache: kivi: bits is wrong.*less than or equal to 8; got 9"),
        ("kivi: {bits: 1}", "bits is wrong"),
        ("kivi: {residual_length: 100}", "residual_length 100 is no multiple of group_size 32; 128 is"),
        ("kivi: {bit: 2}", "no setting 'bit'.*did you mean 'bits'"),
        ("kivy", "unknown method 'kivy' .did you mean 'kivi'"),
        ("gptq: {bits: 4}", "'gptq' is one of weights.preset; here goes one of cache: kivi"),
        ("kivi: 3", "settings of kivi must be a mapping"),
        ("", "must name one method, as in {kivi: {}}"),
        ({"kivi": {"keys": "head"}}, "keys is wrong"),
    ],
)
def test_bad_settings_are_one_sentence(method: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        thrifty.kv_cache(model_of("llama"), method)
    assert "\n" not in str(caught.value)


def test_heads_that_the_config_does_not_tell_of_are_refused_at_the_first_token() -> None:
    with pytest.raises(InputError, match="head size 12 of the values; 4 does"):
        PackedLayer(SMALL).update(*states(4, dim=12))


def test_every_way_to_name_it_is_the_same() -> None:
    named = ("kivi: {bits: 4, group_size: 16}", {"kivi": {"bits": 4, "group_size": 16}}, KIVI(bits=4, group_size=16))
    caches = [thrifty.kv_cache(model_of("llama"), word) for word in named]
    assert all(isinstance(past, KeyValueCache) and past.layers[0].method == KIVI(bits=4, group_size=16) for past in caches)


# -- baseline: the same bits with other groups --------------------------------------------------------------------------------


def test_keys_with_outlier_channels_want_groups_of_one_channel() -> None:
    """Relative error of random keys, two of 64 channels of which are 20 times as large: about a third, at 4 bits as at 2."""
    keys = torch.randn(1, 2, 128, 64, generator=torch.Generator().manual_seed(0))
    keys[..., [3, 40]] *= 20
    for bits in (2, 4):
        errors = []
        for groups in ("channel", "token"):
            method = KIVI(bits=bits, keys=groups)
            rest = method.load_keys(method.store_keys(keys)) - keys
            errors.append(float(rest.square().sum(dim=(0, 1, 2)).div(keys.square().sum(dim=(0, 1, 2))).mean().sqrt()))
        assert errors[0] < errors[1] / 3


@cache
def pycode() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """The model inside the package, held-out windows, and its logits with the plain cache."""
    model = load(default_model(), dtype=torch.float32)
    rows = load_rows(folder=default_model(), config=model.config, kind="causal_lm", purpose="evaluation", samples=16, tokens=160, seed=0)
    tokens = rows.inputs["input_ids"]
    return model, tokens, step_by_step(model, tokens, DynamicCache(config=model.config))


@cache
def scores(method: KIVI) -> WindowScores:
    model, tokens, plain = pycode()
    return score_windows(plain, step_by_step(model, tokens, thrifty.kv_cache(model, method)), causal_targets(tokens))


def test_a_real_model_loses_less_with_more_bits_and_with_keys_by_channel() -> None:
    two, four, by_token = (scores(KIVI(residual_length=32, **more)) for more in ({}, {"bits": 4}, {"keys": "token"}))
    for worse in (two, by_token):
        better = four if worse is two else two
        difference = mean_interval(worse.kl - better.kl, two.tokens)
        assert difference.low is not None and difference.low > 0
    assert mean_interval(four.kl, four.tokens).value < mean_interval(two.kl, two.tokens).value / 8
