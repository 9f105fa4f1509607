"""What a block holds while rows pass through it: found by a pass over tensors that have shapes and no values.

The blocks are run on the meta device, and every tensor that they make is counted until it is let go. Fused attention makes no scores there,
as on the processor and on CUDA; attention that a model computes by itself does, and what CUDA has no fused kernel for, where that is asked
for. So what an architecture does beside its linears (scans of
state-space mixers, capped scores, images in many patches) is in the price without being known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thrifty.base.anatomy import Block
from thrifty.data import Rows
from thrifty.models import Call, Source, linear_modules, run_block

HEAP = 32 << 20
"""Tensors below this many bytes share a heap with the GNU allocator, which loses room between them; larger ones get pages of their own."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one row in a block.

    tokens: vectors of a row there. row: the hidden states that leave it. peak: what the block makes at the fullest moment of a pass.
    heap: the part of the peak that lies in tensors below HEAP when a batch passes. stages: what is alive when a stage is reached, by the
    name of the space it reads.
    """

    tokens: int
    row: int
    peak: int
    heap: int
    stages: Mapping[str, int]


def footprints_of(source: Source, rows: Rows | None, dtype: torch.dtype, batch: int, device: str = "cpu") -> dict[str, Footprint]:
    """The footprint of each block for these rows; empty where there are none, or where the model cannot be run without values."""
    if rows is None:
        return {}
    try:
        return footprints(source, rows.select(0, 1).inputs, dtype, batch, device)
    except Exception:  # whatever a model does with values: the price is then worked out from the widths of its linears
        return {}


def footprints(source: Source, inputs: Mapping[str, Tensor], dtype: torch.dtype, batch: int, device: str = "cpu") -> dict[str, Footprint]:
    """The footprint of each block by path, for rows like `inputs` (one row each) in `dtype`, of which `batch` pass together on `device`.

    Raises whatever the model raises where it cannot be run without values.
    """
    found = {}
    for kind in kinds(source, inputs):
        hidden = torch.empty(2, *kind.shape, dtype=dtype, device="meta")
        footprint = _footprint(source, kind.block, kind.call, hidden, HEAP // batch, device)
        found.update(dict.fromkeys(kind.paths, footprint))
    return found


@dataclass(frozen=True)
class Kind:
    """Blocks that hold and cost the same. paths: theirs; block: one of them; call: what it is called with; shape: of one row of its
    hidden states."""

    paths: list[str]
    block: Block
    call: Call
    shape: torch.Size


def kinds(source: Source, inputs: Mapping[str, Tensor]) -> list[Kind]:
    """The kinds of blocks in a model, for rows like `inputs`. No weight is read."""
    shell = source.hollow_shell()
    calls = shell.calls(dict(inputs), {}, to_the_end=False)
    found: dict[str, Kind] = {}
    for block in source.anatomy.blocks:
        call, shape = calls[block.path], shell.entering[block.path][1:]
        kind = found.setdefault(_made_of(source, block, call, shape), Kind([], block, call, shape))
        kind.paths.append(block.path)
    return list(found.values())


def _made_of(source: Source, block: Block, call: Call, shape: torch.Size) -> str:
    """Equal for blocks that are made of the same and called with the same."""
    shapes: list[Any] = [block.path.rpartition(".")[0], tuple(shape)]
    call.map(lambda tensor: shapes.append((tuple(tensor.shape), tensor.dtype)) or tensor)
    linears = [(linear.role, linear.out_features, linear.in_features, linear.expert is None) for linear in block.linears]
    return repr((shapes, linears, sorted(call.kwargs)))


def _footprint(source: Source, block: Block, call: Call, hidden: Tensor, small: int, device: str) -> Footprint:
    """small: bytes a row below which a tensor lies in the heap."""
    one, two = (_pass(source, block, call, hidden[:rows], small * rows, device) for rows in (1, 2))
    # masks and positions are made once, however many rows there are
    stages = {name: two.stages[name] - one.stages[name] for name in one.stages}
    return Footprint(one.tokens, two.row - one.row, two.peak - one.peak, max(0, two.heap - one.heap), stages)


def _pass(source: Source, block: Block, call: Call, hidden: Tensor, small: int, device: str) -> Footprint:
    """The bytes of one pass of some rows."""
    module = source.hollow_block(block, hidden.dtype)
    ledger = Ledger([hidden, *module.parameters(), *module.buffers(), *_held(call)], small)
    stages: dict[str, int] = {}
    with _noting(module, block, ledger, stages), _FusedAttention(device), ledger:
        out = run_block(module, hidden, call.to("meta"))
    tokens = hidden.shape[1:-1].numel()
    return Footprint(tokens, out.numel() * out.itemsize, ledger.peak, ledger.heap, stages)


def _held(call: Call) -> list[Tensor]:
    found: list[Tensor] = []
    call.to("meta").map(lambda tensor: found.append(tensor) or tensor)
    return found


@contextmanager
def _noting(module: nn.Module, block: Block, ledger: Ledger, stages: dict[str, int]) -> Iterator[None]:
    """Note in `stages` what is alive when the first linear of each stage is reached."""
    linears = linear_modules(module, block)

    def reached(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            stages.setdefault(name, ledger.now)

        return note

    handles = [
        linears[linear.path].register_forward_pre_hook(reached(stage.reads.name)) for stage in block.stages for linear in stage.linears
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Ledger(TorchDispatchMode):
    """Bytes of the tensors that were made and are still alive (now), the most there were at once (peak), and what of that lay in tensors
    of less than `small` bytes (heap). known: tensors that do not count."""

    def __init__(self, known: list[Tensor], small: int) -> None:
        super().__init__()
        self.now = self.peak = self.heap = self._heap = 0
        self._small = small
        self._alive = {tensor.untyped_storage()._cdata: (StorageWeakRef(tensor.untyped_storage()), 0) for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self._count(storage.nbytes())
        for key in [key for key, (reference, _) in self._alive.items() if reference.expired()]:
            self._count(-self._alive.pop(key)[1])
        if self.now > self.peak:
            self.peak, self.heap = self.now, self._heap
        return out

    def _count(self, size: int) -> None:
        self.now += size
        if abs(size) < self._small:
            self._heap += size


class _FusedAttention(TorchFunctionMode):
    """Attention without scores in memory, which the meta device would make."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        query, key, value = args[:3]
        if not self._scores(query, kwargs):
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        hidden = query.new_empty((*query.shape[:-1], key.shape[-2]), dtype=torch.bool)  # which scores are masked, known beside them
        out = function(*args, **kwargs)
        del hidden
        return out

    def _scores(self, query: Tensor, words: Mapping[str, Any]) -> bool:
        """Whether the kernels of the device make scores: those of CUDA for float32 do not take heads that share keys."""
        return self._device != "cpu" and query.dtype == torch.float32 and bool(words.get("enable_gqa"))
