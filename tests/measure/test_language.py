"""Scores of language models against float64 formulas, exact token counts, and windows against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.measure import language
from thrifty.measure.language import (
    IGNORED,
    WindowScores,
    causal_targets,
    score_one,
    score_windows,
    summarise,
    summarise_one,
)


def _logits(seed: int, windows: int = 6, length: int = 9, vocabulary: int = 17, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(windows, length, vocabulary, generator=torch.Generator().manual_seed(seed))


def _tokens(seed: int, windows: int = 6, length: int = 9, vocabulary: int = 17) -> Tensor:
    return torch.randint(vocabulary, (windows, length), generator=torch.Generator().manual_seed(seed))


def _oracle(before: Tensor, after: Tensor, targets: Tensor) -> WindowScores:
    """The definitions, token by token, in float64."""
    rows = []
    for x, y, row in zip(before.double(), after.double(), targets, strict=True):
        sums = [0.0] * 9
        for p, q, target in zip(x.log_softmax(-1), y.log_softmax(-1), row.tolist(), strict=True):
            if target == IGNORED:
                continue
            one, other = int(p.argmax()), int(q.argmax())
            kl = float((p.exp() * (p - q)).sum())
            right, still = one == target, other == target
            figures = (1, -p[target], -q[target], kl, one == other, right, still, right and not still, still and not right)
            sums = [total + float(figure) for total, figure in zip(sums, figures, strict=True)]
        rows.append(sums)
    return WindowScores(*torch.tensor(rows, dtype=torch.float64).T)


def _assert_same(found: WindowScores, expected: WindowScores, tolerance: float = 2e-6) -> None:
    for name, value in vars(expected).items():
        torch.testing.assert_close(
            getattr(found, name), value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_scores_are_those_of_the_definitions():
    before, tokens = _logits(0), _tokens(1)
    after = before + 0.7 * _logits(2)
    targets = causal_targets(tokens)
    _assert_same(score_windows(before, after, targets), _oracle(before, after, targets))


def test_chunks_change_nothing(monkeypatch):
    before, after, targets = _logits(0), _logits(1), causal_targets(_tokens(2))
    whole = score_windows(before, after, targets)
    monkeypatch.setattr(language, "_ELEMENTS", 17 * 5)
    _assert_same(score_windows(before, after, targets), whole, 1e-12)


def test_small_divergences_are_exact():
    before = _logits(0, vocabulary=500, scale=4.0)
    after = before + 1e-3 * _logits(1, vocabulary=500)
    targets = causal_targets(_tokens(2))
    found, expected = score_windows(before, after, targets), _oracle(before, after, targets)
    assert float(expected.kl.sum() / expected.tokens.sum()) < 5e-6
    torch.testing.assert_close(found.kl, expected.kl, rtol=0.01, atol=0.0)


def test_a_constant_added_to_all_logits_changes_nothing():
    before, targets = _logits(0), causal_targets(_tokens(2))
    found = score_windows(before, before + 64.0, targets)
    assert float(found.kl.abs().max()) < 1e-5
    torch.testing.assert_close(found.nll_before, found.nll_after, rtol=1e-5, atol=1e-5)


def test_a_model_against_itself_loses_nothing():
    scores = score_one(_logits(0), causal_targets(_tokens(1)))
    found = summarise(scores)
    assert found["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["top1_agreement"] == 1.0
    assert found["flips"] == {"right_to_wrong": 0, "wrong_to_right": 0}
    assert found["perplexity"]["before"] == found["perplexity"]["after"]
    assert found["perplexity_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    alone = summarise_one(scores)
    assert alone["perplexity"] == found["perplexity"]["before"]
    assert alone["tokens"] == found["tokens"] == 6 * 8


def test_uniform_logits_have_the_vocabulary_as_perplexity():
    found = summarise(score_one(torch.zeros(4, 9, 17), causal_targets(_tokens(1, windows=4))))
    assert found["perplexity"]["before"]["value"] == pytest.approx(17.0)


def test_masked_out_logits_are_no_trouble_when_both_models_mask_them():
    before, after, tokens = _logits(0), _logits(1), _tokens(2) % 16
    before[..., 16], after[..., 16] = -math.inf, -math.inf
    found = score_windows(before, after, causal_targets(tokens))
    expected = score_windows(before[..., :16], after[..., :16], causal_targets(tokens))
    _assert_same(found, expected)
    before[..., 16] = 0.0
    assert bool(score_windows(before, after, causal_targets(tokens)).kl.isinf().all())


def test_bfloat16_logits_are_scored_in_float32():
    before, after = _logits(0).bfloat16(), _logits(1).bfloat16()
    targets = causal_targets(_tokens(2))
    _assert_same(score_windows(before, after, targets), score_windows(before.float(), after.float(), targets), 1e-12)


def test_flips_count_both_directions_apart():
    tokens = torch.zeros(1, 4, dtype=torch.long)
    before = torch.tensor([[[2.0, 1, 0], [2, 1, 0], [0, 1, 2], [0, 0, 0]]])
    after = torch.tensor([[[2.0, 1, 0], [1, 2, 0], [3, 1, 2], [0, 0, 0]]])
    found = summarise(score_windows(before, after, causal_targets(tokens)))
    assert found["flips"] == {"right_to_wrong": 1, "wrong_to_right": 1}
    assert found["top1_agreement"] == pytest.approx(1 / 3)


def test_batches_merge_to_the_whole_in_order():
    before, after, targets = _logits(0), _logits(1), causal_targets(_tokens(2))
    whole = score_windows(before, after, targets)
    parts = [score_windows(before[i : i + 2], after[i : i + 2], targets[i : i + 2]) for i in (0, 2, 4)]
    _assert_same(WindowScores.joined(parts), whole, 1e-12)
    _assert_same(WindowScores.empty().merge(parts[0]).merge(parts[1].merge(parts[2])), whole, 1e-12)
    assert WindowScores.joined([]).tokens.numel() == 0


def test_the_summary_is_paired_and_its_quality_rows_agree_with_it():
    before = _logits(0, windows=40)
    scores = score_windows(before, before + 0.3 * _logits(1, windows=40), causal_targets(_tokens(2, windows=40)))
    found = summarise(scores)
    rows = {row["metric"]: row for row in found["quality"]}
    perplexity = found["perplexity"]
    assert rows["perplexity"]["difference"] == pytest.approx(perplexity["after"]["value"] - perplexity["before"]["value"])
    width = rows["perplexity"]["high"] - rows["perplexity"]["low"]
    assert width < 0.5 * (perplexity["after"]["high"] - perplexity["after"]["low"])
    assert found["perplexity_ratio"]["value"] == pytest.approx(perplexity["after"]["value"] / perplexity["before"]["value"])
    flips = found["flips"]
    moved = (flips["wrong_to_right"] - flips["right_to_wrong"]) / found["tokens"]
    assert rows["next_token_accuracy"]["difference"] == pytest.approx(moved)
    assert rows["kl"]["after"] == found["kl"]["value"] > 0
    assert summarise(scores) == found


# -- what is scored ----------------------------------------------------------------------------------------------------


def test_a_window_of_t_tokens_scores_t_minus_one():
    targets = causal_targets(_tokens(0))
    assert ((targets != IGNORED).sum(-1) == 8).all()
    assert torch.equal(targets[:, :-1], _tokens(0)[:, 1:])


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_neither_scored_nor_used_as_context(left: bool):
    tokens = _tokens(0)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0 if left else 1
    mask[0, 6:] = 1 if left else 0
    targets = causal_targets(tokens, mask)
    real = int(mask[0].sum())
    assert int((targets[0] != IGNORED).sum()) == real - 1
    assert int((targets[1] != IGNORED).sum()) == 8


def test_bad_shapes_and_tokens_are_refused():
    before, targets = _logits(0), causal_targets(_tokens(1))
    with pytest.raises(InputError, match="same vocabulary"):
        score_windows(before, before[..., :-1], targets)
    with pytest.raises(InputError, match="do not fit"):
        score_windows(before, before, targets[:, :-1])
    with pytest.raises(InputError, match="tokenizer"):
        score_windows(before, before, targets.masked_fill(targets == int(targets[0, 0]), 17))
    with pytest.raises(InputError, match="no token was scored"):
        summarise(WindowScores.empty())


def test_a_broken_model_is_seen_and_not_averaged_away():
    before, after = _logits(0), _logits(1)
    after[2, 3] = math.nan
    found = score_windows(before, after, causal_targets(_tokens(2)))
    assert found.kl.isnan().tolist() == found.nll_after.isnan().tolist() == [False, False, True, False, False, False]
    assert summarise(found)["perplexity"]["after"]["low"] is None
