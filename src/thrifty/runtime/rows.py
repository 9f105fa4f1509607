"""Matrices that stay in their file: an embedding reads the rows of its tokens, a head goes through all rows a piece at a time.

The file is mapped. Pages that were read count as memory of the process until they are given back, so they are: what is held at a time is
bounded by `TABLE_BYTES`, whatever the size of the table. The system keeps as much of the file as it has room for.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.base.errors import InputError
from thrifty.base.memory import return_free_memory
from thrifty.models.disk import TensorInfo
from thrifty.runtime.budget import TABLE_BYTES

_AROUND = 1 << 16
"""The system maps so much around what is touched (`fault_around_bytes`)."""
_MANY = 8 << 20
"""Bytes of rows from which giving memory back takes no time beside reading them."""
_MULTIPLE = 64
"""Pieces of a head begin at multiples of this, so that products are cut as those of the whole matrix are."""


class MappedMatrix:
    """A matrix [rows, width] in a file.

    info: where it lies. Copies share it; it is pickled as the place where it lies. The file must stay as it is while it is used. Raises
    InputError for a file that cannot be mapped.
    """

    def __init__(self, info: TensorInfo) -> None:
        self.info = info
        self.shape, self.dtype = info.shape, info.dtype
        try:
            with Path(info.file).open("rb") as stream:
                # private and writable, because torch warns of memory that is not; nobody writes
                self._map = mmap.mmap(stream.fileno(), info.start + info.bytes, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise InputError(f"{info.file} cannot be mapped ({error}); check the file and its permissions.") from None
        self._advise("MADV_RANDOM", 0, self.shape[0])
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8, offset=info.start, count=info.bytes).view(self.shape[0], -1)

    def rows(self, index: Int[Tensor, "count"]) -> Tensor:
        """The rows [count, width] of that index, ascending for the fewest pages."""
        out = torch.empty(index.numel(), self._bytes.shape[1], dtype=torch.uint8)
        step = max(1, TABLE_BYTES // (_AROUND + self._bytes.shape[1]))
        for start in range(0, index.numel(), step):
            part = index[start : start + step]
            torch.index_select(self._bytes, 0, part, out=out[start : start + step])
            self._advise("MADV_DONTNEED", 0, self.shape[0])
        return out.view(self.dtype)

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, end, the rows between) through the whole matrix; the next piece is read from the disk meanwhile."""
        row = self._bytes.shape[1]
        # the mapped piece and its copy, which begins where products like it to, are there together
        count = max(1, -(-self.shape[0] * row * 2 // TABLE_BYTES))
        step = -(-self.shape[0] // (count * _MULTIPLE)) * _MULTIPLE
        self._advise("MADV_WILLNEED", 0, step)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            self._advise("MADV_WILLNEED", stop, min(stop + step, self.shape[0]))
            piece = self._bytes[start:stop].clone()
            self._advise("MADV_DONTNEED", start, stop)
            yield start, stop, piece.view(self.dtype)

    def whole(self) -> Tensor:
        """All of it, in memory."""
        return self._bytes.clone().view(self.dtype)

    def _advise(self, what: str, start: int, stop: int) -> None:
        """Tell the system about rows; where it has no such advice, nothing is done."""
        if hasattr(mmap, what) and stop > start:
            row = self.info.bytes // self.shape[0]
            begin = (self.info.start + start * row) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(getattr(mmap, what), begin, self.info.start + stop * row - begin)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.info,)


class DiskEmbedding(nn.Module):
    """An embedding whose table stays in its file: what `lookup` does, with the rows of the tokens at hand in place of the table.

    lookup: the module it stands for, of any class that does nothing with token ids but look rows up (see `looks_up`); table: [vocabulary,
    width]; dtype: of the outputs.
    """

    def __init__(self, lookup: nn.Embedding, table: MappedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = lookup.num_embeddings, lookup.embedding_dim, lookup.padding_idx
        self.table = table
        self.lookup = lookup
        lookup.padding_idx = None  # it only keeps gradients from a row, and rows have other numbers here
        lookup.weight = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The whole table, read into memory."""
        return self.table.whole().to(self.lookup.weight)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        """The rows of these tokens."""
        tokens, places = torch.unique(ids, return_inverse=True)
        if tokens.numel() and not 0 <= int(tokens[0]) <= int(tokens[-1]) < self.num_embeddings:
            raise IndexError(f"token ids reach from {int(tokens[0])} to {int(tokens[-1])}; the vocabulary has {self.num_embeddings}")
        if tokens.numel() * self.table.info.bytes >= _MANY * self.num_embeddings:
            return_free_memory()  # what the last lookup left scattered in the heap would stand beside what this one takes
        rows = self.table.rows(tokens.cpu()).to(self.lookup.weight)
        return torch.func.functional_call(self.lookup, {"weight": rows}, (places,))

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, on disk"


class DiskHead(nn.Module):
    """A linear layer whose matrix [out, in] stays in its file and is read through for every call."""

    def __init__(self, head: nn.Linear, table: MappedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = head.out_features, head.in_features
        self.table = table
        self.bias = head.bias
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The whole matrix, read into memory."""
        return self.table.whole().to(self.like)

    def forward(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """inputs @ weight.T + bias."""
        rows = inputs.reshape(-1, self.in_features)  # as torch does for a whole matrix
        out = inputs.new_empty(rows.shape[0], self.out_features)
        for start, stop, piece in self.table.pieces():
            bias = None if self.bias is None else self.bias[start:stop]
            out[:, start:stop] = functional.linear(rows, piece.to(self.like), bias)
        return out.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, on disk"


def looks_up(lookup: nn.Module) -> bool:
    """Whether a module does nothing with token ids but look up rows of its table, tried on a small one."""
    if not isinstance(lookup, nn.Embedding) or lookup.max_norm is not None:
        return False
    table = torch.arange(4.0 * lookup.embedding_dim).view(4, -1).sin()
    ids, few, places = torch.tensor([[3, 1, 3]]), torch.tensor([1, 3]), torch.tensor([[1, 0, 1]])
    padding, lookup.padding_idx = lookup.padding_idx, None
    try:
        whole = torch.func.functional_call(lookup, {"weight": table}, (ids,))
        return torch.equal(whole, torch.func.functional_call(lookup, {"weight": table[few]}, (places,)))
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return False
    finally:
        lookup.padding_idx = padding
