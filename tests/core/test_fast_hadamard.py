"""The compiled transform against the matrices themselves and against its twin in plain torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from tests.core.test_hadamard import draw
from thrifty.base.events import listening
from thrifty.core import fast_hadamard
from thrifty.core.hadamard import hadamard_matrix, known_order, plain_transform, transform

pytestmark = pytest.mark.skipif(fast_hadamard._call() is None, reason="this machine cannot compile it")

WIDTHS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 192, 320, 448, 896, 1536, 5120, 11008, 14336]


@pytest.fixture(autouse=True)
def _it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that the library takes do not come from its twin."""
    from thrifty.core import hadamard as module

    def never(values: torch.Tensor, *_: object) -> torch.Tensor:
        assert not fast_hadamard._suits(values, 16), "plain torch computed what the library takes"
        return plain_transform(values, *_)

    monkeypatch.setattr(module, "plain_transform", never)


@pytest.mark.parametrize("order", [16, 64, 256, 1024, 4096, 16384])
def test_whole_numbers_come_out_exactly(order):
    """The root of these orders is a power of two, so that nothing is rounded."""
    values = torch.randint(-50, 51, (3, order), generator=torch.Generator().manual_seed(order)).float()
    expected = values.double() @ torch.from_numpy(hadamard(order)).double() / order**0.5
    assert torch.equal(transform(values).double(), expected)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("transpose", [False, True])
def test_rows_are_multiplied_block_by_block(width, transpose):
    values, order = draw(width, 2, 3, width, dtype=torch.float32), known_order(width)
    matrix = hadamard_matrix(order).double() / order**0.5
    expected = (values.double().reshape(2, 3, -1, order) @ (matrix.T if transpose else matrix)).reshape(values.shape)
    torch.testing.assert_close(transform(values, transpose=transpose).double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(transform(values, transpose=transpose), plain_transform(values, order, transpose), rtol=0, atol=3e-6)


@given(st.integers(0, 10_000), st.sampled_from([(64, 16), (256, 32), (1024, 1024), (896, 896), (5120, 1280)]), st.integers(1, 5))
def test_a_row_gives_the_same_bits_in_every_batch_and_is_undone(seed, sizes, rows):
    width, order = sizes
    values = draw(seed, rows, width, dtype=torch.float32)
    turned = transform(values, order)
    assert all(torch.equal(turned[row], transform(values[row], order)) for row in range(rows))
    torch.testing.assert_close(transform(turned, order, transpose=True), values, rtol=0, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 4096, 896])
def test_narrow_types_are_rounded_once(dtype, width):
    values = draw(1, 5, width, dtype=dtype) * torch.logspace(-6, 2, 5)[:, None].to(dtype)
    assert torch.equal(transform(values), transform(values.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_no_number_stays_none_and_stays_in_its_row(dtype):
    values = draw(2, 3, 256, dtype=dtype)
    values[0, 5], values[1, 7] = float("nan"), float("inf")
    found = transform(values)
    assert bool(found[0].isnan().all()) and bool(found[1].isinf().all()) and bool(found[2].isfinite().all())


def test_rows_lie_as_they_like():
    values = draw(3, 6, 512, dtype=torch.float32)
    expected = transform(values)
    assert torch.equal(transform(values.T.contiguous().T), expected)
    assert torch.equal(transform(torch.cat([values, values], 1)[:, :512]), expected)
    assert torch.equal(transform(values[:1].expand(6, 512)), expected[:1].expand(6, 512))
    assert torch.equal(transform(values.reshape(2, 3, 512)), expected.reshape(2, 3, 512))
    before = values.clone()
    transform(values[1:])
    assert torch.equal(values, before)
    for shape in ((0, 512), (2, 0, 512)):
        assert transform(torch.empty(shape)).shape == shape


def test_gradients_and_wide_types_go_through_plain_torch():
    values = draw(4, 3, 128, dtype=torch.float32).requires_grad_()
    weights = draw(5, 3, 128, dtype=torch.float32)
    (transform(values) * weights).sum().backward()
    torch.testing.assert_close(values.grad, transform(weights, transpose=True), rtol=0, atol=2e-6)
    with torch.no_grad():
        torch.testing.assert_close(transform(values), transform(values.double()).float(), rtol=0, atol=2e-6)
    assert transform(torch.empty(2, 64, device="meta")).shape == (2, 64)


def test_threads_share_the_rows(monkeypatch):
    values = draw(6, 5, 1024, dtype=torch.float32)
    expected, threads = transform(values), torch.get_num_threads()
    monkeypatch.setattr(fast_hadamard, "SHARE", 1024)
    try:
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            assert torch.equal(transform(values), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_library_that_is_wrong_is_not_used(monkeypatch):
    said = []
    monkeypatch.setattr(fast_hadamard, "library", lambda _: SimpleNamespace(thrifty_hadamard=_Nothing()))
    with listening(said.append), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", torch.zeros_like)
        assert fast_hadamard._call.__wrapped__() is None
    assert "is wrong on this machine" in said[0].message
    monkeypatch.setattr(fast_hadamard, "library", lambda _: None)
    assert fast_hadamard._call.__wrapped__() is None


class _Nothing:
    """A function of a library that does nothing."""

    def __call__(self, *_: object) -> int:
        return 0
