"""Load a model or a result: packed weights as packed layers, everything else as transformers does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Encoded
from thrifty.core.reading import Reading
from thrifty.export.compressed import PARTS, check_format, check_parts, packed_shape, packed_stems, read_packed, read_rounding
from thrifty.export.container import METHOD
from thrifty.models import Source, open_model
from thrifty.models.disk import TensorInfo, read_tensor
from thrifty.models.folder import find_folder, scan_folder
from thrifty.models.skeleton import build_skeleton, restore_cache
from thrifty.runtime.budget import parse_memory
from thrifty.runtime.container import ContainerFolder, linears_of
from thrifty.runtime.frugal import PackedModel, PlainModel, load_within
from thrifty.runtime.linear import FINE_ROLES, PackedLinear


def load(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    *,
    memory: str | int | None = None,
    tokens: int | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model folder, a hub id or a result, ready to run, in evaluation mode.

    dtype: what the model computes in; by default bfloat16 where weights are packed, else what the checkpoint has. A model whose weights
    are packed runs but is not saved: `state_dict` and `save_pretrained` raise RunError, for they would leave the packed matrices out.
    memory: what the process may hold, as "4GB", "512MiB" or in bytes. What does not fit is left on disk (`runtime.budget` says in which
    order) and outputs stay the same; `model.placement` says what that was. Such a model is not saved either, nor trained, and its files
    must stay as they are. tokens: prompt and answer together that the memory is planned for, 2048 at most by default.
    Raises InputError for whatever is not a model folder, is quantized in a format that is not read here, or does not fit in `memory`.
    """
    budget = None if memory is None else parse_memory(memory)
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise InputError(f"tokens must be a whole number above 0; got {tokens!r}")
    path = find_folder(folder, allow_pickle)
    quantized = _quantization(path)
    if quantized is None:
        packed: PackedModel = PlainModel(open_model(path, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code))
    elif quantized.get("quant_method") == METHOD:
        remote_code = str(path) if trust_remote_code else None
        packed = ContainerFolder(path, quantized, _read_config(path, trust_remote_code), remote_code)
    else:
        packed = PackedFolder(path, quantized, trust_remote_code)
    dtype = dtype or (packed.source.dtype if quantized is None else torch.bfloat16)
    if budget is None:
        model = _filled(packed.source, dtype, packed.layers(dtype))
    else:
        model, placement = load_within(packed, dtype, budget, tokens)
        model.placement = placement
        _finish(model, packed.source)
    if quantized is not None or budget is not None:
        model.register_state_dict_pre_hook(_refuse_state)
    return model


def _quantization(folder: Path) -> dict[str, Any] | None:
    """`quantization_config` of a folder that has one. What is wrong with its config.json is said by whoever opens the model."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    found = config.get("quantization_config") if isinstance(config, dict) else None
    return found if isinstance(found, dict) and found else None


def _refuse_state(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise RunError(
        "a model whose weights are packed or on disk cannot be saved from memory; copy the folder it was loaded from, or write a plain "
        "one with `thrifty export --to dense`"
    )


def load_source(source: Source, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model that is already open, ready to run; dtype: what it computes in, by default what the checkpoint has."""
    return _filled(source, dtype or source.dtype, {})


def _filled(source: Source, dtype: torch.dtype, layers: Mapping[str, nn.Module]) -> PreTrainedModel:
    """The model with its weights; `layers` stand in place of the plain ones at their paths."""
    model = build_skeleton(source.config, dtype, source.remote_code)
    for path, layer in layers.items():
        model.set_submodule(path, layer)
    source.fill(model, dtype)
    _finish(model, source)
    return model


def _finish(model: PreTrainedModel, source: Source) -> None:
    """Let it keep keys and values, and generate as its folder says."""
    restore_cache(model, source.config)
    for parameter in model.parameters():
        # As transformers leaves them; besides, torch copies a matrix that needs no gradient before it multiplies a single row with it.
        parameter.requires_grad_(parameter.is_floating_point())
    if model.can_generate():
        # made from the config as it is now: the skeleton's own was made while the key-value cache was switched off
        file = source.folder / "generation_config.json"
        config = (
            GenerationConfig.from_pretrained(str(source.folder)) if file.is_file() else GenerationConfig.from_model_config(model.config)
        )
        model.generation_config = config


class PackedFolder:
    """A result folder whose matrices are codes, opened as if they were plain: `source` decodes what is read.

    quantized: its `quantization_config`. Raises InputError for a config that transformers does not take, and for missing or broken files.
    """

    def __init__(self, folder: Path, quantized: Mapping[str, Any], trust_remote_code: bool = False) -> None:
        form = check_format(quantized, folder)
        self._quantized = quantized
        config = _read_config(folder, trust_remote_code)
        self.stored, _ = scan_folder(folder, allow_pickle=False)
        stems = packed_stems(self.stored)
        check_parts(self.stored, folder, form)
        parts = {f"{stem}.{part}" for stem in stems for part in PARTS}
        plain = {key: info for key, info in self.stored.items() if key not in parts}
        outlines = {f"{stem}.weight": self._outline(stem, config.dtype or torch.bfloat16) for stem in stems}
        remote_code = str(folder) if trust_remote_code else None
        self.source = Source(folder, config, {**plain, **outlines}, _Decoded(self, stems), remote_code)

    def encoded(self, stem: str) -> Encoded:
        """The codes of one matrix."""
        return read_packed(self._read, stem)

    def layers(self, dtype: torch.dtype, within: str = "", beside: tuple[str, ...] = ()) -> dict[str, PackedLinear]:
        """The packed layers by module path, their biases still to be filled: those below `within`, but for those below `beside`."""
        found: dict[str, PackedLinear] = {}
        stems = set(packed_stems(self.stored))
        roles = {linear.path: linear.role for linear in self.source.anatomy.linears}
        for path, module in linears_of(self.source, within, beside):
            stem = str(self.source.disk_name(f"{path}.weight")).removesuffix(".weight")
            if stem in stems:
                fine = roles.get(path) in FINE_ROLES
                reading = Reading(rounding=read_rounding(self._quantized, self._read, path, stem))
                bias = module.bias is not None
                found[path] = PackedLinear(self.encoded(stem), bias=bias, dtype=dtype, fine=fine, reading=reading)
        return found

    def _read(self, name: str) -> Tensor:
        return read_tensor(name, self.stored[name])

    def _outline(self, stem: str, dtype: torch.dtype) -> TensorInfo:
        shape = packed_shape(self._read, stem)
        return TensorInfo(self.stored[f"{stem}.weight_scale"].file, dtype, shape, 0, 0)


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The config of a model of transformers. Raises InputError for one that transformers does not take."""
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{folder / 'config.json'}: {str(error).strip().splitlines()[0]}") from None


def _read_config(folder: Path, trust_remote_code: bool) -> Any:
    """That of packed weights, as if they were plain."""
    config = read_config(folder, trust_remote_code)
    del config.quantization_config
    return config


class _Decoded(Mapping[str, Tensor]):
    """Packed matrices by the key that they would have if they were plain, decoded when read."""

    def __init__(self, folder: PackedFolder, stems: Sequence[str]) -> None:
        self._folder = folder
        self._stems = {f"{stem}.weight": stem for stem in stems}

    def __getitem__(self, key: str) -> Tensor:
        return self._folder.encoded(self._stems[key]).decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stems)

    def __len__(self) -> int:
        return len(self._stems)
