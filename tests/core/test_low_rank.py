"""Low rank against alternating least squares, the published formulas, and inequalities that hold exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw, loss
from thrifty.core.low_rank import (
    fast_basis,
    rank_for,
    reduced_rank,
    refit,
    ridge,
    shared_basis,
    square_root,
    truncate,
    truncation_losses,
    weighted_patch,
)


def alternating(weight: torch.Tensor, gram: torch.Tensor, rank: int, rounds: int = 300) -> float:
    """The least tr((W - B A) G (W - B A)^T) that alternating least squares finds."""
    best = float("inf")
    for start in range(3):
        down = draw(900 + start, rank, weight.shape[1])
        for _ in range(rounds):
            up = weight @ gram @ down.T @ torch.linalg.inv(down @ gram @ down.T)
            down = torch.linalg.solve(up.T @ up, up.T @ weight)
        best = min(best, loss(weight, up @ down, gram))
    return best


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_truncation_is_what_alternating_least_squares_converges_to(rank):
    weight, gram = draw(1, 10, 14), correlated_gram(2, 14)
    up, down = truncate(weight, rank, gram)
    assert up.shape == (10, rank) and down.shape == (rank, 14)
    assert loss(weight, up @ down, gram) == pytest.approx(alternating(weight, gram, rank), rel=1e-6)


def test_truncation_is_the_published_formula_and_loses_the_dropped_singular_values():
    weight, gram, rank = draw(3, 12, 9), correlated_gram(4, 9), 4
    factor = torch.linalg.cholesky(gram)
    u, sizes, v = torch.linalg.svd(weight @ factor, full_matrices=False)
    published = (u[:, :rank] * sizes[:rank]) @ v[:rank] @ torch.linalg.inv(factor)
    up, down = truncate(weight, rank, gram)
    torch.testing.assert_close(up @ down, published, rtol=1e-9, atol=1e-9)
    assert loss(weight, up @ down, gram) == pytest.approx(float(sizes[rank:].square().sum()), rel=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_truncation_is_never_worse_than_other_whitenings(seed, rank):
    """SVD-LLM against ASVD's diagonal whitening and the plain SVD, at the same rank."""
    weight, gram = draw(seed, 8, 10), correlated_gram(seed + 1, 10)
    best = loss(weight, product(truncate(weight, rank, gram)), gram)
    scale = gram.diagonal() ** 0.25
    diagonal = product(truncate(weight * scale, rank)) / scale
    for other in (product(truncate(weight, rank)), diagonal):
        assert best <= loss(weight, other, gram) * (1 + 1e-9) + 1e-12


def product(factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return factors[0] @ factors[1]


def test_truncation_with_white_inputs_is_the_plain_svd_and_full_rank_is_exact():
    weight = draw(5, 6, 9)
    torch.testing.assert_close(product(truncate(weight, 3, 2 * torch.eye(9).double())), product(truncate(weight, 3)))
    torch.testing.assert_close(product(truncate(weight, 6, correlated_gram(6, 9))), weight)


def test_inputs_that_were_never_seen_do_no_harm():
    gram = correlated_gram(7, 12)
    gram[:5] = gram[:, :5] = 0
    weight = draw(8, 10, 12)
    assert loss(weight, product(truncate(weight, 7, gram)), gram) < 1e-12 * loss(weight, 0 * weight, gram)
    assert bool(torch.isfinite(product(truncate(weight, 2, 0 * gram))).all())


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1))
def test_the_rank_for_a_share_is_the_largest_that_fits(out, width, share):
    rank = rank_for(out, width, share)
    assert 1 <= rank <= min(out, width)
    assert rank == 1 or rank * (out + width) <= share * out * width + 1e-6
    assert rank == min(out, width) or (rank + 1) * (out + width) > share * out * width


# -- products ----------------------------------------------------------------------------------------------------------


def heads(seed: int, queries: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(output blocks stacked [3 * 20, 8], value [8, 20], gram of x, gram of z) of one value head that three query heads share."""
    left, right, gram = draw(seed, queries * 20, 8), draw(seed + 1, 8, 20), correlated_gram(seed + 2, 20)
    return left, right, gram, right @ gram @ right.T


def test_a_shared_basis_is_the_best_of_its_rank():
    """Against the truncated SVD of the whole product O V S of a value head and all query heads that share it, and nothing at full rank."""
    left, right, gram, seen = heads(10)
    for rank in (2, 5, 8):
        up, mixing = shared_basis(left, seen, rank)
        dropped = torch.linalg.svdvals(left @ right @ square_root(gram))[rank:].square().sum()
        assert loss(left @ right, up @ (mixing @ right), gram) == pytest.approx(float(dropped), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(up @ mixing, left)


def test_the_decompositions_of_a_product_are_ordered():
    """The product's own SVD, the fast rotation, and dropping the channels with the smallest norm: 49 / 63 / 70 in the method's sheet."""
    totals = [0.0, 0.0, 0.0]
    for seed in range(20):
        left, right, _, _ = heads(100 + 10 * seed, 1)
        white, exact = torch.eye(20).double(), left @ right
        norms = left.norm(dim=0) + right.norm(dim=1)
        keep = norms.argsort(descending=True)[:6]
        pairs = (shared_basis(left, right @ right.T, 6), fast_basis(left, 6))
        found = [loss(exact, up @ mixing @ right, white) for up, mixing in pairs]
        assert found[0] <= found[1] * (1 + 1e-9)
        for place, value in enumerate((*found, loss(exact, left[:, keep] @ right[keep], white))):
            totals[place] += value
    assert totals[0] < totals[1] < totals[2]


def test_the_fast_rotation_is_exact_at_full_rank_and_a_value_bias_goes_along():
    left, right, _, _ = heads(30)
    bias, inputs = draw(33, 8), draw(34, 5, 20)
    for up, mixing in (fast_basis(left, 8, draw(35, 60).square()), shared_basis(left, right @ right.T, 8)):
        torch.testing.assert_close((inputs @ (mixing @ right).T + mixing @ bias) @ up.T, (inputs @ right.T + bias) @ left.T)


@given(st.integers(0, 10_000))
def test_a_refitted_reader_is_the_least_squares_solution(seed):
    weight, inputs, reduction = draw(seed, 5, 9), draw(seed + 1, 60, 9), draw(seed + 2, 4, 9)
    expected = torch.linalg.lstsq(inputs @ reduction.T, inputs @ weight.T).solution.T
    torch.testing.assert_close(refit(weight, inputs.T @ inputs / 60, reduction, 0.0), expected, rtol=1e-7, atol=1e-7)


# -- patches -----------------------------------------------------------------------------------------------------------


def residual(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of unequal size, and a residual that depends on them in part."""
    inputs = draw(seed, 200, 12) * (1.2 * draw(seed + 1, 12)).exp()
    return inputs, inputs @ draw(seed + 2, 12, 9) + 3 * torch.tanh(inputs @ draw(seed + 3, 12, 9))


def patched(inputs: torch.Tensor, wanted: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((wanted - inputs @ product(factors).T).square().mean(0).sum())


def test_the_ridge_fit_is_the_solution_of_the_augmented_system():
    inputs, wanted = residual(40)
    gram = inputs.T @ inputs / 200
    lam = 0.5 * gram.diagonal().mean()
    rows = torch.cat([inputs / 200**0.5, lam.sqrt() * torch.eye(12).double()])
    expected = torch.linalg.lstsq(rows, torch.cat([wanted / 200**0.5, torch.zeros(12, 9).double()])).solution.T
    torch.testing.assert_close(ridge(gram, wanted.T @ inputs / 200, 0.5), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3])
def test_reduced_rank_regression_is_what_alternating_least_squares_converges_to(rank):
    inputs, wanted = residual(50)
    gram, cross = inputs.T @ inputs / 200, wanted.T @ inputs / 200
    best = float("inf")
    for start in range(3):
        down = draw(60 + start, rank, 12)
        for _ in range(400):
            up = torch.linalg.lstsq(inputs @ down.T, wanted).solution.T
            fit = torch.linalg.lstsq(inputs, wanted @ torch.linalg.pinv(up).T).solution.T
            down = fit
        best = min(best, patched(inputs, wanted, (up, down)))
    assert patched(inputs, wanted, reduced_rank(gram, cross, rank, 0.0)) == pytest.approx(best, rel=1e-6)


def test_the_patch_by_regression_beats_the_published_one_and_none():
    """In the mean over random layers: regression, the truncated SVD of the fit, no patch."""
    none = published = regressed = 0.0
    for seed in range(20):
        inputs, wanted = residual(1000 + 10 * seed)
        gram, cross = inputs.T @ inputs / 200, wanted.T @ inputs / 200
        ours = patched(inputs, wanted, reduced_rank(gram, cross, 3, 1e-3))
        before = float(wanted.square().mean(0).sum())
        assert ours < before
        none, regressed = none + before, regressed + ours
        published += patched(inputs, wanted, weighted_patch(gram, cross, torch.ones(9), 3, 1e-3))
    assert regressed < published < none


def test_at_full_rank_both_patches_are_the_ridge_fit():
    inputs, wanted = residual(70)
    gram, cross = inputs.T @ inputs / 200, wanted.T @ inputs / 200
    weights = torch.sigmoid(draw(71, 9))
    for factors in (reduced_rank(gram, cross, 9, 0.1), weighted_patch(gram, cross, weights, 9, 0.1)):
        torch.testing.assert_close(product(factors), ridge(gram, cross, 0.1))


def weighed(weight: torch.Tensor, other: torch.Tensor, gram: torch.Tensor, fisher: torch.Tensor) -> float:
    """tr(F (W - W') G (W - W')^T)."""
    gone = weight - other
    return float((fisher @ gone @ gram * gone).sum())


@given(st.integers(0, 10_000), st.integers(1, 7))
def test_truncation_by_both_sides_is_least_in_their_measure_and_loses_what_is_foretold(seed, rank):
    weight, gram, fisher = draw(seed, 8, 10), correlated_gram(seed + 1, 10), correlated_gram(seed + 2, 8)
    weigher = torch.linalg.cholesky(fisher).T
    factors, foretold = truncate(weight, rank, gram, weigher), truncation_losses(weight, gram, weigher)
    lost = weighed(weight, product(factors), gram, fisher)
    assert lost == pytest.approx(float(foretold[rank]), rel=1e-7, abs=1e-12)
    assert lost <= weighed(weight, product(truncate(weight, rank, gram)), gram, fisher) * (1 + 1e-9)
    one = truncate(weight, rank, gram, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(product(one), product(truncate(weight, rank, gram)), rtol=1e-8, atol=1e-8)
    assert foretold[0] == pytest.approx(weighed(weight, 0 * weight, gram, fisher), rel=1e-9)
    assert float(foretold[-1]) == 0 and bool((foretold.diff() <= 0).all())


@pytest.mark.parametrize("rank", [1, 3])
def test_truncation_by_both_sides_is_what_gradient_descent_converges_to(rank):
    weight, gram, fisher = draw(11, 6, 7), correlated_gram(12, 7), correlated_gram(13, 6)
    best = float("inf")
    for start in range(3):
        up, down = (draw(50 * start + side, *shape).requires_grad_() for side, shape in ((1, (6, rank)), (2, (rank, 7))))
        optimizer = torch.optim.LBFGS(
            [up, down], max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-14
        )

        def closure(optimizer=optimizer, up=up, down=down) -> torch.Tensor:
            optimizer.zero_grad()
            gone = weight - up @ down
            value = (fisher @ gone @ gram * gone).sum()
            value.backward()
            return value

        optimizer.step(closure)
        best = min(best, float(closure().detach()))
    found = product(truncate(weight, rank, gram, torch.linalg.cholesky(fisher).T))
    assert weighed(weight, found, gram, fisher) == pytest.approx(best, rel=1e-6)
