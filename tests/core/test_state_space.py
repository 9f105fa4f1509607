"""Scores of single states against the recurrence written out, against removal one by one, and against automatic differentiation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.core.state_space import (
    Scan,
    masked,
    removal_errors,
    state_errors,
    state_votes,
    time_weights,
    votes,
    weighted_scores,
)


def scan(seed: int, rows: int = 2, length: int = 7, channels: int = 3, states: int = 4) -> Scan:
    return Scan(
        draw(seed, rows, length, channels).exp() * 0.3,
        draw(seed + 1, channels, states),
        draw(seed + 2, rows, length, states),
        draw(seed + 3, rows, length, states),
        draw(seed + 4, rows, length, channels),
    )


def plain(s: Scan, a_log: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(y [rows, time, channels], h after each step), with loops and nothing else."""
    rows, length, channels = s.delta.shape
    y, h = torch.zeros(rows, length, channels, dtype=a_log.dtype), []
    for row in range(rows):
        state = torch.zeros_like(a_log)
        for t in range(length):
            decay = torch.exp(-s.delta[row, t, :, None] * a_log.exp())
            state = decay * state + s.delta[row, t, :, None] * s.x[row, t, :, None] * s.b[row, t][None, :]
            h.append(state)
            y[row, t] = state @ s.c[row, t]
    return y, torch.stack(h).reshape(rows, length, *a_log.shape)


def test_the_walk_is_the_recurrence():
    s = scan(0)
    y, h = plain(s, s.a_log)
    torch.testing.assert_close(s.output(), y)
    for step, _, entering in s.walk():
        torch.testing.assert_close(entering, h[:, step - 1] if step else torch.zeros_like(h[:, 0]))


@pytest.mark.parametrize("mode", ["unit_decay", "memoryless"])
def test_removal_errors_are_what_removing_each_alone_costs(mode):
    s = scan(10)
    exact, found = s.output(), removal_errors(s, mode)
    for channel in range(3):
        for place in range(4):
            gone = torch.zeros(3, 4, dtype=torch.bool)
            gone[channel, place] = True
            error = (plain(s, masked(s.a_log, gone, mode))[0] - exact).square().sum()
            assert float(found[channel, place]) == pytest.approx(float(error), rel=1e-9, abs=1e-14)


def test_a_small_change_costs_what_the_gauss_newton_diagonal_says():
    """By automatic differentiation through the recurrence: sum over outputs of (dy / dA_log)^2."""
    s = scan(20)
    jacobian = torch.autograd.functional.jacobian(lambda a_log: plain(s, a_log)[0].flatten(), s.a_log)
    step = 1e-5
    for channel in range(3):
        for place in range(4):
            moved = s.a_log.clone()
            moved[channel, place] += step
            change = (s.output(moved) - s.output()).square().sum() / step**2
            assert float(change) == pytest.approx(float(jacobian[:, channel, place].square().sum()), rel=1e-3)
    # Removal is such a change where it is small: an entry next to the decay that it is given.
    near = replace(s, a_log=torch.full_like(s.a_log, 1e-4))
    slope = torch.autograd.functional.jacobian(lambda a_log: plain(near, a_log)[0].flatten(), near.a_log).square().sum(0)
    torch.testing.assert_close(removal_errors(near, "unit_decay"), near.a_log.square() * slope, rtol=1e-3, atol=0)


@pytest.mark.parametrize("mode", ["unit_decay", "memoryless"])
def test_errors_of_heads_are_what_removing_a_whole_head_costs(mode):
    """Mamba-2: one decay for two channels and all of their states; b and c of each of two groups of channels."""
    base = scan(30, channels=4)
    head = draw(35, 2, 1).repeat_interleave(2, 0).expand(-1, 4)
    own = replace(base, a_log=head, b=draw(36, 2, 7, 2, 4), c=draw(37, 2, 7, 2, 4))
    for group in (0, 1):
        half = slice(2 * group, 2 * group + 2)
        alone = Scan(own.delta[..., half], head[half], own.b[:, :, group], own.c[:, :, group], own.x[..., half])
        torch.testing.assert_close(own.output()[..., half], plain(alone, head[half])[0])
    found = removal_errors(own, mode, channels_per_head=2)
    for index in range(2):
        gone = torch.zeros(4, 4, dtype=torch.bool)
        gone[2 * index : 2 * index + 2] = True
        error = (own.output(masked(own.a_log, gone, mode)) - own.output()).square().sum()
        assert float(found[index, 0]) == pytest.approx(float(error), rel=1e-9)


def test_the_published_scores_are_their_formulas():
    s = scan(40)
    _, h = plain(s, s.a_log)
    entering = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    energy = entering.square().sum(0)
    decay = torch.exp(-s.delta[..., None] * s.a_log.exp()).sum(0)
    weights = torch.tensor([1 / (t + 1) for t in range(7)], dtype=torch.float64)
    expected = ((weights / weights.sum())[:, None, None] * decay.square() * energy).sum(0)
    torch.testing.assert_close(weighted_scores(s), expected)
    ballots = torch.zeros(12, dtype=torch.long)
    for t in range(7):
        order = sorted(range(12), key=lambda i: (float((s.a_log.square() * energy[t]).flatten()[i]), -i))
        ballots[order[:5]] += 1
    assert torch.equal(votes(s, 5).flatten(), ballots)


def test_where_the_state_stands_still_a_vote_is_one_choice():
    """Fast decays and constant inputs: from the second step on the same states enter, and all steps but the first vote alike."""
    s = scan(50, rows=1, length=6)
    still = replace(
        s, delta=torch.ones(1, 6, 3).double(), a_log=6 + s.a_log, b=s.b[:, :1].expand(-1, 6, -1), x=torch.ones(1, 6, 3).double()
    )
    energy = (still.a_log.square() * (still.b[0, 0] ** 2)[None]).flatten()
    assert set((votes(still, 4).flatten() >= 5).nonzero().flatten().tolist()) == set(energy.argsort()[:4].tolist())


@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_scores_do_not_depend_on_the_scale_of_the_states(seed, scale):
    s = scan(seed)
    larger = replace(s, x=scale * s.x)
    torch.testing.assert_close(weighted_scores(larger), scale**2 * weighted_scores(s), rtol=1e-9, atol=0)
    assert torch.equal(votes(larger, 6), votes(s, 6))


@pytest.mark.parametrize("score", [weighted_scores, lambda s: -votes(s, 6), lambda s: removal_errors(s, "unit_decay")])
def test_states_that_hold_next_to_nothing_are_those_that_go(score):
    s = scan(60)
    gone = torch.tensor([1, 3])
    b = s.b.clone()
    b[..., gone] *= 1e-4
    values = score(replace(s, b=b, a_log=1 + 0.1 * s.a_log))
    assert set((values.flatten().argsort()[:6] % 4).tolist()) == {1, 3}


def test_errors_of_places_are_what_removing_one_everywhere_costs():
    s = scan(70)
    found = state_errors(s)
    y = s.output()
    for place in range(4):
        c = s.c.clone()
        c[..., place] = 0
        _, h = plain(s, s.a_log)
        lost = (h[..., place] * s.c[:, :, None, place]).square().sum()
        assert float(found[place]) == pytest.approx(float(lost), rel=1e-9)
        assert float((replace(s, c=c).output() - y).square().sum()) == pytest.approx(float(lost), rel=1e-9)
    silent = replace(s, b=s.b.clone().index_fill_(-1, torch.tensor([2]), 0), a_log=s.a_log + 2)
    assert float(state_errors(silent)[2]) == 0 and int(state_votes(silent, 1).argmax()) == 2


@pytest.mark.parametrize("kind", ["power", "geometric", "linear", "window", "uniform"])
def test_weights_of_time_add_up_to_one_and_do_not_rise(kind):
    weights = time_weights(10, kind)
    assert float(weights.sum()) == pytest.approx(1) and bool((weights.diff() <= 1e-15).all())
