"""A result as one GGUF file for llama.cpp, made from the codes: what was solved is what runs, nothing is quantized a second time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from torch import Tensor
from transformers import AutoConfig

from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded
from thrifty.base.store import write_atomic
from thrifty.export.compressed import BYTES, INTEGERS, PARTS, check_format, check_parts, packed_stems, read_packed
from thrifty.export.container import METHOD, Container
from thrifty.export.container.values import Values
from thrifty.export.gguf_architectures import Architecture, add_metadata, architecture_of, check_config, frequency_factors, size
from thrifty.export.gguf_tensors import LARGE_BLOCK, has_few_levels, rotary_order, store, take_rows
from thrifty.export.gguf_vocabulary import read_vocabulary
from thrifty.export.shards import Piece, stored_in

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

FILE_TYPES = {
    GGMLQuantizationType.TQ1_0: LlamaFileType.MOSTLY_TQ1_0,
    GGMLQuantizationType.TQ2_0: LlamaFileType.MOSTLY_TQ2_0,
    GGMLQuantizationType.Q2_K: LlamaFileType.MOSTLY_Q2_K,
    GGMLQuantizationType.Q3_K: LlamaFileType.MOSTLY_Q3_K_S,
    GGMLQuantizationType.Q4_K: LlamaFileType.MOSTLY_Q4_K_S,
    GGMLQuantizationType.Q5_K: LlamaFileType.MOSTLY_Q5_K_S,
    GGMLQuantizationType.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GGMLQuantizationType.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
}


LARGE_BLOCKS = (GGMLQuantizationType.TQ1_0, GGMLQuantizationType.TQ2_0, GGMLQuantizationType.Q2_K)
"""Types for few levels."""


Load = Callable[[], Encoded | Tensor]


@dataclass(frozen=True)
class Entry:
    """A tensor of the file. load: reads it from the result, in the form that llama.cpp expects."""

    name: str
    load: Load


def write(folder: Path, out: Path) -> dict[str, Any]:
    """Write the file `out`, one tensor in memory at a time, and read it back; returns {bytes, tensors, types}.

    Codes of up to 4 levels become TQ1_0, TQ2_0 or Q2_K where groups are multiples of 256, other symmetric codes of up to 4 bits Q4_0,
    asymmetric ones Q4_1, wider codes Q8_0, and those of `k_quant` the type that they were solved for, all of them exactly; a matrix for
    which these have no exact form becomes F16 or F32. Raises InputError for a model or a tokenizer that llama.cpp would not compute alike,
    RunError when a tensor reads back otherwise than it is decoded from the codes. The file appears whole or not at all.
    """
    raw = json.loads((folder / "config.json").read_text())
    name, architecture = architecture_of(raw, str(folder))
    stored = stored_in(folder)
    loaders = _loaders(folder, raw.get("quantization_config"), stored)
    config = AutoConfig.from_pretrained(folder).to_dict()
    check_config(name, architecture, config, str(folder))
    if EMBEDDING not in stored:
        raise InputError(f"{folder} has no tensor {EMBEDDING} in safetensors files; it cannot be written to GGUF")
    entries = _entries(loaders, architecture, config, f"{folder}: {name}")
    vocabulary = read_vocabulary(folder, config, stored[EMBEDDING].shape[0])
    types: Counter[str] = Counter()

    def write_file(path: Path) -> None:
        writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture.graph])
        writer.add_name(out.stem)
        add_metadata(writer, architecture, config)
        writer.add_vocab_size(len(vocabulary.tokens))
        vocabulary.add_to(writer)
        types.update(_announce(writer, entries))
        _write_tensors(writer, entries)
        _read_back(path, entries)

    write_atomic(out, write_file)
    return {"bytes": out.stat().st_size, "tensors": len(entries), "types": dict(sorted(types.items()))}


def _loaders(folder: Path, quantized: Mapping[str, Any] | None, stored: Mapping[str, Piece]) -> dict[str, Load]:
    """How each tensor of the result is read, by the name that it has in the model. Raises InputError for codes that are not read here."""
    if quantized is not None and quantized.get("quant_method") == METHOD:
        container = Container(folder, quantized, stored)
        turned = next((key for key, reading in container.readings.items() if reading.order), None)
        if turned is not None:
            raise InputError(f"{folder} turns the inputs of {turned} while it runs, which GGUF does not hold; export to dense")
        held = {key: partial(_held, container, key) for key in container.shapes}
        return held | {key: stored[key].read for key in container.plain}
    form = INTEGERS if quantized is None else check_format(quantized, folder)
    if form not in (INTEGERS, BYTES):
        raise InputError(f"{folder} holds small floats, for which GGUF is not written; export to dense, or quantize to integers")
    check_parts(stored, folder, form)
    stems = packed_stems(stored)
    parts = {f"{stem}.{part}" for stem in stems for part in PARTS}
    packed = {f"{stem}.weight": partial(read_packed, lambda part: stored[part].read(), stem) for stem in stems}
    return {key: piece.read for key, piece in stored.items() if key not in parts} | packed


def _held(container: Container, key: str) -> Encoded | Tensor:
    """A matrix of our container: its codes where blocks may hold them, else its values."""
    layout = container.matrices[key].layout if key in container.matrices else None
    values = container.read(key) if layout is None or layout.transposed or layout.name not in ("int", "affine", "k_quant") else None
    if values is None:
        return container.encoded(key)
    if isinstance(layout, Values):
        return values.to(getattr(torch, layout.dtype))
    return values if values.ndim != 2 else Encoded("dense", {"values": values}, (values.shape[0], values.shape[1]), 32.0)


def _entries(loaders: Mapping[str, Load], architecture: Architecture, config: Mapping[str, Any], place: str) -> list[Entry]:
    """The tensors of the file, under llama.cpp's names."""
    names = gguf.get_tensor_name_map(architecture.graph, config["num_hidden_layers"])
    tied = config.get("tie_word_embeddings", False)
    entries = []
    for key, load in sorted(loaders.items()):
        if key.endswith("rotary_emb.inv_freq") or (key == HEAD and tied):
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"{place} has no tensor {key} in llama.cpp; it cannot be written to GGUF")
        entries.append(Entry(name, _prepared(load, key, architecture, config)))
    factors = frequency_factors(config)
    if factors is not None:
        entries.append(Entry(f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight", lambda: factors))
    return entries


def _prepared(load: Load, key: str, architecture: Architecture, config: Mapping[str, Any]) -> Load:
    """How a tensor is read, with what llama.cpp's graph expects done to it."""
    queries = size(config, "num_attention_heads")
    heads = {"q_proj": queries, "k_proj": size(config, "num_key_value_heads") or queries}
    module = key.split(".")[-2]
    if architecture.rotary_pairs and module in heads:
        count = heads[module]
        own = count if isinstance(count, int) else count[int(key.split(".")[2])]
        return lambda: _interleaved(load(), own)
    if architecture.shifted_norms and key.endswith("norm.weight"):
        return lambda: load().to(torch.float32) + 1
    return load


def _interleaved(source: Encoded | Tensor, heads: int) -> Encoded | Tensor:
    return take_rows(source, rotary_order(source.shape[0], heads))


def _announce(writer: GGUFWriter, entries: Sequence[Entry]) -> Counter[str]:
    """Write down the type and shape of every tensor; returns how many there are of each type."""
    weights: Counter[GGMLQuantizationType] = Counter()
    types: Counter[str] = Counter()
    unfit, wide = [], []
    with events.task("laying out", len(entries)) as advance:
        for done, entry in enumerate(entries, 1):
            source = entry.load()
            stored = store(source)
            writer.add_tensor_info(entry.name, stored.content.shape, stored.content.dtype, stored.content.nbytes, raw_dtype=stored.type)
            types[stored.type.name] += 1
            if entry.name != "token_embd.weight" and stored.values.ndim > 1:
                weights[stored.type] += stored.values.size
            if isinstance(source, Encoded) and stored.type in (GGMLQuantizationType.F16, GGMLQuantizationType.F32):
                unfit.append(entry.name)
            elif isinstance(source, Encoded) and source.layout != "k_quant" and stored.type not in LARGE_BLOCKS and has_few_levels(source):
                wide.append(entry.name)
            advance(done, entry.name)
    _warn(unfit, wide)
    writer.add_file_type(FILE_TYPES[weights.most_common(1)[0][0]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return types


def _warn(unfit: list[str], wide: list[str]) -> None:
    """Tell of codes that are stored dense, and of codes that other groups would make smaller."""
    if unfit:
        events.warn(
            f"{len(unfit)} matrices have codes that no block type of GGUF holds exactly and are stored dense, the first is {unfit[0]}"
        )
    if wide:
        events.warn(
            f"{len(wide)} matrices of 4 levels or fewer take 4 bits and more, as GGUF has nothing smaller for their groups, the first is "
            f"{wide[0]}; group_size {LARGE_BLOCK}, a multiple of it, or 0, where {LARGE_BLOCK} divides the width, take 1.7 to 2.7 bits"
        )


def _write_tensors(writer: GGUFWriter, entries: Sequence[Entry]) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with events.task("writing", len(entries)) as advance:
            for done, entry in enumerate(entries, 1):
                writer.write_tensor_data(np.ascontiguousarray(store(entry.load()).content).view(_Content))
                advance(done, entry.name)
    finally:
        writer.close()


class _Content(np.ndarray):
    """An array whose bytes go through Python's file: numpy's own way says nothing when the disk refuses the last few thousand of them."""

    def tofile(self, file: BinaryIO, *_: Any) -> None:  # type: ignore[override]
        file.write(self.data)


def _read_back(path: Path, entries: Sequence[Entry]) -> None:
    """Raise RunError unless every tensor, decoded by the format's own library, equals what the codes stand for."""
    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    with events.task("reading back", len(entries)) as advance:
        for done, entry in enumerate(entries, 1):
            stored, tensor = store(entry.load()), found.get(entry.name)
            if tensor is None or not np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), stored.values):
                raise RunError(f"{entry.name} reads back from the GGUF file otherwise than the codes say; is the disk sound?")
            advance(done, entry.name)
