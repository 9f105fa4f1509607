"""Outputs of models without next-token logits against the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from thrifty.base.errors import InputError
from thrifty.measure.hidden import RowScores, score_classes, score_hidden, summarise_rows


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_relative_error_of_a_scaled_output_is_known():
    before = _random(12, 5, 8)
    found = summarise_rows(score_hidden(before, before * 1.1))
    assert found["relative_error"]["value"] == pytest.approx(0.01, rel=1e-5)
    assert found["relative_error"]["low"] == pytest.approx(found["relative_error"]["high"], rel=1e-4)
    assert [row["metric"] for row in found["quality"]] == ["output_relative_error"]


def test_relative_error_is_the_ratio_of_the_sums():
    before, after = _random(12, 5, 8), _random(12, 5, 8, seed=1)
    found = summarise_rows(score_hidden(before, after))
    expected = float((before - after).double().norm() ** 2 / before.double().norm() ** 2)
    assert found["relative_error"]["value"] == pytest.approx(expected, rel=1e-6)
    assert found["relative_error"]["low"] < expected < found["relative_error"]["high"]


def test_padding_is_left_out():
    before, mask = _random(4, 6, 8), torch.ones(4, 6, dtype=torch.long)
    mask[:, 4:] = 0
    after = before.clone()
    after[:, 4:] = 99
    assert summarise_rows(score_hidden(before, after, mask))["relative_error"]["value"] == 0.0
    assert summarise_rows(score_hidden(before, after))["relative_error"]["value"] > 1


def test_an_all_zero_output_has_no_error():
    assert summarise_rows(score_hidden(torch.zeros(3, 4), torch.zeros(3, 4)))["relative_error"]["value"] == 0.0


def test_classifiers_get_divergence_agreement_and_accuracy():
    before = _random(50, 7)
    after = before + 0.5 * _random(50, 7, seed=1)
    labels = torch.randint(7, (50,), generator=torch.Generator().manual_seed(2))
    found = summarise_rows(score_classes(before, after, labels))
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    assert found["kl"]["value"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert found["top1_agreement"] == pytest.approx(float((before.argmax(-1) == after.argmax(-1)).double().mean()))
    assert found["accuracy"]["after"]["value"] == pytest.approx(float((after.argmax(-1) == labels).double().mean()))
    rows = {row["metric"]: row for row in found["quality"]}
    assert set(rows) == {"output_relative_error", "kl", "top1_agreement", "accuracy"}
    change = found["accuracy"]["after"]["value"] - found["accuracy"]["before"]["value"]
    assert rows["accuracy"]["difference"] == pytest.approx(change)


def test_without_labels_there_is_no_accuracy():
    found = summarise_rows(score_classes(_random(9, 3), _random(9, 3, seed=1)))
    assert "accuracy" not in found and "kl" in found


def test_batches_join_to_the_whole():
    before, after = _random(10, 3), _random(10, 3, seed=1)
    whole = score_classes(before, after)
    parts = RowScores.joined([score_classes(before[:4], after[:4]), score_classes(before[4:], after[4:])])
    torch.testing.assert_close(parts.kl, whole.kl)
    assert summarise_rows(parts) == summarise_rows(whole)


def test_bad_shapes_and_labels_are_refused():
    with pytest.raises(InputError, match="different shapes"):
        score_hidden(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="no row"):
        summarise_rows(RowScores.joined([]))
    with pytest.raises(InputError):
        score_classes(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(InputError, match="no class"):
        score_classes(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, -100]))


def test_a_broken_output_shows():
    before, after = _random(4, 3), _random(4, 3, seed=1)
    after[1] = math.nan
    assert math.isnan(summarise_rows(score_hidden(before, after))["relative_error"]["value"])
