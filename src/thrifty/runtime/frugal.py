"""A model loaded within a budget of memory: its parts priced, placed, and put where they belong, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from thrifty.base import events
from thrifty.base.anatomy import Block
from thrifty.base.memory import return_free_memory, rss_bytes
from thrifty.models import Source
from thrifty.models.disk import TensorInfo
from thrifty.models.skeleton import build_skeleton
from thrifty.runtime.budget import Parts, Placement, place
from thrifty.runtime.linear import PackedLinear
from thrifty.runtime.rows import DiskEmbedding, DiskHead, MappedMatrix, looks_up
from thrifty.runtime.spill import spill_caches, takes_caches
from thrifty.runtime.stream import BlockStore

TOKENS = 2048
"""Tokens that memory is planned for where nobody says."""
RUNTIME = 64 << 20
"""What the first pass brings into memory besides: code of the libraries and of their kernels."""
PACKING, UNPACKING, LAYING_OUT = 24, 16, 2
"""Bytes a weight while a matrix is packed for the kernels; while it is decoded for a call; while its bytes are laid out for one."""


class PackedModel(Protocol):
    """A folder whose matrices may stay packed."""

    source: Source

    def layers(self, dtype: torch.dtype, within: str = "", beside: tuple[str, ...] = ()) -> dict[str, PackedLinear]:
        """Packed layers by path: those below the module `within`, but for those below the modules `beside`."""
        ...


class PlainModel:
    """A folder without packed matrices."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def layers(self, dtype: torch.dtype, within: str = "", beside: tuple[str, ...] = ()) -> dict[str, PackedLinear]:
        """None."""
        return {}


def load_within(packed: PackedModel, dtype: torch.dtype, budget: int, tokens: int | None = None) -> tuple[PreTrainedModel, Placement]:
    """The model with its weights, and what was left on disk so that the process stays below `budget` bytes.

    tokens: prompt and answer together that the budget is to hold, one row.
    Raises InputError with the number that would do where even the least does not fit.
    """
    loader = _Loader(packed, dtype)
    placement = place(budget, loader.parts(tokens))
    events.note(f"memory: {placement}", "load")
    loader.fill(placement)
    if placement.kept is not None:
        spill_caches(loader.model, placement.kept)
    return_free_memory()
    return loader.model, placement


@dataclass(frozen=True)
class _Table:
    """A module whose matrix can stay on disk: its path, and where the matrix lies."""

    path: str
    info: TensorInfo


def _found(get: Callable[[], nn.Module | None]) -> nn.Module | None:
    """A module that not every class of model has."""
    try:
        return get()
    except (NotImplementedError, AttributeError):
        return None


def _unpacking(layer: PackedLinear) -> int:
    """Bytes that a call of a packed layer takes besides its inputs and outputs."""
    return layer.in_features * layer.out_features * (LAYING_OUT if layer.kernel else UNPACKING)


class _Loader:
    def __init__(self, packed: PackedModel, dtype: torch.dtype) -> None:
        self.packed, self.source, self.dtype = packed, packed.source, dtype
        self.model: PreTrainedModel = build_skeleton(self.source.config, dtype, self.source.remote_code)
        self.blocks = self.source.anatomy.blocks
        self.unpacking = 0
        self.beside = tuple(block.path + "." for block in self.blocks)
        self.lookup, self.output = _found(self.model.get_input_embeddings), _found(self.model.get_output_embeddings)

    # -- prices --------------------------------------------------------------------------------------------------------

    def parts(self, tokens: int | None) -> Parts:
        """What the model takes."""
        longest = getattr(self.source.config.get_text_config(), "max_position_embeddings", None) or TOKENS
        tokens = tokens or min(longest, TOKENS)
        tables = [self.embedding, self.head]
        prices = [0 if table is None else self._bytes(table.path) for table in tables]
        blocks = self._block_bytes()
        whole = self._bytes("") - sum(self._bytes(block.path) for block in self.blocks)
        cache, cache_fixed = self._cache(tokens)
        return Parts(
            process=rss_bytes(),
            fixed=whole - prices[0] - (0 if self.tied else prices[1]),
            embedding=prices[0],
            head=0 if self.tied else prices[1],
            blocks=blocks,
            tokens=tokens,
            cache=cache,
            cache_fixed=cache_fixed,
            work=RUNTIME + self.unpacking + self._work(tokens),
            loading=self._loading(),
        )

    def _bytes(self, path: str, without: Mapping[str, nn.Module] | None = None) -> int:
        """Bytes of all tensors below a path, in the type that the model computes in, each counted once."""
        module = self.model.get_submodule(path)
        left_out = {id(module.get_submodule(name).weight) for name in without or ()}
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in left_out}
        return sum(tensor.numel() * (self.dtype if tensor.is_floating_point() else tensor.dtype).itemsize for tensor in tensors.values())

    def _block_bytes(self) -> tuple[int, ...]:
        """Bytes of each block. Packed layers are made to see what they take, once for all blocks that lie on disk alike."""
        known: dict[Any, int] = {}
        found = []
        for block in self.blocks:
            alike = self._form(block)
            if alike not in known:
                layers = self.packed.layers(self.dtype, block.path)
                held = sum(tensor.nbytes for layer in layers.values() for tensor in layer.buffers())
                self.unpacking = max([self.unpacking, *(_unpacking(layer) for layer in layers.values())])
                inside = {path.removeprefix(block.path + "."): layer for path, layer in layers.items()}
                known[alike] = held + self._bytes(block.path, inside)
            found.append(known[alike])
        return tuple(found)

    def _form(self, block: Block) -> tuple[Any, ...]:
        """How a block lies on disk: equal for blocks that take equal memory."""
        stems = {key.removesuffix(".weight"): number for number, key in enumerate(self.source.block_keys(block))}
        stored = self._stored_by_stem
        return tuple((number, part, dtype, shape) for stem, number in stems.items() for part, dtype, shape in stored.get(stem, ()))

    @cached_property
    def _stored_by_stem(self) -> dict[str, list[tuple[str, torch.dtype, tuple[int, ...]]]]:
        found: dict[str, list[tuple[str, torch.dtype, tuple[int, ...]]]] = {}
        for key, info in getattr(self.packed, "stored", self.source.tensors).items():
            stem, _, part = key.rpartition(".")
            found.setdefault(stem, []).append((part, info.dtype, info.shape))
        return found

    def _cache(self, tokens: int) -> tuple[tuple[int, ...], int]:
        """Bytes of keys and values of a token in every layer that can spill, and of all other layers together."""
        if not takes_caches(self.model):
            return (), 0
        kinds = DynamicCache(config=self.model.config.get_text_config(decoder=True)).layers
        attentions = [block.attention for block in self.blocks if block.attention is not None]
        spilling, fixed = [], 0
        for layer, attention in zip(kinds, attentions[-len(kinds) :], strict=False):
            bytes_ = 2 * attention.num_key_value_heads * attention.head_dim * self.dtype.itemsize
            if type(layer) is DynamicLayer:
                spilling.append(bytes_)
            else:
                fixed += bytes_ * min(tokens, getattr(layer, "sliding_window", tokens))
        return tuple(spilling), fixed

    def _work(self, tokens: int) -> int:
        """What computing takes for so many tokens at once: inputs and outputs of the widest matrix in a few types, scores where they are
        written out, a head's logits of the last token."""
        widest = max((linear.in_features + linear.out_features for linear in self.source.anatomy.linears), default=0)
        bytes_ = tokens * (16 * widest + 8 * self.source.anatomy.hidden_size) + 8 * self.source.vocabulary
        if self.model.config._attn_implementation == "eager":
            heads = max((block.attention.num_heads for block in self.blocks if block.attention), default=0)
            bytes_ += heads * tokens * tokens * (4 + 2 * self.dtype.itemsize)
        return bytes_

    def _loading(self) -> int:
        """What reading the largest matrix takes besides itself."""
        found = [0, *(info.bytes for info in self.source.tensors.values() if info.dtype != self.dtype)]
        found += [self.model.get_parameter(name).numel() * self.dtype.itemsize for name in self.source.names.pieces]
        if not isinstance(self.packed, PlainModel):
            found += [PACKING * linear.in_features * linear.out_features for linear in self.source.anatomy.linears]
        return max(found)

    # -- what can stay on disk -------------------------------------------------------------------------------------------

    @cached_property
    def embedding(self) -> _Table | None:
        """The table of the token embedding, where everything that reads it can do so from disk."""
        lookup = self.lookup
        path = next((path for path, module in self.model.named_modules() if module is lookup), None)
        if path is None or not isinstance(lookup, nn.Embedding) or not looks_up(lookup):
            return None
        table = self._table(path)
        sharing = {name for name, parameter in self.model.named_parameters(remove_duplicate=False) if parameter is lookup.weight}
        head = self._head_path()
        return table if sharing <= {f"{path}.weight", f"{head}.weight"} else None

    @cached_property
    def head(self) -> _Table | None:
        """The matrix of the head, where that is a plain linear layer."""
        path = self._head_path()
        return None if path is None else self._table(path)

    @cached_property
    def tied(self) -> bool:
        """Whether head and embedding are one table."""
        path = self._head_path()
        return path is not None and self.model.get_submodule(path).weight is getattr(self.lookup, "weight", None)

    def _head_path(self) -> str | None:
        head = self.output if type(self.output) is nn.Linear else None
        return next((path for path, module in self.model.named_modules() if module is head), None)

    def _table(self, path: str) -> _Table | None:
        info = self._on_disk(f"{path}.weight")
        return None if info is None or len(info.shape) != 2 else _Table(path, info)

    def _on_disk(self, name: str) -> TensorInfo | None:
        """Where a parameter lies in a file of its own values; None for one that is made from codes, pickled or joined."""
        info = self.source.tensors.get(self.source.disk_name(name) or "")
        if info is None or self.source.pickled or info.bytes == 0 or info.shape != tuple(self.model.get_parameter_or_buffer(name).shape):
            return None
        return info

    # -- weights -------------------------------------------------------------------------------------------------------

    def fill(self, placement: Placement) -> None:
        """Give the model its weights; one block of those that do not stay is in memory at a time."""
        embedding, head = self.embedding, self.head
        if placement.embedding and embedding is not None:
            table = MappedMatrix(embedding.info)
            self.model.set_submodule(embedding.path, DiskEmbedding(self.model.get_submodule(embedding.path), table, self.dtype))
            if self.tied and head is not None:
                self._head_on_disk(head.path, table)
        if placement.head and not self.tied and head is not None:
            self._head_on_disk(head.path, MappedMatrix(head.info))
        self._place(self.packed.layers(self.dtype, beside=self.beside))
        self.source.fill(self.model, self.dtype, leave=self.beside)
        store = BlockStore()
        staying = len(self.blocks) - placement.blocks
        for number, block in enumerate(self.blocks):
            layers = self.packed.layers(self.dtype, block.path)
            self._place(layers)
            if number < staying:
                self.source.fill(self.model, self.dtype, within=block.path + ".")
                continue
            for layer in layers.values():
                layer.lay_flat()
            where = self._ready_on_disk(block.path)
            self.source.fill(self.model, self.dtype, within=block.path + ".", leave=tuple(f"{block.path}.{name}" for name in where))
            store.add(self.model.get_submodule(block.path), where)
            return_free_memory()

    def _head_on_disk(self, path: str, table: MappedMatrix) -> None:
        self.model.set_submodule(path, DiskHead(self.model.get_submodule(path), table, self.dtype))

    def _place(self, layers: Mapping[str, nn.Module]) -> None:
        for path, layer in layers.items():
            self.model.set_submodule(path, layer)

    def _ready_on_disk(self, block: str) -> dict[str, TensorInfo]:
        """The matrices of a block that lie in a file exactly as the model computes with them, by name inside the block."""
        found = {}
        for name, parameter in self.model.get_submodule(block).named_parameters():
            info = self._on_disk(f"{block}.{name}") if parameter.ndim >= 2 else None
            if info is not None and info.dtype == self.dtype:
                found[name] = info
        return found
