"""GGUF files: blocks against the format's own decoder, whole files against the model they were made from, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from tests.export.codes import change_config, encoded, packed_model, shifted
from tests.export.test_dense import largest_file
from tests.tiny import VOCABULARY, tiny
from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded
from thrifty.data import default_model
from thrifty.export.compressed import pack, quantization_config, scheme_of
from thrifty.export.gguf import write
from thrifty.export.gguf_architectures import frequency_factors
from thrifty.export.gguf_tensors import has_few_levels, pack_tq1_0, pack_tq2_0, rotary_order, store, take_rows
from thrifty.export.gguf_vocabulary import read_vocabulary
from thrifty.weights.base import Target
from thrifty.weights.target.int import Int
from thrifty.weights.target.ternary import Ternary
from thrifty.weights.target.zero_free import ZeroFree

# -- codes and models to export ----------------------------------------------------------------------------------------


def byte_level(**changes: Any) -> dict[str, Any]:
    """tokenizer.json of byte-level BPE with a few merges and a token that begins every text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 5]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *letters, "ab", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return {**json.loads(tokenizer.to_str()), **changes}


def sentencepiece() -> dict[str, Any]:
    """tokenizer.json in the form of Llama 2: BPE with byte tokens, spaces as a visible mark."""
    texts = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "b",
        "\u2581a",
        "ab",
        "\u2581ab",
        "\u2581\u2581",
    ]
    merges = [("\u2581", "a"), ("a", "b"), ("\u2581a", "b"), ("\u2581", "ab")]
    model = models.BPE({text: index for index, text in enumerate(texts)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["\u2581\u2581"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return json.loads(tokenizer.to_str())


def put_tokenizer(folder: Path, tokenizer: dict[str, Any], **settings: Any) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, **settings}))
    return folder


def result(name: str, folder: Path, bits: int = 4, symmetric: bool = True, group_size: int = 32) -> dict[str, Encoded]:
    """A tiny model with a tokenizer and with the linears of its blocks as codes; returns the codes by module path."""
    codes = packed_model(name, folder, lambda stem: (group_size, bits, symmetric))
    put_tokenizer(folder, byte_level())
    return codes


def values_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def metadata_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


# -- blocks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    out=st.integers(1, 5),
    blocks=st.integers(1, 3),
    group_blocks=st.sampled_from([0, 1, 2]),
    form=st.sampled_from([(4, True, Type.Q4_0), (3, True, Type.Q4_0), (4, False, Type.Q4_1), (2, False, Type.Q4_1), (8, True, Type.Q8_0)]),
)
def test_blocks_decode_to_the_values_of_the_codes(
    seed: int, out: int, blocks: int, group_blocks: int, form: tuple[int, bool, Type]
) -> None:
    bits, symmetric, expected = form
    code = encoded(seed, out, blocks * 2 * 32, group_blocks * 32, bits, symmetric)
    stored = store(code)
    assert stored.type is expected
    assert np.array_equal(gguf.quants.dequantize(stored.content, stored.type), code.decode().numpy())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    blocks=st.integers(1, 3),
    group_blocks=st.sampled_from([0, 1, 2]),
    bits=st.integers(2, 4),
    size=st.sampled_from([1e-5, 0.02, 1.0, 100.0]),
    middle=st.floats(-50, 50),
)
def test_codes_that_need_not_meet_zero_become_a_scale_and_a_minimum(
    seed: int, blocks: int, group_blocks: int, bits: int, size: float, middle: float
) -> None:
    code = shifted(seed, 3, blocks * 2 * 32, group_blocks * 32, bits, size, middle)
    stored = store(code)
    assert stored.type is Type.Q4_1
    assert np.array_equal(gguf.quants.dequantize(stored.content, stored.type), code.decode().numpy())


def test_a_block_of_q4_0_has_the_bytes_of_the_format() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(2)[None]
    codes[0, 16] = 7
    stored = store(Encoded("int", {"codes": codes, "scale": torch.tensor([[0.5]])}, (1, 32), 4, 32))
    nibbles = [low | (high << 4) for low, high in zip(range(16), [15, *range(1, 16)], strict=True)]
    assert stored.content.tolist() == [[*np.float16(0.5).tobytes(), *nibbles]]


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_wide_codes_with_zero_points_become_multiples_of_the_scale(bits: int) -> None:
    code = encoded(0, 3, 64, 32, bits, symmetric=False)
    stored = store(code)
    assert stored.type is Type.Q8_0
    assert np.array_equal(gguf.quants.dequantize(stored.content, stored.type), code.decode().numpy())


def test_codes_without_an_exact_block_are_stored_dense() -> None:
    eight = encoded(0, 3, 64, 32, 8, symmetric=False)
    narrow = encoded(0, 3, 48, 16, 4, symmetric=True)
    fine = encoded(0, 3, 64, 32, 4, symmetric=True)
    fine.tensors["scale"][0, 0] = 1 + 2.0**-12
    for code, expected in [(eight, Type.F32), (fine, Type.F32), (shifted(0, 3, 64, 32, 8), Type.F32)]:
        assert store(code).type is expected
        assert np.array_equal(gguf.quants.dequantize(store(code).content, expected), code.decode().numpy())
    narrow.tensors["scale"].fill_(0.25)
    assert store(narrow).type is Type.F16
    assert np.array_equal(gguf.quants.dequantize(store(narrow).content, Type.F16), narrow.decode().numpy())


def test_dense_tensors_keep_their_type_and_vectors_become_float32() -> None:
    for dtype, expected in [(torch.bfloat16, Type.BF16), (torch.float16, Type.F16), (torch.float32, Type.F32)]:
        values = torch.randn(3, 5).to(dtype)
        stored = store(values)
        assert stored.type is expected
        assert np.array_equal(gguf.quants.dequantize(stored.content, stored.type), values.float().numpy())
        assert store(values[0]).type is Type.F32


# -- few levels in blocks of 256 ---------------------------------------------------------------------------------------

FEW = {
    "ternary": ((-1, 0, 1), Type.TQ1_0, 1.6875),
    "binary": ((-1, 1), Type.TQ1_0, 1.6875),
    "INT2": ((-2, -1, 0, 1), Type.TQ2_0, 2.0625),
    "zero-free": ((-3, -1, 1, 3), Type.Q2_K, 2.625),
}


def few_levels(seed: int, out: int, width: int, group_size: int, levels: tuple[int, ...], zero_points: bool = False) -> Encoded:
    """Random codes of these levels, as `read_packed` finds them: in places of 4 bits."""
    generator = torch.Generator().manual_seed(seed)
    code = encoded(seed, out, width, group_size, 2, symmetric=not zero_points)
    chosen = torch.randint(0, len(levels), (out, width), generator=generator)
    return replace(code, tensors={**code.tensors, "codes": torch.tensor(levels, dtype=torch.int8)[chosen]}, bits=4)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32), out=st.integers(1, 4), blocks=st.integers(1, 3), grouped=st.booleans(), name=st.sampled_from(sorted(FEW))
)
def test_few_levels_take_as_many_bits_as_their_block_says(seed: int, out: int, blocks: int, grouped: bool, name: str) -> None:
    levels, expected, bits = FEW[name]
    code = few_levels(seed, out, 256 * blocks, 256 if grouped else 0, levels)
    code.tensors["codes"][0, : len(levels)] = torch.tensor(levels, dtype=torch.int8)
    stored = store(code)
    assert stored.type is expected and 8 * stored.content.size == bits * code.decode().numel()
    assert np.array_equal(gguf.quants.dequantize(stored.content, stored.type), code.decode().numpy())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), blocks=st.integers(1, 3), grouped=st.booleans())
def test_two_bits_with_zero_points_become_a_scale_and_a_minimum(seed: int, blocks: int, grouped: bool) -> None:
    code = few_levels(seed, 3, 256 * blocks, 256 if grouped else 0, (-2, -1, 0, 1), zero_points=True)
    stored = store(code)
    assert stored.type is Type.Q2_K
    assert np.array_equal(gguf.quants.dequantize(stored.content, stored.type), code.decode().numpy())


@pytest.mark.parametrize("group_size", [0, 256])
def test_two_bits_that_need_not_meet_zero_become_a_scale_and_a_minimum(group_size: int) -> None:
    code = shifted(1, 3, 512, group_size, 2)
    stored = store(code)
    assert stored.type is Type.Q2_K and has_few_levels(code)
    assert np.array_equal(gguf.quants.dequantize(stored.content, stored.type), code.decode().numpy())
    assert store(shifted(1, 3, 512, 128, 2)).type is Type.Q4_1 and store(shifted(1, 3, 512, 256, 3)).type is Type.Q4_1


def test_blocks_of_ternary_have_the_bytes_that_the_format_s_own_writer_gives() -> None:
    code = few_levels(0, 8, 1024, 512, (-1, 0, 1))
    values, trits = code.decode().numpy(), code.tensors["codes"] + 1
    assert np.array_equal(gguf.quants.quantize(values, Type.TQ1_0), pack_tq1_0(trits, code.tensors["scale"]))
    assert np.array_equal(gguf.quants.quantize(values, Type.TQ2_0), pack_tq2_0(trits, code.tensors["scale"]))


def test_every_byte_of_five_trits_reads_back() -> None:
    """All 3^5 of them, and all 3^4 of the last four bytes."""
    everything = torch.tensor(list(product((-1, 0, 1), repeat=5)), dtype=torch.int8)
    codes = torch.zeros(243, 256, dtype=torch.int8)
    codes[:, 0:160:32], codes[:, 160:240:16], codes[:, 240::4] = everything, everything, everything[:, 1:]
    code = Encoded("int", {"codes": codes, "scale": torch.full((243, 1), 0.5)}, (243, 256), 4, 0)
    assert np.array_equal(gguf.quants.dequantize(store(code).content, Type.TQ1_0), code.decode().numpy())


@pytest.mark.parametrize("name", FEW)
def test_few_levels_in_smaller_groups_are_held_in_four_bits(name: str) -> None:
    code = few_levels(0, 4, 512, 128, FEW[name][0])
    assert store(code).type is Type.Q4_0 and has_few_levels(code)
    assert np.array_equal(gguf.quants.dequantize(store(code).content, Type.Q4_0), code.decode().numpy())
    assert not has_few_levels(few_levels(0, 4, 512, 128, (-2, -1, 0, 1, 2)))


# -- the order of query and key rows -----------------------------------------------------------------------------------


def test_interleaved_rows_give_the_same_attention_scores_under_the_other_rotation() -> None:
    heads, size, positions = 3, 8, torch.tensor([2.0, 5.0])
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    vectors = torch.randn(2, heads * size)

    def rotated(first: Tensor, second: Tensor) -> Tensor:
        cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)

    halves = rotated(*vectors.reshape(2, heads, 2, size // 2).unbind(2))
    pairs = rotated(*vectors[:, rotary_order(heads * size, heads)].reshape(2, heads, size // 2, 2).unbind(3))
    scores = [(turned[0] * turned[1]).sum(-1) for turned in (halves, pairs)]
    torch.testing.assert_close(scores[0], scores[1])


def test_codes_scales_and_zero_points_move_with_their_row() -> None:
    code = encoded(0, 16, 64, 32, 4, symmetric=False)
    order = rotary_order(16, 2)
    assert order.tolist() != list(range(16))
    assert torch.equal(take_rows(code, order).decode(), code.decode()[order])


# -- whole files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "symmetric", "group_size", "expected"), [(4, True, 32, "Q4_0"), (4, False, 0, "Q4_1"), (8, True, 32, "Q8_0")]
)
def test_a_file_holds_the_model(tmp_path: Path, bits: int, symmetric: bool, group_size: int, expected: str) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    codes = result("llama", folder, bits, symmetric, group_size)
    answer = write(folder, out)
    assert answer == {"bytes": out.stat().st_size, "tensors": 21, "types": {"F32": 7, expected: 14}}
    values, dense = values_of(out), load_file(folder / "model.safetensors")
    assert np.array_equal(values["token_embd.weight"], dense["model.embed_tokens.weight"].numpy())
    assert np.array_equal(values["output.weight"], dense["lm_head.weight"].numpy())
    assert np.array_equal(values["blk.1.ffn_norm.weight"], dense["model.layers.1.post_attention_layernorm.weight"].numpy())
    assert np.array_equal(values["blk.1.ffn_down.weight"], codes["model.layers.1.mlp.down_proj"].decode().numpy())
    for name, heads in (("q", 4), ("k", 2)):
        matrix = codes[f"model.layers.0.self_attn.{name}_proj"].decode().numpy()
        interleaved = matrix.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(matrix.shape)
        assert not np.array_equal(interleaved, matrix)
        assert np.array_equal(values[f"blk.0.attn_{name}.weight"], interleaved)


@pytest.mark.parametrize(
    ("target", "expected", "bits", "file_type"),
    [
        (Ternary(), "TQ1_0", 1.6875, 36),
        (Int(2, 0, True, "mse"), "TQ2_0", 2.0625, 37),
        (ZeroFree(2, 256), "Q2_K", 2.625, 10),
        (Ternary(64), "Q4_0", 4.5, 2),
    ],
    ids=["ternary", "INT2", "zero-free", "small groups"],
)
def test_a_file_of_few_levels_is_as_small_as_its_blocks(tmp_path: Path, target: Target, expected: str, bits: float, file_type: int) -> None:
    """The model inside the package, whose widths 256 divides; what cannot be that small is told of, with the groups that could."""
    folder = tmp_path / "model"
    shutil.copytree(default_model(), folder)
    tensors = load_file(folder / "model.safetensors")
    codes = {}
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        stem, weight = key.removesuffix(".weight"), tensors.pop(key).float()
        points = target.fit(weight)
        codes[stem] = points.encode(points.project(weight))
        tensors |= pack(stem, codes[stem])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, quantization_config=quantization_config({stem: scheme_of(code) for stem, code in codes.items()}, ["lm_head"]))
    warnings: list[str] = []
    with events.listening(lambda event: warnings.append(event.message) if event.kind == "warning" else None):
        answer = write(folder, tmp_path / "model.gguf")
    assert answer["types"][expected] == len(codes) == 28
    assert any("28 matrices of 4 levels or fewer" in said and "group_size 256" in said for said in warnings) == (expected == "Q4_0")
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    matrices = [tensor for tensor in found.values() if tensor.tensor_type.name == expected]
    assert 8 * sum(tensor.n_bytes for tensor in matrices) == bits * sum(tensor.n_elements for tensor in matrices)
    assert metadata_of(tmp_path / "model.gguf")["general.file_type"] == file_type
    down = found["blk.3.ffn_down.weight"]
    decoded = gguf.quants.dequantize(down.data, down.tensor_type)
    assert np.array_equal(decoded, codes["model.layers.3.mlp.down_proj"].decode().numpy())


def test_metadata_tells_the_sizes_and_the_tokenizer(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    result("llama", folder)
    put_tokenizer(folder, byte_level(), chat_template="{{ messages }}")
    write(folder, out)
    expected = {
        "general.architecture": "llama",
        "general.file_type": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    found = metadata_of(out)
    assert {name: found.get(name) for name in expected} == expected
    assert found["tokenizer.ggml.tokens"][1] == "<s>" and found["tokenizer.ggml.tokens"][-1] == "abc"
    assert found["tokenizer.ggml.token_type"][:4] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL]


def test_a_tied_model_has_no_output_matrix_and_keeps_its_biases(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    codes = result("qwen2", folder)
    write(folder, out)
    values = values_of(out)
    assert "output.weight" not in values
    assert np.array_equal(values["blk.0.attn_q.weight"], codes["model.layers.0.self_attn.q_proj"].decode().numpy())
    dense = load_file(folder / "model.safetensors")
    assert np.array_equal(values["blk.0.attn_k.bias"], dense["model.layers.0.self_attn.k_proj.bias"].numpy())


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2", "gemma3"])
def test_other_architectures_have_every_tensor(tmp_path: Path, name: str) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    codes = result(name, folder)
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message) if event.kind == "note" else None):
        answer = write(folder, out)
    assert answer["types"]["Q4_0"] == len(codes) == 14
    values, found, dense = values_of(out), metadata_of(out), load_file(folder / "model.safetensors")
    shift = 1 if name.startswith("gemma") else 0
    assert np.array_equal(values["output_norm.weight"], dense["model.norm.weight"].numpy() + np.float32(shift))
    architecture = found["general.architecture"]
    assert architecture == ("llama" if name == "mistral" else name)
    assert found[f"{architecture}.context_length"] == (8 if name == "mistral" else 256)
    assert any("sliding window" in note for note in notes) == (name == "mistral")
    if shift:
        assert found[f"{name}.attention.sliding_window"] == 8
    if name == "gemma2":
        assert (found["gemma2.attn_logit_softcapping"], found["gemma2.final_logit_softcapping"]) == (50.0, 30.0)


# -- rotary scaling ----------------------------------------------------------------------------------------------------

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_factors_of_llama3_scaling_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters=LLAMA3 | {"original_max_position_embeddings": 64},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    factors = frequency_factors(config.to_dict())
    assert factors is not None and factors[0] == 1 and factors[-1] == 8 and ((factors > 1) & (factors < 8)).any()
    torch.testing.assert_close(plain / factors, scaled)


def test_rotary_scaling_is_written_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    result("llama", folder)
    change_config(folder, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})
    write(folder, tmp_path / "linear.gguf")
    found = metadata_of(tmp_path / "linear.gguf")
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.factor"]) == ("linear", 2.0)
    change_config(folder, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 64})
    write(folder, tmp_path / "llama3.gguf")
    assert values_of(tmp_path / "llama3.gguf")["rope_freqs.weight"].shape == (8,)
    change_config(folder, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(InputError, match="rotary scaling of type dynamic"):
        write(folder, tmp_path / "dynamic.gguf")


# -- tokenizers --------------------------------------------------------------------------------------------------------

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LLAMA3_WORDS = WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_WORDS = WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def cut_by(*steps: Any) -> dict[str, Any]:
    """tokenizer.json of byte-level BPE that cuts text by these steps."""
    tokenizer = Tokenizer.from_str(json.dumps(byte_level()))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return json.loads(tokenizer.to_str())


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WITH_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "expected"),
    [
        ((split(QWEN2_WORDS), BYTES), False, "qwen2"),
        ((split(LLAMA3_WORDS), BYTES), True, "llama-bpe"),
        ((split(LLAMA3_WORDS), BYTES), False, "dbrx"),
        ((pre_tokenizers.Digits(individual_digits=True), WITH_WORDS), False, "smollm"),
    ],
)
def test_llama_cpp_has_a_name_for_how_text_is_cut(tmp_path: Path, steps: tuple[Any, ...], ignore_merges: bool, expected: str) -> None:
    tokenizer = cut_by(*steps)
    tokenizer["model"]["ignore_merges"] = ignore_merges
    put_tokenizer(tmp_path, tokenizer)
    assert read_vocabulary(tmp_path, {}, VOCABULARY).pre == expected


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (cut_by(split(r"\w+"), BYTES), r"cut text by \\w\+"),
        (cut_by(pre_tokenizers.Whitespace(), BYTES), "pre-tokenizer Whitespace"),
        (cut_by(pre_tokenizers.ByteLevel(add_prefix_space=True)), "a space put before"),
        (byte_level(pre_tokenizer=None), "neither byte-level"),
        (byte_level(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        (byte_level(model={"type": "Unigram", "vocab": [["a", 0.0]]}), "type Unigram"),
    ],
)
def test_tokenizers_that_llama_cpp_lacks_are_refused(tmp_path: Path, tokenizer: dict[str, Any], message: str) -> None:
    put_tokenizer(tmp_path, tokenizer)
    with pytest.raises(InputError, match=message):
        read_vocabulary(tmp_path, {}, VOCABULARY)


def test_rows_of_the_embedding_without_a_token_are_unused_and_tokens_without_a_row_are_refused(tmp_path: Path) -> None:
    put_tokenizer(tmp_path, byte_level())
    vocabulary = read_vocabulary(tmp_path, {}, VOCABULARY + 2)
    assert vocabulary.types[-2:] == [TokenType.UNUSED] * 2
    assert len(set(vocabulary.tokens)) == VOCABULARY + 2
    with pytest.raises(InputError, match="no row in the embedding"):
        read_vocabulary(tmp_path, {}, VOCABULARY - 1)


def test_a_sentencepiece_vocabulary_has_scores_by_rank(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    put_tokenizer(tmp_path, tokenizer, add_bos_token=True)
    size = max(tokenizer["model"]["vocab"].values()) + 1
    found = read_vocabulary(tmp_path, {"pad_token_id": 2}, size)
    assert (found.model, found.flags) == ("llama", {"add_space_prefix": True, "add_bos_token": True, "add_eos_token": False})
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert (scores["\u2581a"], scores["ab"], scores["\u2581ab"], scores["b"]) == (0, -1, -2, -4)
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert [kinds[token] for token in ("<unk>", "<s>", "<0x0A>", "ab")] == [
        TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE, TokenType.NORMAL,
    ]  # fmt: skip
    assert kinds["  "] is TokenType.USER_DEFINED
    assert found.special == {"bos": 1, "eos": 2, "unk": 0, "pad": 2}


def test_merges_that_no_scores_can_order_are_warned_of(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    pairs = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [pairs[0], pairs[2], pairs[1], pairs[3]]
    put_tokenizer(tmp_path, tokenizer)
    warnings: list[str] = []
    with events.listening(lambda event: warnings.append(event.message) if event.kind == "warning" else None):
        read_vocabulary(tmp_path, {}, 266)
    assert len(warnings) == 1 and "merges" in warnings[0]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "architecture"), [("mixtral", "MixtralForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("vit", "ViTForImageClassification")]
)
def test_other_architectures_are_refused_by_name(tmp_path: Path, name: str, architecture: str) -> None:
    put_tokenizer(tiny(name, tmp_path / "model"), byte_level())
    with pytest.raises(InputError, match=architecture):
        write(tmp_path / "model", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True"),
        ("gemma2", {"final_logit_softcapping": None}, "no soft caps"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "queries are scaled by 100"),
        ("gemma3", {"num_hidden_layers": 62, "layer_types": ["full_attention"] * 62}, "queries are scaled by 32 .* as with 62 layers"),
        ("gemma2", {"tie_word_embeddings": False}, "output matrix"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_settings_that_llama_cpp_lacks_are_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    folder = put_tokenizer(tiny(name, tmp_path / "model"), byte_level())
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        write(folder, tmp_path / "model.gguf")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        write(tiny("llama", tmp_path / "model"), tmp_path / "model.gguf")


def test_a_file_that_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    result("llama", folder)
    write_data = gguf.GGUFWriter.write_tensor_data

    def damage(writer: gguf.GGUFWriter, content: np.ndarray) -> None:
        damaged = content.copy()
        damaged.reshape(-1)[-1] ^= 1
        write_data(writer, damaged)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", damage)
    with pytest.raises(RunError, match="reads back"):
        write(folder, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_folder_with_a_broken_file_or_a_missing_part_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    result("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("weight_scale"))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(InputError, match=name):
        write(folder, tmp_path / "model.gguf")
    (folder / "model.safetensors").write_bytes(b"noise" * 20)
    with pytest.raises(InputError, match="header"):
        write(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# -- disks and progress ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [10, 5_000, 60_000])
def test_a_file_that_may_not_grow_is_not_kept(limit: int, tmp_path: Path) -> None:
    """Refused by the system: in the header, in the vocabulary, among the tensors."""
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    result("llama", folder)
    with largest_file(limit), pytest.raises(RunError, match=r"model\.gguf could not be written"):
        write(folder, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert write(folder, out)["bytes"] > 60_000


@pytest.mark.parametrize("missing", [1, 100, 2_000, 5_000])
def test_a_file_that_lacks_its_last_bytes_is_not_kept(missing: int, tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    result("llama", folder)
    size = write(folder, out)["bytes"]
    out.unlink()
    with largest_file(size - missing), pytest.raises(RunError, match=r"model\.gguf could not be written"):
        write(folder, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("step", ["write_header_to_file", "write_kv_data_to_file", "write_tensor_data", "close"])
def test_a_full_disk_leaves_nothing(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.gguf"
    result("llama", folder)

    def full(*words: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, step, full)
        with pytest.raises(RunError, match=r"disk is full.*model\.gguf"):
            write(folder, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_every_task_moves_on_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    result("llama", folder)
    seen: dict[str, list[tuple[float, float]]] = {}
    with events.listening(
        lambda event: seen.setdefault(event.task, []).append((event.done, event.total)) if event.kind == "advance" else None
    ):
        count = write(folder, tmp_path / "model.gguf")["tensors"]
    steps = [(done, count) for done in range(1, count + 1)]
    assert seen == {"laying out": steps, "writing": steps, "reading back": steps}
