"""How heavy-tailed the spectrum of a matrix is, and how many directions it has.

The eigenvalues of W^T W of a trained matrix fall off like a power law, density ~ lambda^-alpha: the smaller alpha, the heavier the tail.
Hill's estimate from the k largest, lambda_min the smallest of them, is

    alpha = 1 + k / sum_j ln(lambda_j / lambda_min)

It depends on the shape of a matrix, not only on what training made of it: even random ones have a larger alpha the longer they are. `farms`
therefore takes the eigenvalues of many windows of one shape, all together (Hu, Goel, Killiakov and Yang 2025, arXiv 2506.06280).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Rule = Literal["median", "peak", "goodness"]

SMALLEST = 1e-5
"""Eigenvalues below this share of the largest count as zero: their logarithms would say nothing."""

BINS = 100
"""Of the histogram of log10 of the eigenvalues, whose peak rule `peak` looks for."""

CANDIDATES = 256
"""Places where a tail may start that are tried, at most, evenly spaced among all."""

NUMBERS = 1 << 23
"""Entries of the windows that are decomposed at once, about."""


def eigenvalues(matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch n"]:
    """The eigenvalues of W^T W (or W W^T, whichever is smaller), rising, float64: squares of the singular values."""
    wide = matrix.to(torch.float64)
    square = wide @ wide.mT if wide.shape[-2] <= wide.shape[-1] else wide.mT @ wide
    return torch.linalg.eigvalsh(square).clamp_min(0)


def hill(values: Float[Tensor, "n"], rule: Rule = "median") -> float:
    """alpha of eigenvalues in any order; infinite where those of the tail are all equal, NaN where fewer than two are above zero.

    rule: where the tail starts. `median`: with the larger half. `peak`: near the peak of the histogram of log10(lambda), from 0.95 to 1.5
    times it, where the power law fits best. `goodness`: anywhere, where it fits best. A fit is judged by the distance of Kolmogorov and
    Smirnov.
    """
    values = values.to(torch.float64).flatten().sort().values
    values = values[values > SMALLEST * values[-1]] if len(values) else values
    if len(values) < 2:
        return float("nan")
    starts = torch.tensor([len(values) // 2]) if rule == "median" else _starts(values, rule)
    logs = values.log()
    counts = len(values) - starts
    # sums over the tail from the end, so that the largest are added last to the smallest sums
    sums = logs.flip(0).cumsum(0).flip(0)[starts] - counts * logs[starts]
    alphas = 1 + counts / sums
    if len(starts) > 1:
        alphas = alphas[
            torch.stack([_distance(logs, int(start), float(alpha)) for start, alpha in zip(starts, alphas, strict=True)]).argmin()
        ]
    return float(alphas)


def _starts(values: Float[Tensor, "n"], rule: Rule) -> Tensor:
    """Positions that a tail may start from; at least two values belong to it."""
    places = torch.arange(len(values) - 1)
    if rule == "peak":
        logs = values.log10()
        width = float(logs[-1] - logs[0]) / BINS
        if width > 0:
            counts = torch.histc(logs, BINS, min=float(logs[0]), max=float(logs[-1]))
            peak = 10 ** (float(logs[0]) + (int(counts.argmax()) + 0.5) * width)
            near = (values[:-1] > 0.95 * peak) & (values[:-1] < 1.5 * peak)
            places = places[near] if bool(near.any()) else (values[:-1] - peak).abs().argmin()[None]
    if len(places) > CANDIDATES:
        places = places[torch.linspace(0, len(places) - 1, CANDIDATES).round().long()]
    return places


def _distance(logs: Float[Tensor, "n"], start: int, alpha: float) -> Tensor:
    """The largest difference of the tail's distribution from that of the power law; infinite where there is no tail."""
    tail = logs[start:] - logs[start]
    if not alpha < float("inf"):
        return torch.tensor(float("inf"), dtype=logs.dtype)
    ranks = torch.arange(len(tail), dtype=logs.dtype) / len(tail)
    return (1 - (tail * (1 - alpha)).exp() - ranks).abs().amax()


def windows(out: int, width: int, side: int, ratio: float, positions: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """((rows, columns) of the windows of one shape, where each starts) for a matrix [out, width].

    side: rows of a window at most. ratio: its columns for each row. positions: windows along either side at most. The ratio holds whatever
    the matrix: where the columns would not fit, there are fewer rows.
    """
    rows = max(1, min(side, out, int(width / ratio)))
    columns = max(1, min(width, int(ratio * rows)))
    found = [(row, column) for row in _along(out, rows, positions) for column in _along(width, columns, positions)]
    return (rows, columns), found


def _along(length: int, size: int, positions: int) -> Iterator[int]:
    """Where windows of one size start along one side."""
    step = max(1, (length - size) // max(1, positions - 1))
    yield from (number * step for number in range(min(positions, (length - size) // step + 1)))


def farms(matrix: Float[Tensor, "out in"], side: int = 2000, ratio: float = 1.0, positions: int = 15, rule: Rule = "peak") -> float:
    """alpha of the eigenvalues of all windows together, see `windows` and `hill`."""
    (rows, columns), starts = windows(*matrix.shape, side, ratio, positions)
    at_once = max(1, NUMBERS // (rows * columns))
    found = []
    for first in range(0, len(starts), at_once):
        part = [matrix[row : row + rows, column : column + columns] for row, column in starts[first : first + at_once]]
        found.append(eigenvalues(torch.stack(part)).flatten())
    return hill(torch.cat(found), rule)


def windows_cost(out: int, width: int, side: int, ratio: float, positions: int) -> tuple[float, int]:
    """(multiplications, bytes held beside the matrix) of `farms` for a matrix [out, width], about."""
    (rows, columns), starts = windows(out, width, side, ratio, positions)
    operations = float(len(starts) * min(rows, columns) ** 2 * (rows + columns))
    return operations, 40 * min(len(starts) * rows * columns, NUMBERS + rows * columns)


def whole_cost(out: int, width: int) -> tuple[float, int]:
    """The same of `eigenvalues` of the whole matrix."""
    short = min(out, width)
    return float(short**2 * (out + width)), 8 * out * width + 32 * short**2


def slices(weight: Float[Tensor, "out in *kernel"]) -> Float[Tensor, "places out in"]:
    """A matrix as the only one of its kind; of a convolution's kernel the matrix of every place."""
    return weight.flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight[None]


def farms_kernel(kernel: Float[Tensor, "out in *kernel"], ratio: float = 1.0, rule: Rule = "median") -> float:
    """alpha of a convolution: that of each block, with the eigenvalues of all places together, in the mean over blocks.

    The matrices of all places are cut alike, along their longer side, into blocks that do not overlap; ratio: of the shorter side to what a
    block has of the longer one. What is left over at the end counts nowhere.
    """
    tall = slices(kernel)
    tall = tall if tall.shape[1] >= tall.shape[2] else tall.mT
    size = max(1, min(tall.shape[1], int(tall.shape[2] / ratio)))
    alphas = [hill(eigenvalues(tall[:, first : first + size]).flatten(), rule) for first in range(0, tall.shape[1] - size + 1, size)]
    return sum(alphas) / len(alphas)


def stable_rank(values: Float[Tensor, "n"]) -> float:
    """||W||_F^2 / ||W||_2^2 from the eigenvalues of W^T W; 0 for a matrix of zeros."""
    largest = float(values.amax())
    return float(values.sum()) / largest if largest > 0 else 0.0


def effective_rank(values: Float[Tensor, "n"]) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007); 0 for a matrix of zeros."""
    sizes = values.to(torch.float64).clamp_min(0).sqrt()
    if float(sizes.sum()) == 0:
        return 0.0
    shares = sizes / sizes.sum()
    return float(torch.special.entr(shares).sum().exp())
