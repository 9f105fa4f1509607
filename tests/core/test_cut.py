"""Cutting against plain indexing, one entry at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.anatomy import Member, Space, Units
from thrifty.base.records import Cut
from thrifty.core import cut as module
from thrifty.core.cut import cut, energies, indices, unit_energies, unit_values, zeroed
from thrifty.core.moments import Moments


def units(count: int, *members: Member, owned: tuple[tuple[str, ...], ...] = ()) -> Units:
    return Units(Space("hidden", count), "neurons", count, members, "hidden", owned)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 4), st.booleans(), st.data())
def test_what_stays_is_what_no_removed_unit_owns(count, size, before, twice, data):
    keep = torch.tensor(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
    runs = ((before, size), (before + count * size, size)) if twice else ((before, size),)
    member = Member("w", 1, runs)
    tensor = torch.arange(2.0 * (before + (1 + twice) * count * size + 2)).reshape(2, -1)
    owners = dict.fromkeys(range(tensor.shape[1]))
    for unit, entries in enumerate(indices(member, count).tolist()):
        owners.update(dict.fromkeys(entries, unit))
    stays = [entry for entry, unit in owners.items() if unit is None or unit in keep.tolist()]
    item = Cut(units(count, member), keep)
    assert torch.equal(cut({"w": tensor}, [item])["w"], tensor[:, stays])
    for unit in range(count):
        mine = [entry for entry, owner in owners.items() if owner == unit]
        assert torch.equal(unit_values(tensor, member, count)[unit].sort().values, tensor[:, mine].flatten().sort().values)
        assert float(unit_energies(tensor, member, count)[unit]) == float(tensor[:, mine].square().sum())


@given(st.data())
def test_only_what_reads_is_switched_off(data):
    keep = torch.tensor(sorted(data.draw(st.sets(st.integers(0, 4), min_size=1))))
    item = Cut(units(5, Member("writes", 0, ((0, 1),)), Member("reads", 1, ((0, 1),), reads=True)), keep)
    tensors = {"writes": torch.ones(5, 3), "reads": torch.ones(3, 5), "other": torch.ones(2)}
    found = zeroed(tensors, [item])
    assert found["writes"] is tensors["writes"]
    assert found["other"] is tensors["other"]
    assert found["reads"].sum() == 3 * len(keep)
    assert tensors["reads"].sum() == 15
    assert torch.equal(found["reads"][:, keep], torch.ones(3, len(keep)))


def test_experts_in_one_tensor_keep_their_own_neurons():
    tensor = torch.arange(24.0).reshape(2, 4, 3)  # two experts, two neurons each in two halves
    cuts = [
        Cut(units(2, Member("w", 0, ((0, 1),), expert=expert, offset=offset)), torch.tensor([stays]))
        for expert, stays in ((0, 1), (1, 0))
        for offset in (0, 2)
    ]
    assert torch.equal(cut({"w": tensor}, cuts)["w"], torch.stack([tensor[0][[1, 3]], tensor[1][[0, 2]]]))
    for item in cuts:
        (member,) = item.units.members
        assert torch.equal(unit_energies(tensor, member, 2), unit_values(tensor, member, 2).square().sum(1))
    assert torch.equal(unit_energies(tensor[0, 0], Member("b", 0, ((0, 1),), offset=1), 2), tensor[0, 0, 1:].square())
    with pytest.raises(ValueError, match="equally many"):
        cut({"w": tensor}, cuts[:1])


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 17])
def test_energies_are_the_same_in_whatever_pieces_they_are_summed(monkeypatch, piece):
    monkeypatch.setattr(module, "PIECE", piece)
    tensor = torch.randint(-9, 9, (6, 4, 3)).to(torch.float32)  # whole numbers, so that no order of sums rounds
    for dim in range(3):
        member = Member("w", dim, ((0, 1),))
        count = tensor.shape[dim]
        assert torch.equal(unit_energies(tensor, member, count), unit_values(tensor, member, count).square().sum(1))
    matrix, rows = tensor.flatten(1), torch.tensor([1.0, 0, 0, 1, 1, 0])
    whole, weighed = energies(matrix, rows)
    assert torch.equal(whole, matrix.square().sum(0))
    assert torch.equal(weighed, matrix[rows.bool()].square().sum(0))


def test_what_a_unit_owns_alone_moves_up():
    tensors = {f"{unit}.w": torch.full((1,), float(unit)) for unit in range(4)} | {"router": torch.arange(4.0)[:, None]}
    item = Cut(units(4, Member("router", 0, ((0, 1),)), owned=tuple((f"{unit}.w",) for unit in range(4))), torch.tensor([1, 3]))
    found = cut(tensors, [item])
    assert {key: float(value.sum()) for key, value in found.items()} == {"0.w": 1.0, "1.w": 3.0, "router": 4.0}


@given(st.integers(1, 5), st.integers(0, 20), st.integers(0, 20))
def test_moments_of_parts_are_those_of_the_whole(width, first, second):
    rows = torch.randn(first + second + 1, width, generator=torch.Generator().manual_seed(first * 31 + second))
    joined = Moments.of(rows[:first]).merge(Moments.of(rows[first:]))
    assert joined.tokens == len(rows)
    assert torch.allclose(joined.mean, rows.mean(0), atol=1e-6)
    assert torch.allclose(joined.variance, rows.var(0, unbiased=False), atol=1e-6)
    assert torch.allclose(joined.square, rows.square().mean(0), atol=1e-6)
