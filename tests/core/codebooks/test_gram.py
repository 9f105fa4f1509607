"""Sums of codewords against a Gram matrix: each part against its own solution, and none raising the loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.codebooks.vectors import gaussian, seeded
from thrifty.core.codebooks import gram as module
from thrifty.core.codebooks.gram import Coded, fit_codebooks, fit_scales, search_codes, sweep_codes


def case(seed: int, out: int = 6, groups: int = 4, size: int = 3, stages: int = 2, entries: int = 5):
    width = groups * size
    root = gaussian(seed, width, width) * gaussian(seed + 1, 1, width).exp()
    codes = torch.randint(entries, (out, groups, stages), generator=seeded(seed))
    scale = gaussian(seed + 2, out, 1).exp()
    coded = Coded(codes, gaussian(seed + 3, stages * entries, size).view(stages, entries, size), scale)
    return gaussian(seed + 4, out, width), root.T @ root / width, coded


def losses(weight, gram, coded) -> torch.Tensor:
    error = weight - coded.decode()
    return torch.einsum("ri,ij,rj->r", error, gram, error)


def test_a_matrix_is_its_codewords_times_its_scales_one_by_one():
    _, _, coded = case(1)
    values = coded.decode()
    for row, group, place in product(range(6), range(4), range(3)):
        words = sum(coded.codebooks[stage, coded.codes[row, group, stage], place] for stage in range(2))
        torch.testing.assert_close(values[row, 3 * group + place], words * coded.scale[row, 0])


def test_a_look_up_table_of_inputs_gives_the_product_with_the_dense_matrix():
    """x V^T by tables  T_m[j, k] = <x_j, C_m[k]>  of each group j."""
    _, _, coded = case(2)
    inputs = gaussian(9, 7, 12)
    tables = torch.einsum("njg,mkg->mnjk", inputs.view(7, 4, 3), coded.codebooks)
    out = torch.zeros(7, 6, dtype=torch.float64)
    for stage, group in product(range(2), range(4)):
        out += tables[stage, :, group][:, coded.codes[:, group, stage]]
    torch.testing.assert_close(out * coded.scale.T, inputs @ coded.decode().T, rtol=1e-12, atol=1e-12)


def test_the_search_with_a_full_beam_is_exact_in_each_group():
    """All codes of a group are tried on the loss itself, group after group."""
    weight, gram, coded = case(3, groups=3)
    expected = coded.codes.clone()
    for group in range(3):
        tried = []
        for choice in product(range(5), repeat=2):
            codes = expected.clone()
            codes[:, group] = torch.tensor(choice)
            tried.append((losses(weight, gram, replace(coded, codes=codes)), codes[:, group]))
        best = torch.stack([loss for loss, _ in tried]).argmin(0)
        expected[:, group] = torch.stack([codes for _, codes in tried])[best, torch.arange(6)]
    before = coded.codes.clone()
    assert torch.equal(search_codes(weight, gram, coded, 25).codes, expected)
    assert torch.equal(coded.codes, before)


def test_the_sweep_fixes_each_group_as_if_those_to_come_were_free():
    """With a full beam: all sums of a group are tried, what the loss can still be brought down to by the later groups being worked out by
    least squares."""
    weight, gram, coded = case(7, out=4, groups=3)
    found = sweep_codes(weight, gram, coded, 25)
    assert found is not None
    order = gram.diagonal().view(3, 3).sum(1).argsort(descending=True).tolist()
    values = found.decode()
    for row in range(4):
        fixed: list[int] = []
        for group in order:
            here = list(range(3 * group, 3 * group + 3))
            later = [column for column in range(9) if column not in fixed + here]
            reached = {}
            for choice in product(range(5), repeat=2):
                error = weight[row] - values[row]
                words = coded.codebooks[0, choice[0]] + coded.codebooks[1, choice[1]]
                error[here] = weight[row, here] - words * coded.scale[row]
                now = fixed + here
                free = gram[now][:, now]
                if later:
                    free = free - gram[now][:, later] @ torch.linalg.solve(gram[later][:, later], gram[later][:, now])
                reached[choice] = float(error[now] @ free @ error[now])
            best = min(reached, key=reached.__getitem__)
            assert tuple(found.codes[row, group].tolist()) == best
            fixed += here


def test_a_matrix_without_a_factor_is_not_swept():
    weight, gram, coded = case(8)
    gram[0, 0] = -1.0
    assert sweep_codes(weight, gram, coded, 2) is None


@pytest.mark.parametrize("together", [1, 6, 128])
def test_blocks_of_groups_change_nothing(together, monkeypatch):
    weight, gram, coded = case(4, groups=7)
    expected = search_codes(weight, gram, coded, 3).codes
    monkeypatch.setattr(module, "TOGETHER", together)
    assert torch.equal(search_codes(weight, gram, coded, 3).codes, expected)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_no_part_raises_the_loss(seed, stages, entries, beam, steps):
    weight, gram, coded = case(seed, stages=stages, entries=entries)
    found = [coded]
    found.append(fit_codebooks(weight, gram, found[-1], steps))
    found.append(replace(found[-1], scale=fit_scales(weight, gram, found[-1])))
    found.append(search_codes(weight, gram, found[-1], beam))
    values = [losses(weight, gram, one) for one in found]
    assert float(values[1].sum()) <= float(values[0].sum()) * (1 + 1e-9)
    for before, after in pairwise(values[1:]):
        assert bool((after <= before * (1 + 1e-8) + 1e-9).all())
    assert bool((found[2].scale > 0).all())


def test_the_codebooks_are_the_solution_of_least_squares():
    """With the root of the Gram matrix the loss is a sum of squares, linear in the entries."""
    weight, gram, coded = case(5, out=20)
    root = torch.linalg.cholesky(gram)
    unit = torch.eye(coded.codebooks.numel(), dtype=torch.float64).view(-1, *coded.codebooks.shape)
    columns = [(replace(coded, codebooks=one).decode() @ root).flatten() for one in unit]
    wanted = (weight @ root).flatten()
    solution = torch.linalg.lstsq(torch.stack(columns, 1), wanted[:, None], driver="gelsd").solution
    least = float((wanted[:, None] - torch.stack(columns, 1) @ solution).square().sum())
    found = fit_codebooks(weight, gram, coded, 200)
    assert float(losses(weight, gram, found).sum()) == pytest.approx(least, rel=1e-4)
    few = fit_codebooks(weight, gram, coded, 12)
    assert float(losses(weight, gram, few).sum()) < 1.2 * least


def test_the_scales_are_the_solution_of_least_squares():
    weight, gram, coded = case(6)
    words = replace(coded, scale=torch.ones(6, 1, dtype=torch.float64)).decode()
    root = torch.linalg.cholesky(gram)
    for row, scale in enumerate(fit_scales(weight, gram, coded)[:, 0]):
        best = float(torch.linalg.lstsq((words[row] @ root)[:, None], (weight[row] @ root)[:, None]).solution)
        assert float(scale) == pytest.approx(best if best > 0 else float(coded.scale[row]), rel=1e-9)
