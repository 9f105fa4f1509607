"""A model whose hidden states are turned: every tensor is rotated as it is read, and the function stays.

    h' = h Q    matrices that read a norm: W' = W diag(g) Q    matrices that write: W' = Q^T W, b' = b Q
                embeddings: E' = E Q                           norms: g' = 1, b' = (b / g) Q

A norm divides by the length of h, which Q does not change; its gain moves into what reads it. A LayerNorm takes the mean off, too: where
there is one, Q is such that the mean stays. Embeddings and head can share no matrix then, since only one of them takes on a gain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from thrifty.base.anatomy import Anatomy, Block, Linear, Norm, Part
from thrifty.base.errors import InputError
from thrifty.models.blocks import Call, run_block
from thrifty.models.shell import Shell
from thrifty.models.source import Source

WRITERS = ("o", "down", "fc2", "out_proj")
"""Roles of matrices that write into the hidden states."""

SMALLEST = 1e-4
"""A gain below this share of the largest cannot be divided by."""

TOLERANCE, ROUNDED = 1e-3, 2e-2
"""What a part of the model may be off by, relative, once it is turned: where nothing is rounded, and where its tensors are, to 16 bits."""

_ROWS = 4096


@dataclass(frozen=True)
class Place:
    """What a tensor is turned as. norm: whose gain it takes on, or whose it is. transposed: whether its inputs are its rows on disk."""

    kind: Literal["reader", "writer", "rows", "gain", "bias"]
    norm: Norm | None = None
    transposed: bool = False

    @property
    def turned_over(self) -> bool:
        """Whether what is turned lies along the axis before the last: inputs of what reads, outputs of what writes."""
        return self.transposed if self.kind == "reader" else self.kind == "writer" and not self.transposed

    def shape(self, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
        """The shape of the tensor once the hidden states are `width` wide."""
        before_last = len(shape) - 2 if len(shape) <= 3 else 0  # a convolution that cuts an image has its outputs first
        axis = before_last if self.turned_over else len(shape) - 1
        return (*shape[:axis], width, *shape[axis + 1 :])


class Turning(Protocol):
    """A map of hidden states, x -> x Q along the last axis, the columns of Q orthonormal."""

    def of(self, values: Tensor) -> Tensor:
        """values @ Q."""
        ...

    def back(self, values: Tensor) -> Tensor:
        """values @ Q^T."""
        ...


class Rotated(Source):
    """`original` with its hidden states turned; tensors have the types that they have there.

    make: gives the rotation for a width, with or without the mean kept. step: the method that asks for it, for people. Raises InputError
    for a model whose hidden states cannot be turned.
    """

    def __init__(self, original: Source, make: Callable[[int, bool], Turning], step: str = "rotate") -> None:
        vars(self).update(vars(original))
        self._original, self._shared, self._exact, self._step = original, ("", ""), False, step
        refusal = _refusal(original)
        if refusal is not None:
            raise InputError(f"the hidden states of {original.anatomy.architecture} cannot be turned: {refusal}; leave `{step}` out")
        if original.anatomy.tied:
            self._untie()
        anatomy = self.anatomy
        norms = [*anatomy.final_norms, *(norm for block in anatomy.blocks for norm in outer_norms(block))]
        self.keeps_mean = any(norm.kind == "layer" for norm in norms)
        self.width, self.gain = anatomy.hidden_size, 1.0
        self.rotation = make(anatomy.hidden_size, self.keeps_mean)
        self.places = _places(self)

    def _untie(self) -> None:
        """Give the head a matrix of its own."""
        anatomy = self.anatomy
        shared = self.names.disk_name(f"{anatomy.embeddings[0]}.weight") or ""
        name = f"{anatomy.head}.weight"
        tied = {key: other for key, other in self.names.tied.items() if name not in (key, other)}
        self._shared = (name, shared)
        self.names = replace(self.names, direct={**self.names.direct, name: name}, tied=tied)
        self.tensors = {**self.tensors, name: self.tensors[shared]}
        self.anatomy = replace(anatomy, tied=False, parameters=anatomy.parameters + self.tensors[shared].numel)
        self.config = copy.deepcopy(self.config)
        self.config.tie_word_embeddings = False
        self._skeletons = {}

    @property
    def original(self) -> Source:
        return self._original

    @property
    def config_changes(self) -> dict[str, object]:
        return {"tie_word_embeddings": False} if self._original.anatomy.tied else {}

    @property
    def lies_in_files(self) -> bool:
        return False

    def digest(self) -> dict[str, str]:
        """That of the original, from which everything here follows."""
        return self._original.digest()

    def read(self, key: str) -> Tensor:
        name, shared = self._shared
        return self._turned(key, self._original.read(shared if key == name else key))

    def read_part(self, key: str, part: Part) -> Tensor:
        return self._turned(key, self._original.read_part(key, part))

    def check_block(self, block: Block, row: Tensor, call: Call) -> None:
        """Raise InputError when a block makes something else of a row of turned hidden states [1, length, width]; nothing is rounded."""
        row, call = row.to("cpu", torch.float32), call.to("cpu", torch.float32)
        plain = run_block(self._original.block(block, torch.float32), self.rotation.back(row), call)
        self._exact = True
        try:
            turned = run_block(self.block(block, torch.float32), row, call)
        finally:
            self._exact = False
        self._check(block.path, self.rotation.back(turned), plain, TOLERANCE)

    def check_shell(self, turned: Shell, plain: Shell, inputs: dict[str, Tensor], row: Tensor, plain_row: Tensor) -> None:
        """Raise InputError when what stands around the blocks makes something else of the inputs of one row, or of hidden states.

        row, plain_row: what both make of the inputs. Tensors are as they will be stored.
        """
        tolerance = TOLERANCE if self.dtype == torch.float32 else ROUNDED
        self._check("what stands before its blocks", self.rotation.back(row), plain_row, tolerance)
        chain = self.anatomy.chains[0]
        ends = [shell.finish(inputs, {chain: hidden}) for shell, hidden in ((turned, self.rotation.of(plain_row)), (plain, plain_row))]
        self._check("what stands behind its blocks", *ends, tolerance)

    def _check(self, what: str, turned: Tensor, plain: Tensor, tolerance: float) -> None:
        apart = float((turned - plain).norm() / plain.norm().clamp_min(1e-12))
        if not apart < tolerance:
            name = self.anatomy.architecture
            raise InputError(
                f"{name}: {what} computes something else once its hidden states are turned (off by {apart:.2g}, relative); "
                f"leave `{self._step}` out"
            )

    def _turned(self, key: str, stored: Tensor) -> Tensor:
        place = self.places.get(key)
        if place is None:
            return stored
        if self._exact:
            stored = stored.to(torch.float32)
        if place.kind in ("gain", "bias"):
            gain, bias = self.norm(place.norm)
            values = self.rotation.of(bias / gain)
            if place.kind == "gain":
                values = torch.full_like(values, self.gain - 1.0 if place.norm.plus_one else self.gain)
            return values.to(stored.dtype)
        gain = None if place.norm is None else self.norm(place.norm)[0]
        of = self.rotation.of if place.norm is None else self.reading(place.norm)
        turned_over = place.turned_over  # what is turned must lie along the last axis
        flat = stored.flatten(1) if stored.ndim > 3 else stored  # a convolution that cuts an image
        values = flat.transpose(-1, -2) if turned_over else flat
        out = torch.empty(*values.shape[:-1], self.width, dtype=stored.dtype)
        # a few rows at a time: they are computed with in float32
        for into, rows in zip(out.view(-1, self.width).split(_ROWS), values.reshape(-1, values.shape[-1]).split(_ROWS), strict=True):
            wide = rows.to(torch.float32)
            into.copy_(of(wide if gain is None else wide * gain))
        return (out.transpose(-1, -2) if turned_over else out).reshape(place.shape(stored.shape, self.width)).contiguous()

    def reading(self, norm: Norm) -> Callable[[Tensor], Tensor]:
        """What rows of matrices become that read the hidden states through a norm, its gain in them."""
        return self.rotation.of

    def norm(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """(the gain that a norm multiplies by, its bias), float32."""
        gain = self._original.read(self.names.disk_name(f"{norm.path}.weight") or "").to(torch.float32) + (1.0 if norm.plus_one else 0.0)
        if not norm.bias:
            return gain, torch.zeros_like(gain)
        if bool((gain.abs() < SMALLEST * gain.abs().max()).any()):
            raise InputError(f"{norm.path} has gains next to zero, behind which no rotation can put its bias; leave `rotate` out")
        return gain, self._original.read(self.names.disk_name(f"{norm.path}.bias") or "").to(torch.float32)


def outer_norms(block: Block) -> tuple[Norm, ...]:
    """The norms of a block that are not inside its attention or its mixer."""
    inner = tuple(f"{part.path}." for part in (block.attention, block.state_space) if part is not None)
    return tuple(norm for norm in block.norms if not norm.path.startswith(inner))


def readers(block: Block) -> dict[str, Norm]:
    """The norm that each linear of a block reads the hidden states through, by path."""
    norms = {norm.path: norm for norm in outer_norms(block)}
    spaces = [space for space in block.spaces if len(space.producers) == 1 and space.producers[0] in norms]
    return {path: norms[space.producers[0]] for space in spaces for path in space.consumers}


def writers(block: Block, hidden_size: int) -> tuple[Linear, ...]:
    """The linears of a block that write into the hidden states."""
    known = readers(block)
    return tuple(
        linear for linear in block.linears if linear.role in WRITERS and linear.out_features == hidden_size and linear.path not in known
    )


def _refusal(source: Source) -> str | None:
    """Why the hidden states of a model cannot be turned; None where they can."""
    anatomy = source.anatomy
    if anatomy.kind not in ("causal_lm", "vision") or len(anatomy.chains) != 1:
        return f"this works for causal language models and image encoders, and it is {anatomy.kind.replace('_', ' ')}"
    if anatomy.head not in source.linear_modules or len(anatomy.final_norms) != 1 or not anatomy.embeddings:
        return "it has no head behind one norm"
    for path in anatomy.embeddings:
        key = source.disk_name(f"{path}.weight")
        if key is None or _width(source.tensors[key].shape) != anatomy.hidden_size:
            return f"{path} is not as wide as they are"
    return next(filter(None, (_block_refusal(block, anatomy) for block in anatomy.blocks)), None)


def _block_refusal(block: Block, anatomy: Anatomy) -> str | None:
    known = readers(block)
    for norm in outer_norms(block):
        if norm not in known.values():
            return f"the gain of {norm.path} cannot be moved into what reads it"
    if not known or not writers(block, anatomy.hidden_size):
        return f"what reads and writes them in {block.path} is not known"
    return None


def _width(shape: tuple[int, ...]) -> int:
    """How wide is what an embedding puts out: a table of rows, or a convolution that cuts an image."""
    return shape[-1] if len(shape) == 2 else shape[0]


def _added(source: Source) -> list[str]:
    """Keys of what is added to the hidden states outside the blocks: positions, a class token, the bias of a convolution."""
    anatomy, shell = source.anatomy, set(source.shell_keys())
    others = (f"{anatomy.head}.", *(f"{norm.path}." for norm in anatomy.final_norms))
    direct = ((name, key) for name, key in source.names.direct.items() if key in shell and not name.startswith(others))
    return [key for _, key in direct if source.tensors[key].shape[-1:] == (anatomy.hidden_size,)]


def _places(source: Source) -> dict[str, Place]:
    """What each tensor is turned as, by disk key."""
    anatomy, final = source.anatomy, source.anatomy.final_norms[0]
    found: dict[str | None, Place] = {key: Place("rows") for key in _added(source)}
    for path in anatomy.embeddings:
        key = source.disk_name(f"{path}.weight")
        found[key] = Place("rows" if len(source.tensors[key or ""].shape) == 2 else "writer")
    found[source.disk_name(f"{anatomy.head}.weight")] = Place("reader", final)
    norms = [final]
    for block in anatomy.blocks:
        linears = {linear.path: linear for linear in (*block.linears, *block.routers)}
        norms.extend(outer_norms(block))
        for path, norm in readers(block).items():
            found[linears[path].source] = Place("reader", norm, linears[path].storage == "conv1d")
        for linear in writers(block, anatomy.hidden_size):
            found[linear.source] = Place("writer", None, linear.storage == "conv1d")
            if linear.bias_source:
                found[linear.bias_source] = Place("rows")
    for norm in norms:
        found[source.disk_name(f"{norm.path}.weight")] = Place("gain", norm)
        if norm.bias:
            found[source.disk_name(f"{norm.path}.bias")] = Place("bias", norm)
    return {key: place for key, place in found.items() if key is not None}
