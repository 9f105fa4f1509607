"""Rows: what a model is given to look at, all of one shape, with a digest that says exactly what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.data.spans import Span


@dataclass(frozen=True)
class Rows:
    """Inputs of a model, row by row, all rows of one shape and none padded beyond what the model's own processor does.

    inputs: what the forward pass is called with, by argument name; each [rows, ...].
    ids: what each row is: the number of its window in the text, the place of its first token there where windows overlap, or the name of
        its image file.
    source: where the rows come from, in words.
    targets: [rows, length] int64, for masked language models and overlapping windows: the token to predict, -100 elsewhere.
    labels: [rows] int64, the true class of each row, where a classifier's are known.
    used: the parts of texts and the images that the rows were made of.
    """

    inputs: dict[str, Tensor]
    ids: tuple[int | str, ...]
    source: str
    targets: Tensor | None = None
    labels: Tensor | None = None
    used: tuple[Span, ...] = ()

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor], source: str = "given tensors") -> Rows:
        """Rows made of tensors that the caller has, each [rows, ...]; their ids are 0, 1, ...

        Raises InputError where there is no tensor or no row, where first dimensions differ, or where rows have masks of their own.
        """
        if not inputs:
            raise InputError(f"{source}: no tensors were given; give at least one, such as input_ids.")
        for name, tensor in inputs.items():
            if not isinstance(tensor, Tensor) or tensor.dim() == 0:
                raise InputError(f"{source}: {name} is not a tensor with a first dimension of rows; give a tensor [rows, ...].")
        counts = {name: tensor.shape[0] for name, tensor in inputs.items()}
        if len(set(counts.values())) > 1:
            listing = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise InputError(f"{source}: the tensors differ in their number of rows ({listing}); give every row every input.")
        rows = next(iter(counts.values()))
        if rows == 0:
            raise InputError(f"{source}: the tensors have no rows; give at least one.")
        mask = inputs.get("attention_mask")
        if mask is not None and not bool((mask == mask[:1]).all()):
            raise InputError(f"{source}: attention_mask differs from row to row; give rows of one length, cut instead of padded.")
        return cls(dict(inputs), tuple(range(rows)), source)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens in all rows: rows times the length of `input_ids`, or the number of rows where there are no tokens."""
        ids = self.inputs.get("input_ids")
        return self.rows if ids is None else ids.numel()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the name, dtype, shape and bytes of every input in the order of names, then of the targets and
        the labels."""
        total = hashlib.sha256()
        for name, tensor in self._named():
            total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def select(self, start: int, stop: int) -> Rows:
        """The rows `start` to `stop` (exclusive), as a slice: views, no copies."""
        return replace(
            self,
            inputs={name: tensor[start:stop] for name, tensor in self.inputs.items()},
            ids=self.ids[start:stop],
            targets=None if self.targets is None else self.targets[start:stop],
            labels=None if self.labels is None else self.labels[start:stop],
        )

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        yield from sorted(self.inputs.items())
        if self.targets is not None:
            yield "targets (not an input)", self.targets
        if self.labels is not None:
            yield "labels (not an input)", self.labels
