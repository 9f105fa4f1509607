"""Removing units from the tensors of a block, and switching them off in place: two ways to the same function.

    cut    tensors whose dimensions hold only what stays
    zeroed tensors of the same shapes in which nothing reads the removed units any more

Both take tensors by disk key, in disk layout, and leave those that hold no unit as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.base.anatomy import Member, Units
from thrifty.base.records import Cut

PIECE = 1 << 17
"""Values that are squared at once."""


def indices(member: Member, count: int) -> Int[Tensor, "count size"]:
    """What each unit owns in the matrix (or bias) of the member's linear, or in its tensor where it belongs to no linear."""
    parts = [start + torch.arange(count * size).reshape(count, size) for start, size in member.runs]
    return torch.cat(parts, dim=1)


def unit_values(tensor: Float[Tensor, "..."], member: Member, count: int) -> Float[Tensor, "count values"]:
    """Every value that a unit owns in a tensor in disk layout, a row a unit."""
    whole = tensor if member.expert is None else tensor[member.expert]
    return whole.movedim(member.dim, 0)[indices(member, count) + member.offset].flatten(1)


def unit_energies(tensor: Float[Tensor, "..."], member: Member, count: int) -> Float[Tensor, "count"]:
    """The sum of the squares of what each unit owns in a tensor in disk layout."""
    whole = tensor if member.expert is None else tensor[member.expert]
    others = [dim for dim in range(whole.ndim) if dim != member.dim]
    lines = torch.zeros(whole.shape[member.dim], dtype=whole.dtype)
    for start, squares in _squares(whole):
        found = squares.sum(others) if others else squares
        if member.dim == 0:
            lines[start : start + len(found)] = found
        else:
            lines += found
    return lines[indices(member, count) + member.offset].sum(1)


def energies(matrix: Float[Tensor, "out in"], rows: Float[Tensor, "out"]) -> tuple[Float[Tensor, "in"], Float[Tensor, "in"]]:
    """The sums of squares of each column: of all rows, and of rows that count as `rows` says."""
    whole, weighed = torch.zeros(2, matrix.shape[1]).unbind()
    for start, squares in _squares(matrix):
        whole += squares.sum(0)
        weighed += rows[start : start + len(squares)] @ squares
    return whole, weighed


def _squares(tensor: Float[Tensor, "lines ..."]) -> Iterator[tuple[int, Float[Tensor, "part ..."]]]:
    """The squares of some lines after the other, with the first one's number: as many as stay in a near cache."""
    step = max(1, PIECE * len(tensor) // max(1, tensor.numel()))
    for start in range(0, len(tensor), step):
        yield start, tensor[start : start + step].square()


def staying(units: Units, keep: Int[Tensor, "kept"]) -> Bool[Tensor, "count"]:
    """Which units stay, as a mask."""
    mask = torch.zeros(units.count, dtype=torch.bool)
    mask[keep] = True
    return mask


def cut(tensors: Mapping[str, Tensor], cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """The tensors without the removed units. Those of a removed unit alone are gone; the rest of their kind move up to the free keys."""
    found = dict(tensors)
    masks: dict[str, dict[int | None, dict[int, Tensor]]] = {}
    for item in cuts:
        for member in item.units.members:
            if member.source in found:
                by_dim = masks.setdefault(member.source, {}).setdefault(member.expert, {})
                length = found[member.source].shape[member.dim + (member.expert is not None)]
                mask = by_dim.setdefault(member.dim, torch.ones(length, dtype=torch.bool))
                _strike(mask, member, item)
    for key, by_expert in masks.items():
        found[key] = _shrunk(found[key], by_expert)
    for item in cuts:
        _move_up(found, item)
    return found


def zeroed(tensors: Mapping[str, Tensor], cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """The tensors with zeros wherever a removed unit would be read."""
    found = dict(tensors)
    for item in cuts:
        gone = (~staying(item.units, item.keep)).nonzero()[:, 0]
        for member in item.units.members:
            if member.reads and member.source in found:
                tensor = found[member.source].clone()
                whole = tensor if member.expert is None else tensor[member.expert]
                whole.index_fill_(member.dim, (indices(member, item.units.count)[gone] + member.offset).flatten(), 0)
                found[member.source] = tensor
    return found


def _strike(mask: Bool[Tensor, "length"], member: Member, item: Cut) -> None:
    keep = staying(item.units, item.keep)
    for start, size in member.runs:
        begin = start + member.offset
        mask[begin : begin + item.units.count * size] &= keep.repeat_interleave(size)


def _shrunk(tensor: Tensor, by_expert: Mapping[int | None, Mapping[int, Tensor]]) -> Tensor:
    """The entries that stay; of a tensor of many experts, those of each."""
    inside = {expert: by_dim for expert, by_dim in by_expert.items() if expert is not None}
    if inside:
        parts = [_selected(part, inside.get(expert, {})) for expert, part in enumerate(tensor)]
        if len({part.shape for part in parts}) > 1:
            raise ValueError("experts that lie in one tensor must keep equally many neurons")
        tensor = torch.stack(parts)
    return _selected(tensor, by_expert.get(None, {}))


def _selected(tensor: Tensor, by_dim: Mapping[int, Tensor]) -> Tensor:
    for dim, mask in by_dim.items():
        tensor = tensor.index_select(dim, mask.nonzero()[:, 0].to(tensor.device))
    return tensor


def _move_up(found: dict[str, Tensor], item: Cut) -> None:
    if not item.units.owned:
        return
    taken = [[found.pop(key) for key in keys] for keys in item.units.owned]
    for place, unit in enumerate(item.keep.tolist()):
        found.update(zip(item.units.owned[place], taken[unit], strict=True))
