"""Features: the published sum of two mean squares, what counts in it, and that it needs the original."""

from __future__ import annotations

import pytest
import torch

from thrifty.tune.distill_features import DistillFeatures


def test_the_loss_is_the_sum_of_both_mean_squares() -> None:
    found, expected = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    summary = torch.nn.functional.mse_loss(found[:, 0], expected[:, 0])
    patches = torch.nn.functional.mse_loss(found[:, 1:], expected[:, 1:])
    costs = DistillFeatures().loss(found, expected, 1)
    assert costs.shape == (3,)
    assert float(costs.mean()) == pytest.approx(float(summary + patches))
    weighed = DistillFeatures(whole=0.5, patches=3.0).loss(found, expected, 1)
    assert float(weighed.mean()) == pytest.approx(float(0.5 * summary + 3 * patches))
    assert float(DistillFeatures().loss(expected, expected, 1).abs().max()) == 0


def test_registers_count_nowhere_and_texts_have_patches_only() -> None:
    found, expected = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(1))
    other = found.clone()
    other[:, 1:4] += 1
    assert torch.equal(DistillFeatures().loss(found, expected, 4), DistillFeatures().loss(other, expected, 4))
    assert not torch.equal(DistillFeatures().loss(found, expected, 3), DistillFeatures().loss(other, expected, 3))
    whole = (found - expected).square().mean((1, 2))
    torch.testing.assert_close(DistillFeatures().loss(found, expected, 0), whole)
    torch.testing.assert_close(DistillFeatures(whole=9.0).loss(found, expected, 0), whole)
    assert DistillFeatures.reference and DistillFeatures().vectors
