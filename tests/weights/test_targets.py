"""Targets: exact counts, idempotent projections onto the nearest point, and an encoding that gives the same values back."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import draw
from thrifty.base.errors import InputError
from thrifty.core.grids import code_limits, grouped
from thrifty.weights.allocate.baq import ColumnGrid
from thrifty.weights.base import Target, hold
from thrifty.weights.preset.sparsegpt import SparseGPT
from thrifty.weights.target.both import Both
from thrifty.weights.target.fixed import Fixed
from thrifty.weights.target.float import SmallFloat
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM, of_pattern
from thrifty.weights.target.posit import Posit
from thrifty.weights.target.ternary import Ternary
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured

WIDTH = 48
GRIDS = (
    Int(),
    Int(4, 16, False),
    Int(3, 0, False, "mse"),
    Int(8, 0),
    Int(8, 16, False, "mse"),
    Int(2, 8, True, "mse"),
    Int(group_size=24, levels=3),
    Int(group_size=0, levels=11, symmetric=False),
    ColumnGrid(torch.tensor([1, 2, 3, 5, 16, 300, 4000, 32767] * 6, dtype=torch.int16)),
)
NUMBERS = (
    SmallFloat(group_size=16),
    SmallFloat("e4m3", 0),
    SmallFloat("e5m2", 0, "real", "mse"),
    SmallFloat("e2m1", 16, "power_of_two", "mse"),
    SmallFloat("e3m2", 24, "power_of_two"),
    SmallFloat("e2m3", 24, "power_of_two"),
    SmallFloat("e2m1", 16, "e4m3"),
    SmallFloat("e2m1", 16, "e4m3", "mse"),
    Fixed(),
    Fixed(4, 16, "mse"),
    Fixed(16),
    Posit(),
    Posit(4, 0, 16),
    Posit(16, 2),
)
MASKS = (NM(), NM(1, 4), NM(3, 8), TopK(0.5), TopK(0.3), Unstructured(0.5, 16), Unstructured(0.7, 0))
BOTHS = (
    *(Both(mask, grid) for mask, grid in zip(MASKS, (*GRIDS[1:6], GRIDS[1], GRIDS[6]), strict=True)),
    Both(NM(), SmallFloat("e2m1", 16, "e4m3")),
    Both(TopK(0.5), Ternary(16)),
    Both(Unstructured(0.5, 16), Posit(6, 1, 16)),
    Both(NM(), Fixed(4, 16)),
)
ALL = tuple(
    Int(target.bits, 16, target.symmetric, target.range) if target == Int() else target for target in (*GRIDS, *NUMBERS, *MASKS, *BOTHS)
)


def check_fixed_point(target: Target, values: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    points = target.fit(values, importance)
    projected = points.project(values)
    assert torch.equal(points.project(projected), projected)
    assert torch.equal(points.encode(projected).decode(), projected.float())
    assert torch.equal(points.encode(projected).decode().to(values.dtype), projected)
    assert not bool(torch.signbit(projected[projected == 0]).any())
    return projected


@pytest.mark.parametrize("target", ALL, ids=lambda target: type(target).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_projecting_is_idempotent_and_encoding_is_exact(target, dtype, weighted):
    values = draw(1, 20, WIDTH, dtype=dtype).mul_(0.05)
    if dtype == torch.float64:
        values = values.float().double()
    importance = draw(2, WIDTH, dtype=dtype).square() + 0.1 if weighted else None
    projected = check_fixed_point(target, values, importance)
    assert not torch.equal(projected, values)
    assert projected.dtype == dtype


@given(st.integers(0, 10_000), st.sampled_from(range(len(ALL))), st.sampled_from([1e-3, 1.0, 30.0]))
def test_projecting_is_idempotent_and_encoding_is_exact_for_any_values(seed, index, spread):
    values = draw(seed, 4, WIDTH, dtype=torch.float32) * spread
    values[0] = 0
    values[1, :16] = spread
    check_fixed_point(ALL[index], values, None)


@given(st.integers(0, 10_000), st.sampled_from(range(len(MASKS))))
def test_held_targets_stay_inside_the_mask_and_inside_the_target(seed, index):
    values = draw(seed, 5, WIDTH, dtype=torch.float32)
    mask = draw(seed + 1, 5, WIDTH) > 0
    for target in (MASKS[index], BOTHS[index], ALL[1]):
        projected = check_fixed_point(hold(target, mask), values, None)
        assert bool((projected[~mask] == 0).all())
        assert bool((projected[mask] != 0).any())


def test_holding_a_target_keeps_what_the_target_is():
    mask = torch.ones(4, WIDTH, dtype=torch.bool)
    for target in ALL:
        held = hold(target, mask)
        assert (held.run, held.joint_rows) == (target.run, target.joint_rows), target


# -- masks ---------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 6), (4, 4)]))
def test_n_of_every_m_stay(seed, pattern):
    n, m = pattern
    values = draw(seed, 6, WIDTH)
    kept = NM(n, m).fit(values).project(values).reshape(6, -1, m)
    assert bool(((kept != 0).sum(-1) == n).all())


@given(
    st.integers(0, 10_000), st.integers(1, 60), st.sampled_from(["0.0", "0.1", "0.29", "0.3", "0.5", "0.57", "0.58", "0.7", "0.9", "0.99"])
)
def test_every_row_loses_the_whole_part_of_its_share(seed, width, sparsity):
    values = draw(seed, 3, width)
    kept = TopK(float(sparsity)).fit(values).project(values)
    zeros = int(Fraction(sparsity) * width)
    assert (kept == 0).sum(1).tolist() == [zeros] * 3


@pytest.mark.parametrize(("sparsity", "zeros"), [("0.29", 29), ("0.57", 57), ("0.58", 58), ("0.5", 50)])
def test_shares_written_in_decimals_are_met_exactly(sparsity, zeros):
    assert TopK(float(sparsity)).kept(100) == 100 - zeros


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77])
@pytest.mark.parametrize("block", [0, 16, 20])
def test_the_share_of_every_block_becomes_zero(sparsity, block):
    values = draw(3, 10, WIDTH)
    kept = Unstructured(sparsity, block).fit(values).project(values)
    for start in range(0, WIDTH, block or WIDTH):
        run = kept[:, start : start + (block or WIDTH)]
        assert abs(int((run == 0).sum()) - sparsity * run.numel()) <= 1
    assert int((kept == 0).sum()) == round(sparsity * kept.numel())


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.2, 0.5, 0.66]), st.sampled_from([4, 7, 128]))
def test_a_sweep_over_runs_gives_every_row_its_count(seed, width, sparsity, run):
    target = TopK(sparsity, run)
    values = draw(seed, 3, width)
    points = target.fit(values)
    for start in range(0, width, run):
        columns = torch.arange(start, min(start + run, width))
        points.enter(values[:, columns], columns, torch.ones(columns.numel(), dtype=values.dtype))
    assert points.mask.sum(0).tolist() == [target.kept(width)] * 3


@pytest.mark.parametrize(("target", "names"), [(NM(2, 4), "n_of_m"), (TopK(0.5), "row"), (Unstructured(0.5, 0), "matrix")])
def test_masks_are_the_nearest_points_in_the_weighted_norm(target, names):
    """Against trying every mask."""
    values, importance = draw(4, 2, 4), torch.tensor([0.1, 3.0, 1.0, 0.7], dtype=torch.float64)
    cost = values.square() * importance
    found = float((cost * (target.fit(values, importance).project(values) == 0)).sum())
    if names == "matrix":
        best = min(float(cost.flatten()[list(dropped)].sum()) for dropped in combinations(range(8), 4))
    else:
        best = sum(min(float(row[list(dropped)].sum()) for dropped in combinations(range(4), 2)) for row in cost)
    assert found == pytest.approx(best, rel=1e-12)
    plain = target.fit(values).project(values)
    assert float((cost * (plain == 0)).sum()) > best


# -- intersections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", BOTHS, ids=lambda target: f"{target.mask.name}, {target.grid.name}")
def test_intersections_lie_in_both_sets(target):
    values = draw(5, 12, WIDTH)
    projected = target.fit(values).project(values)
    grid = target.grid.fit(values)
    assert torch.equal(grid.project(projected), projected)
    kept = projected != 0
    if isinstance(target.mask, NM):
        assert int(kept.reshape(12, -1, target.mask.m).sum(-1).max()) <= target.mask.n
    elif isinstance(target.mask, TopK):
        assert int(kept.sum(1).max()) <= target.mask.kept(WIDTH)
    else:
        assert int(kept.sum()) <= round(12 * WIDTH * (1 - target.mask.sparsity))
    assert int(kept.sum()) > 0.2 * 12 * WIDTH * (1 - getattr(target.mask, "sparsity", 0.75))


def test_the_intersection_is_the_nearest_of_all_its_points():
    """Against every mask with every grid value, four entries at a time."""
    target = Both(NM(2, 4), Int(2, 4, False))
    importance = torch.tensor([1.0, 0.2, 3.0, 0.9], dtype=torch.float64)
    for seed in range(20):
        values = draw(seed, 1, 4)
        points = target.fit(values, importance)
        step = points.grid.step
        smallest, largest = code_limits(4)
        grid = (torch.arange(smallest, largest + 1) - step.zero_point[0]) * step.scale[0]
        rounded = grid[(values[0][:, None] - grid).abs().argmin(1)]
        best = min(
            float(((values[0] - rounded * torch.tensor([index in kept for index in range(4)])).square() * importance).sum())
            for kept in combinations(range(4), 2)
        )
        found = float(((values - points.project(values)).square() * importance).sum())
        assert found == pytest.approx(best, rel=1e-9, abs=1e-12)


# -- grids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [target for target in GRIDS if isinstance(target, Int)], ids=lambda target: f"{target.level_count}")
def test_codes_lie_within_their_limits_and_the_outline_tells_the_size(target):
    values = draw(6, 8, 96) + 0.2
    points = target.fit(values)
    encoded, outline = points.encode(points.project(values)), target.outline(8, 96)
    smallest, largest = code_limits(target.level_count)
    codes = encoded.tensors["codes"]
    assert smallest <= int(codes.min()) and int(codes.max()) <= largest
    assert {name: tensor.shape for name, tensor in encoded.tensors.items()} == {
        name: tensor.shape for name, tensor in outline.tensors.items()
    }
    assert (encoded.layout, encoded.shape, encoded.bits, encoded.group_size) == (
        outline.layout,
        outline.shape,
        outline.bits,
        outline.group_size,
    )
    assert grouped(values, target.group_size).shape[1] == encoded.tensors["scale"].shape[1]
    assert encoded.rows(2, 5).decode().equal(encoded.decode()[2:5])


def test_a_column_grid_spans_the_row_with_its_levels_and_one_level_is_zero():
    values = torch.tensor([[-1.0, 0.4, 3.0], [0.5, 1.0, 2.0]], dtype=torch.float64)
    levels = torch.tensor([5, 1, 9], dtype=torch.int16)
    points = ColumnGrid(levels).fit(values)
    assert points.scale.tolist() == [[1.0, 4.0, 0.5], [0.5, 2.0, 0.25]]
    assert points.project(values).tolist() == [[-1.0, 0.0, 3.0], [0.5, 0.0, 2.0]]
    encoded = points.encode(points.project(values))
    assert encoded.simulated and encoded.layout == "int_columns"
    assert encoded.bits == pytest.approx(float(torch.log2(levels.double()).mean()))
    assert encoded.fixed_width_bits == pytest.approx((3 + 0 + 4) / 3)
    assert encoded.rows(1, 2).decode().tolist() == [[0.5, 0.0, 2.0]]


def test_impossible_targets_are_refused_in_words():
    with pytest.raises(InputError, match="it must be at most m; got n 5 and m 4"):
        NM(5, 4)
    with pytest.raises(InputError, match="does not divide the width 50 of fc"):
        NM(2, 4).check(8, 50, "fc")
    with pytest.raises(InputError, match="does not divide the width 48 of fc; 16 does"):
        Int(4, 32).check(8, 48, "fc")
    with pytest.raises(InputError, match="symmetric grid needs at least 3"):
        Int(levels=2)
    with pytest.raises(InputError, match="; 45 does"):
        Int(4, 32).check(8, 90, "fc")
    with pytest.raises(InputError, match="at most m"):
        SparseGPT(pattern="4:2")
    with pytest.raises(InputError, match="take 0"):
        Int(4, 32).check(8, 7, "fc")
    with pytest.raises(InputError, match="mask must be one of"):
        Both(Int(), Int())
    with pytest.raises(InputError, match="one that holds zero"):
        Both(NM(), NM())
    assert of_pattern("4:16") == NM(4, 16)


# -- small number formats ------------------------------------------------------------------------------------------------


def rms(target: Target, values: torch.Tensor) -> float:
    return float((target.fit(values).project(values) - values).square().mean().sqrt() / values.square().mean().sqrt())


def test_of_formats_with_as_many_bits_those_with_more_significant_bits_are_closer_on_normal_values():
    values = draw(1, 64, 256, dtype=torch.float32)
    errors = {name: rms(SmallFloat(name, 0), values) for name in ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")}
    assert errors["e2m3"] < errors["e3m2"] and errors["e4m3"] < errors["e5m2"] < errors["e2m1"]
    posit, fixed = rms(Posit(8, 0), values), rms(Fixed(4), values)
    assert posit < errors["e5m2"] and max(posit, errors["e4m3"], errors["e5m2"], rms(Fixed(8), values)) < fixed


def test_integers_with_a_scale_of_their_own_are_closer_than_fixed_point():
    values = draw(2, 64, 256, dtype=torch.float32)
    assert rms(Int(4, 0), values) < 0.8 * rms(Fixed(4), values)


def test_floats_and_posits_keep_small_values_that_fixed_point_loses():
    values = (3 * draw(3, 64, 256, dtype=torch.float32)).exp()

    def relative(target: Target) -> float:
        return float(((target.fit(values).project(values) - values) / values).abs().mean())

    assert max(relative(target) for target in (SmallFloat("e4m3", 0), SmallFloat("e5m2", 0), Posit(8, 2))) < 0.5 * relative(Fixed(8))


def test_posits_keep_what_is_not_zero():
    values = draw(4, 8, 32, dtype=torch.float32) * 2.0 ** torch.arange(-40, -8)[None]
    projected = Posit(8, 1).fit(values).project(values)
    assert bool((projected != 0).all()) and bool((torch.sign(projected) == torch.sign(values)).all())


@pytest.mark.parametrize("size", [16, 0])
def test_a_posit_scale_brings_the_usual_value_near_one(size):
    values = draw(5, 16, 64, dtype=torch.float32) * 0.013
    scale = Posit(group_size=size).fit(values).scales.local
    usual = grouped(values, size).square().mean(-1).sqrt() / scale
    assert bool(((usual >= 2**-0.5 * 0.999) & (usual <= 2**0.5 * 1.001)).all()) and bool((torch.frexp(scale).mantissa == 0.5).all())


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"format": "e3m3"}, "format"), ({"scale": "e5m3"}, "scale"), ({"group_size": -1}, "group_size")],
)
def test_a_float_that_there_is_not_is_refused(settings, said):
    with pytest.raises(InputError, match=f"float: {said} is wrong"):
        SmallFloat(**settings)


@pytest.mark.parametrize("target", [SmallFloat(group_size=32), Fixed(8, 32), Posit(8, 1, 32)], ids=lambda target: target.name)
def test_groups_of_numbers_must_divide_the_width(target):
    with pytest.raises(InputError, match="group_size 32 does not divide the width 48 of layer; 16 does"):
        target.check(8, 48, "layer")


def test_mx_blocks_are_those_of_another_implementation():
    """compressed-tensors rounds a block to MXFP4 as the specification says."""
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8

    values = draw(6, 16, 64, dtype=torch.float32)
    points = SmallFloat("e2m1", 32, "power_of_two").fit(values)
    encoded = points.encode(points.project(values))
    numbers = encoded.tensors["numbers"][encoded.tensors["codes"].long()]
    assert torch.equal(unpack_fp4_from_uint8(pack_fp4_to_uint8(numbers), 16, 64).float(), numbers)
    packed = pack_fp4_to_uint8(numbers)
    codes = encoded.tensors["codes"]
    assert torch.equal(packed, codes[:, ::2] | (codes[:, 1::2] << 4))
