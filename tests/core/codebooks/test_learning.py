"""Training aids: the gradient past a choice, averages against a step of Lloyd's, and codes that come back to life."""

from __future__ import annotations

import torch

from tests.core.codebooks.vectors import gaussian, seeded
from thrifty.core.codebooks.kmeans import Codebook, means, nearest
from thrifty.core.codebooks.learning import Averages, straight_through


def test_the_gradient_goes_past_the_choice_and_not_into_the_codebook():
    vectors, entries = gaussian(1, 40, 4).requires_grad_(), gaussian(2, 8, 4).requires_grad_()
    quantized = entries[nearest(vectors.detach(), entries.detach())]
    out = straight_through(vectors, quantized)
    torch.testing.assert_close(out, quantized)
    slopes = torch.autograd.grad(out.sum(), (vectors, entries), allow_unused=True)
    assert torch.equal(slopes[0], torch.ones_like(vectors)) and slopes[1] is None


def test_without_memory_a_batch_is_a_step_of_lloyd():
    vectors, entries = gaussian(3, 400, 4), gaussian(4, 8, 4) / 2
    indices = nearest(vectors, entries)
    found = Averages.start(entries, 400).update(vectors, indices, decay=0.0).entries(smoothing=1e-9)
    assert len(indices.unique()) == 8
    torch.testing.assert_close(found, means(vectors, indices, entries), rtol=1e-8, atol=1e-8)


def test_averages_follow_the_formula():
    entries = gaussian(5, 4, 3)
    now = Averages.start(entries, 100)
    torch.testing.assert_close(now.entries(), entries)
    count, total = torch.full((4,), 25.0, dtype=torch.float64), 25 * entries
    for step in range(3):
        vectors = gaussian(6 + step, 100, 3)
        indices = nearest(vectors, now.entries())
        now = now.update(vectors, indices, 0.99)
        for entry in range(4):
            mine = vectors[indices == entry]
            count[entry] = 0.99 * count[entry] + 0.01 * len(mine)
            total[entry] = 0.99 * total[entry] + 0.01 * mine.sum(0)
        smoothed = (count + 1e-5) / (count.sum() + 4e-5) * count.sum()
        torch.testing.assert_close(now.entries(), total / smoothed[:, None])


def train(revived: bool) -> float:
    """Usage after 40 batches, half of the entries having started far away."""
    entries = gaussian(7, 32, 4)
    entries[16:] += 100
    now = Averages.start(entries, 512)
    for step in range(40):
        vectors = gaussian(100 + step, 512, 4)
        now = now.update(vectors, nearest(vectors, now.entries()), 0.9)
        if revived:
            now = now.revive(vectors, 2.0, seeded(step))
    seen = gaussian(99, 50 * 32, 4)
    codebook = Codebook(now.entries())
    return float(codebook.usage(codebook.encode(seen)))


def test_dead_codes_come_back_to_life():
    assert train(revived=False) <= 0.5
    assert train(revived=True) > 0.9


def test_nothing_is_dead_at_the_start_and_no_two_codes_get_the_same_vector():
    entries, vectors = gaussian(8, 16, 4), gaussian(9, 128, 4)
    now = Averages.start(entries, 128)
    assert torch.equal(now.revive(vectors, 2.0, seeded(0)).entries(), now.entries())
    revived = now.revive(vectors, 1e9, seeded(0))
    assert len(revived.entries().unique(dim=0)) == 16
    torch.testing.assert_close(revived.count, now.count)
    assert all(bool(((vectors - entry).abs().amax(1) < 1e-5).any()) for entry in revived.entries(0.0))
