"""One codebook: choices against all distances, entries against means, and what is said of the codes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.core.codebooks.vectors import distortion, gaussian, seeded, uniform_scalar
from thrifty.core.codebooks import kmeans
from thrifty.core.codebooks.additive import Additive
from thrifty.core.codebooks.kmeans import Codebook, fit_codebook, means, nearest, seeds


@pytest.mark.parametrize("weighted", [0, 1, 5])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_the_nearest_entry_is_that_of_all_distances(weighted, chunk, monkeypatch):
    monkeypatch.setattr(kmeans, "CHUNK", chunk)
    vectors, entries = gaussian(1, 40, 5), gaussian(2, 7, 5)
    weights = gaussian(3, 40, weighted).exp() if weighted else None
    squares = (vectors[:, None] - entries).square() * (1 if weights is None else weights[:, None])
    assert torch.equal(nearest(vectors, entries, weights), squares.sum(2).argmin(1))


def test_entries_are_weighted_means_and_unused_ones_move_to_what_is_farthest():
    vectors, weights = gaussian(1, 30, 3), gaussian(2, 30, 3).exp()
    indices = torch.arange(30) % 3
    found = means(vectors, indices, torch.zeros(5, 3, dtype=torch.float64), weights)
    for entry in range(3):
        mine = indices == entry
        expected = (vectors[mine] * weights[mine]).sum(0) / weights[mine].sum(0)
        torch.testing.assert_close(found[entry], expected)
    far = ((vectors - found[indices]).square() * weights).sum(1).sort(descending=True).indices[:2]
    assert torch.equal(found[3:], vectors[far])


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 40), st.sampled_from([None, 1, 4]))
def test_no_step_of_lloyd_raises_the_distortion(seed, entries, count, weighted):
    vectors = gaussian(seed, count, 4)
    weights = None if weighted is None else gaussian(seed + 1, count, weighted).exp()

    def error(found, indices):
        return float(((vectors - found[indices]).square() * (1 if weights is None else weights)).sum())

    found = seeds(vectors, entries, seeded(seed), weights)
    indices = nearest(vectors, found, weights)
    for _ in range(4):
        before = error(found, indices)
        found = means(vectors, indices, found, weights)
        after = error(found, indices)
        indices = nearest(vectors, found, weights)
        assert error(found, indices) <= after * (1 + 1e-9) + 1e-12 <= before * (1 + 2e-9) + 2e-12


@pytest.mark.parametrize("entries", [6, 9])
def test_as_many_entries_as_distinct_vectors_lose_nothing(entries):
    vectors = gaussian(4, 6, 8, torch.float32).repeat(20, 1)
    for seed in range(5):
        codebook = fit_codebook(vectors, entries, seeded(seed))
        torch.testing.assert_close(codebook.decode(codebook.encode(vectors)), vectors, rtol=1e-6, atol=1e-7)


def test_codes_of_entries_are_their_own():
    codebook = fit_codebook(gaussian(5, 500, 4), 32, seeded(0))
    codes = torch.arange(32)[:, None]
    assert torch.equal(codebook.encode(codebook.decode(codes)), codes)


def test_k_means_beats_uniform_levels_and_random_entries_and_not_the_bound():
    """A Gaussian source cannot be held with less than 2^(-2R) of its variance lost at R bits a value."""
    vectors = gaussian(6, 20_000, 2)
    codebook = fit_codebook(vectors, 2**6, seeded(0))
    found = distortion(vectors, codebook.decode(codebook.encode(vectors)))
    drawn = Codebook(gaussian(7, 2**6, 2))
    assert 2**-6 < found < 0.95 * distortion(vectors, uniform_scalar(vectors, 3))
    assert found < 0.7 * distortion(vectors, drawn.decode(drawn.encode(vectors)))


def test_large_sets_are_sampled_and_lose_hardly_more():
    vectors = gaussian(8, 30_000, 2)
    sampled = fit_codebook(vectors, 16, seeded(0))
    whole = Codebook(seeds(vectors, 16, seeded(0)))
    for _ in range(25):
        whole = Codebook(means(vectors, whole.encode(vectors)[:, 0], whole.entries))
    assert len(vectors) > kmeans.VECTORS_AN_ENTRY * 16
    losses = [distortion(vectors, one.decode(one.encode(vectors))) for one in (sampled, whole)]
    assert losses[0] < 1.05 * losses[1]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_usage_and_entropy_are_those_of_the_shares(codes):
    codebook = Codebook(torch.zeros(10, 2))
    indices = torch.tensor(codes)[:, None]
    shares = [codes.count(code) / len(codes) for code in set(codes)]
    entropy = -sum(share * math.log2(share) for share in shares)
    assert float(codebook.usage(indices)) == pytest.approx(len(shares) / 10)
    assert float(codebook.entropy(indices)) == pytest.approx(entropy, abs=1e-12)
    assert float(codebook.perplexity(indices)) == pytest.approx(2**entropy)
    assert float(codebook.entropy(indices)) <= math.log2(10) + 1e-12
    assert codebook.entropy_bitrate(50, indices) == pytest.approx(50 * entropy, abs=1e-9)


def test_eight_codes_of_ten_bits_75_times_a_second_are_6000_bits():
    quantizer = Additive(torch.zeros(8, 1024, 2))
    assert quantizer.bits == 80
    assert quantizer.bitrate(75) == 6000
    indices = torch.arange(1024)[:, None].expand(-1, 8)
    assert quantizer.entropy_bitrate(75, indices) == pytest.approx(6000)
    assert torch.equal(quantizer.usage(indices), torch.ones(8, dtype=torch.float64))
