"""Sums of codewords: the search against all sums, the codebooks against least squares, and what residual quantizers promise."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.codebooks.vectors import correlated, distortion, gaussian, seeded, uniform_scalar
from thrifty.core.codebooks import additive
from thrifty.core.codebooks.additive import (
    Additive,
    beam_search,
    beam_search_in,
    fit_additive,
    fit_residual,
    least_squares,
    sum_codewords,
)
from thrifty.core.codebooks.kmeans import fit_codebook


def forms(vectors, codebooks, indices, metric=None) -> torch.Tensor:
    rest = vectors - sum_codewords(codebooks, indices)
    return ((rest if metric is None else rest @ metric) * rest).sum(1)


def best(vectors, codebooks, metric=None) -> torch.Tensor:
    """The least form of each vector over all sums."""
    choices = product(range(codebooks.shape[1]), repeat=codebooks.shape[0])
    every = [forms(vectors, codebooks, torch.tensor(choice).expand(len(vectors), -1), metric) for choice in choices]
    return torch.stack(every).amin(0)


def positive(seed: int, width: int) -> torch.Tensor:
    root = gaussian(seed, width, width)
    return root @ root.T + 0.1 * torch.eye(width, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(("stages", "entries"), [(1, 7), (2, 5), (3, 4)])
def test_a_beam_that_holds_all_sums_finds_the_best(stages, entries, chunk, monkeypatch):
    monkeypatch.setattr(additive, "CHUNK", chunk)
    vectors, codebooks, metric = gaussian(1, 50, 3), gaussian(2, stages * entries, 3).view(stages, entries, 3), positive(3, 3)
    beam = entries**stages
    torch.testing.assert_close(forms(vectors, codebooks, beam_search(vectors, codebooks, beam)), best(vectors, codebooks))
    found = beam_search_in(metric, vectors @ metric, codebooks, beam)
    torch.testing.assert_close(forms(vectors, codebooks, found, metric), best(vectors, codebooks, metric))


def test_a_beam_of_one_takes_what_is_nearest_to_the_rest_each_time():
    vectors, codebooks = gaussian(4, 60, 4), gaussian(5, 24, 4).view(3, 8, 4)
    rest, expected = vectors, []
    for codebook in codebooks:
        expected.append(torch.cdist(rest, codebook).argmin(1))
        rest = rest - codebook[expected[-1]]
    assert torch.equal(Additive(codebooks).encode(vectors), torch.stack(expected, 1))


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.integers(1, 12))
def test_searching_on_from_indices_is_never_worse(seed, stages, entries, beam):
    vectors, codebooks, metric = gaussian(seed, 10, 3), gaussian(seed + 1, stages * entries, 3).view(stages, entries, 3), positive(seed, 3)
    start = torch.randint(entries, (10, stages), generator=seeded(seed))
    rest = vectors - sum_codewords(codebooks, start)
    found = beam_search_in(metric, rest @ metric, codebooks, beam, start)
    before, after = forms(vectors, codebooks, start, metric), forms(vectors, codebooks, found, metric)
    assert bool((after <= before * (1 + 1e-9) + 1e-9).all())
    assert torch.equal(beam_search(vectors, codebooks, beam, start), beam_search_in(torch.eye(3).double(), rest, codebooks, beam, start))


def test_a_wider_beam_loses_less():
    vectors = gaussian(6, 2000, 8)
    codebooks = fit_residual(vectors, 4, 16, seeded(0)).codebooks
    losses = [float(forms(vectors, codebooks, beam_search(vectors, codebooks, beam)).sum()) for beam in (1, 2, 4, 16)]
    assert all(after < before for before, after in pairwise(losses))


def test_the_codebooks_are_the_solution_of_least_squares():
    vectors, codebooks = gaussian(7, 300, 4), gaussian(8, 15, 4).view(3, 5, 4)
    indices = torch.randint(4, (300, 3), generator=seeded(1))  # the last entries are never named
    names = torch.nn.functional.one_hot(indices, 5).double().flatten(1)
    solution = torch.linalg.lstsq(names, vectors, driver="gelsd").solution
    found = least_squares(vectors, indices, codebooks)
    expected = float((vectors - names @ solution).square().sum())
    assert float(forms(vectors, found, indices).sum()) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(found[:, 4], codebooks[:, 4])


def test_no_round_of_fitting_raises_the_error_and_the_result_beats_the_residual_quantizer():
    vectors = gaussian(9, 2000, 8)
    fitted = [fit_additive(vectors, 3, 16, seeded(0), rounds=rounds) for rounds in (0, 1, 2, 5)]
    losses = [float(forms(vectors, one.codebooks, one.encode(vectors)).sum()) for one in fitted]
    assert all(after <= before * 1.001 for before, after in pairwise(losses))
    residual = fit_residual(vectors, 3, 16, seeded(0))
    assert losses[-1] < 0.9 * float(forms(vectors, residual.codebooks, residual.encode(vectors)).sum())


def test_each_codebook_of_a_residual_quantizer_leaves_less_and_sees_what_the_ones_before_left():
    vectors = gaussian(10, 1500, 6)
    found = fit_residual(vectors, 5, 8, seeded(0))
    indices, rest, energies = found.encode(vectors), vectors, [float(vectors.square().sum())]
    for stage in range(5):
        rest = rest - found.codebooks[stage][indices[:, stage]]
        energies.append(float(rest.square().sum()))
        partial = Additive(found.codebooks[: stage + 1])
        torch.testing.assert_close(rest, vectors - partial.decode(indices[:, : stage + 1]))
        assert torch.equal(partial.encode(vectors), indices[:, : stage + 1])
    assert all(after <= before for before, after in pairwise(energies))


def test_one_codebook_is_the_plain_one():
    vectors = gaussian(11, 400, 3)
    one, plain = fit_residual(vectors, 1, 8, seeded(3)), fit_codebook(vectors, 8, seeded(3))
    assert torch.equal(one.codebooks[0], plain.entries)
    assert torch.equal(one.encode(vectors), plain.encode(vectors))
    assert torch.equal(one.decode(one.encode(vectors)), plain.decode(plain.encode(vectors)))


def test_residual_codes_of_correlated_values_lose_less_than_uniform_levels_of_the_same_bits():
    vectors = correlated(12, 6000, 4)
    found = fit_residual(vectors, 2, 2**4, seeded(0))
    assert found.bits == 2 * 4
    assert distortion(vectors, found.decode(found.encode(vectors))) < 0.7 * distortion(vectors, uniform_scalar(vectors, 2))
