"""What a token costs by the original's word, and by the text's."""

from __future__ import annotations

import torch

from thrifty.core.divergence import jensen_shannon
from thrifty.tune.distill import Distill
from thrifty.tune.next_token import NextToken


def test_distillation_is_the_divergence_whatever_the_text_says() -> None:
    found, expected = torch.randn(2, 9, 13, generator=torch.Generator().manual_seed(0))
    for beta in (0.0, 0.3, 1.0):
        costs = Distill(beta=beta).loss(found, expected, torch.zeros(9, dtype=torch.long))
        assert torch.equal(costs, jensen_shannon(expected, found, beta))
    assert Distill().beta == 0.5


def test_what_is_predicted_is_compared_row_by_row() -> None:
    found, expected = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    costs = Distill().prediction_loss(found, expected)
    torch.testing.assert_close(costs, torch.stack([torch.nn.functional.mse_loss(*pair) for pair in zip(found, expected, strict=True)]))
    assert float(Distill().prediction_loss(expected, expected).abs().max()) == 0


def test_text_is_learnt_by_the_next_token_alone() -> None:
    found = torch.randn(9, 13, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(9)
    costs = NextToken().loss(found, None, targets)
    torch.testing.assert_close(costs, -found.log_softmax(-1)[torch.arange(9), targets])
    assert not NextToken.reference and Distill.reference
