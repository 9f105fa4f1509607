"""The compiled sums over rows of bfloat16 against double precision and against their twin in plain torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.events import listening
from thrifty.core import fast_gram
from thrifty.core.statistics import Statistics

pytestmark = pytest.mark.skipif(fast_gram._calls() is None, reason="this machine has no products of bfloat16, or cannot compile them")

original = Statistics._in_plain_torch
"""The twin."""

FIELDS = ("tokens", "gram_sum", "absolute_sum", "value_sum", "low", "high")


@pytest.fixture(autouse=True)
def _it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library takes does not come from its twin."""
    monkeypatch.setattr(Statistics, "_in_plain_torch", lambda rows: pytest.fail("plain torch computed what the library takes"))


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@given(st.integers(0, 10_000), st.integers(1, 700), st.integers(1, 200))
def test_whole_numbers_are_added_up_exactly(seed, count, width):
    rows = torch.randint(-9, 10, (count, width), generator=torch.Generator().manual_seed(seed)).float()
    found, expected = Statistics.of(rows.bfloat16()), original(rows)
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert one == other if name == "tokens" else one.dtype == torch.float32 and torch.equal(one, other), name


@pytest.mark.parametrize("shape", [(1, 1), (2, 47), (255, 48), (257, 49), (1000, 144), (513, 300)])
def test_products_are_exact_and_rounded_only_when_they_are_added(shape):
    rows = draw(sum(shape), *shape) * torch.logspace(-3, 3, shape[1]).bfloat16()
    found, exact = Statistics.of(rows), rows.double()
    norms = exact.square().sum(0).sqrt()
    assert float(((found.gram_sum.double() - exact.T @ exact) / (norms[:, None] * norms)).abs().max()) < 2e-6
    assert torch.equal(found.gram_sum, found.gram_sum.T)
    twin = original(rows)
    assert torch.equal(found.low, twin.low) and torch.equal(found.high, twin.high)
    torch.testing.assert_close(found.absolute_sum, twin.absolute_sum, rtol=1e-5, atol=0)
    assert bool(((found.value_sum - twin.value_sum).abs() <= 1e-5 * twin.absolute_sum).all())


def test_threads_share_the_work_and_change_nothing(monkeypatch):
    rows = draw(1, 700, 500)
    alone, threads = fast_gram.sums(rows), torch.get_num_threads()
    monkeypatch.setattr(fast_gram, "SHARE", 1)
    try:
        for count in (2, 3, 8, 64):
            torch.set_num_threads(count)
            assert all(torch.equal(one, other) for one, other in zip(fast_gram.sums(rows), alone, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_rows_lie_as_they_like():
    rows = draw(2, 64, 96)
    expected = fast_gram.sums(rows).gram_sum
    assert torch.equal(fast_gram.sums(rows.T.contiguous().T).gram_sum, expected)
    assert torch.equal(fast_gram.sums(torch.cat([rows, rows], 1)[:, :96]).gram_sum, expected)
    assert torch.equal(Statistics.of(rows.reshape(2, 32, 96)).gram_sum, expected)
    assert torch.equal(fast_gram.sums(rows.clone().requires_grad_()).gram_sum, expected)


def test_what_is_no_number_stays_none_and_stays_in_its_column():
    rows = draw(3, 9, 60)
    rows[4, 5], rows[2, 50] = float("nan"), float("inf")
    found, twin = Statistics.of(rows), original(rows)
    for name in ("low", "high", "absolute_sum", "gram_sum"):
        torch.testing.assert_close(getattr(found, name), getattr(twin, name), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_other_types_and_places_go_through_plain_torch():
    assert fast_gram.sums(torch.ones(2, 3)) is None and fast_gram.sums(torch.ones(2, 3).half()) is None
    assert fast_gram.sums(torch.empty(0, 3, dtype=torch.bfloat16)) is None
    assert fast_gram.sums(torch.empty(2, 3, dtype=torch.bfloat16, device="meta")) is None


def test_a_library_that_is_wrong_or_empty_is_not_used(monkeypatch):
    said = []
    idle = SimpleNamespace(thrifty_gram_here=lambda: 1, thrifty_gram_pack=_Nothing(), thrifty_gram_multiply=_Nothing())
    monkeypatch.setattr(fast_gram, "library", lambda _: idle)
    with listening(said.append):
        assert fast_gram._calls.__wrapped__() is None
    assert "is wrong on this machine" in said[0].message
    monkeypatch.setattr(fast_gram, "library", lambda _: SimpleNamespace(thrifty_gram_here=lambda: 0))
    assert fast_gram._calls.__wrapped__() is None
    monkeypatch.setattr(fast_gram, "library", lambda _: None)
    assert fast_gram._calls.__wrapped__() is None


class _Nothing:
    """A function that does nothing."""

    def __call__(self, *_: object) -> None:
        pass
