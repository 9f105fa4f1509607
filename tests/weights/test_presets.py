"""Presets: each is the documented treatment, and gives on bare tensors what its paper says."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.problems import correlated_gram, draw, loss, problem
from thrifty.base.errors import InputError
from thrifty.base.records import Problem
from thrifty.weights.allocate.baq import BAQ
from thrifty.weights.allocate.farms import Farms
from thrifty.weights.allocate.owl import OWL
from thrifty.weights.allocate.uniform import Uniform
from thrifty.weights.base import Treatment, hold, solve
from thrifty.weights.heal.learned_rounding import LearnedRounding
from thrifty.weights.preset.gptq import GPTQ
from thrifty.weights.preset.hqq import HQQ
from thrifty.weights.preset.magnitude import Magnitude
from thrifty.weights.preset.ria import RIA
from thrifty.weights.preset.rtn import RTN
from thrifty.weights.preset.solve import Solve
from thrifty.weights.preset.sparsegpt import SparseGPT
from thrifty.weights.preset.wanda import Wanda
from thrifty.weights.solve.awp import AWP
from thrifty.weights.solve.back_solve import BackSolve
from thrifty.weights.solve.descent import Descent
from thrifty.weights.solve.obs import OBS
from thrifty.weights.solve.relative_importance import RelativeImportance
from thrifty.weights.solve.round import Round
from thrifty.weights.target.affine import Affine
from thrifty.weights.target.both import Both
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM
from thrifty.weights.target.top_k import TopK
from thrifty.weights.target.unstructured import Unstructured

PRESETS = (RTN(), HQQ(), GPTQ(), Wanda(), SparseGPT(), Magnitude(), RIA(), Wanda(back_solve=True), Solve())


@pytest.mark.parametrize(
    ("preset", "treatment"),
    [
        (RTN(), Treatment(Round(), Int(4, 32, True, "minmax"))),
        (RTN(3, 16, False, "mse"), Treatment(Round(), Int(3, 16, False, "mse"))),
        (GPTQ(), Treatment(OBS(True, 0.01, 128), Int(4, 32, True, "mse"))),
        (GPTQ(2, 0, False, "minmax", False, 0.1, 32), Treatment(OBS(False, 0.1, 32), Int(2, 0, False, "minmax"))),
        (Wanda(), Treatment(Round(weighted=True), TopK(0.5), Uniform())),
        (Wanda(0.7), Treatment(Round(weighted=True), TopK(0.7), Uniform())),
        (Wanda(pattern="4:8"), Treatment(Round(weighted=True), NM(4, 8), Uniform())),
        (SparseGPT(), Treatment(OBS(damping=0.01), Unstructured(0.5, 128), Uniform())),
        (SparseGPT(0.6, None, 64, 0.1), Treatment(OBS(damping=0.1), Unstructured(0.6, 64), Uniform())),
        (SparseGPT(pattern="2:4"), Treatment(OBS(damping=0.01), NM(2, 4), Uniform())),
        (Magnitude(0.3), Treatment(Round(), Unstructured(0.3, 0), Uniform())),
        (RIA(0.6, power=1.0), Treatment(RelativeImportance(1.0), Unstructured(0.6, 0), Uniform())),
        (Wanda(0.7, share=OWL(), back_solve=True), Treatment(BackSolve(Round(weighted=True)), TopK(0.7), OWL())),
        (Magnitude(pattern="1:4"), Treatment(Round(), NM(1, 4), Uniform())),
        (HQQ(), Treatment(Round(), Affine(4, 64, "minmax", 0.7, 10.0, 1.01, 20))),
        (Solve(), Treatment(OBS(), Int(), Uniform())),
        (Solve(AWP(7), Both(NM(), Int())), Treatment(AWP(7), Both(NM(), Int()), Uniform())),
        (Solve(OBS(), Int(3, 0, False), BAQ()), Treatment(OBS(), Int(3, 0, False), BAQ())),
        (
            Solve(Descent(), Affine(2, 64), heal=LearnedRounding(5)),
            Treatment(Descent(), Affine(2, 64), Uniform(), LearnedRounding(5)),
        ),
    ],
    ids=lambda part: str(part) if not isinstance(part, Treatment) else "",
)
def test_a_preset_is_the_documented_treatment(preset, treatment):
    assert preset.expand() == treatment


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_presets_work_on_bare_tensors(preset, dtype):
    task = problem(1, out=16, width=64, dtype=dtype)
    kept, gram = task.weight.clone(), task.gram.clone()
    found = solve(Problem(task.weight, task.gram, 256), preset.expand())
    assert found.values.shape == (16, 64) and found.values.dtype == dtype
    assert torch.equal(found.encoded.decode().to(dtype), found.values.float().to(dtype))
    assert found.loss == pytest.approx(loss(task.weight, found.values, task.gram), rel=1e-3)
    assert 0 < found.loss < loss(task.weight, torch.zeros_like(task.weight), task.gram)
    assert torch.equal(task.weight, kept) and torch.equal(task.gram, gram)
    again = solve(Problem(task.weight, task.gram, 256), preset.expand())
    assert torch.equal(again.values, found.values)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_without_calibration_only_the_data_free_presets_are_unchanged(preset):
    task = problem(2, out=16, width=64)
    plain = replace(task, gram=torch.eye(64, dtype=torch.float64))
    same = torch.equal(solve(task, preset.expand()).values, solve(plain, preset.expand()).values)
    assert same == (preset.name in ("rtn", "hqq", "magnitude")) == (not preset.expand().calibrated)


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from(["0.25", "0.5", "0.7", "0.9"]))
def test_wanda_drops_the_smallest_products_of_weight_and_input_norm_in_each_row(seed, width, sparsity):
    inputs = draw(seed, 30, width) * draw(seed + 1, width).exp()
    weight = draw(seed + 2, 5, width)
    found = solve(Problem(weight, inputs.T @ inputs / 30, 30), Wanda(float(sparsity)).expand()).values
    norms = [float(inputs[:, column].norm()) for column in range(width)]
    for row, kept in zip(weight.tolist(), found.tolist(), strict=True):
        scores = sorted(range(width), key=lambda column: abs(row[column]) * norms[column])
        dropped = set(scores[: int(Fraction(sparsity) * width)])
        assert kept == [0.0 if column in dropped else row[column] for column in range(width)]


def test_wanda_with_a_pattern_chooses_within_each_run():
    inputs = draw(3, 50, 24) * draw(4, 24).exp()
    weight = draw(5, 6, 24)
    found = solve(Problem(weight, inputs.T @ inputs / 50, 50), Wanda(pattern="2:4").expand()).values
    scores = (weight.abs() * inputs.norm(dim=0)).reshape(6, 6, 4)
    expected = weight.reshape(6, 6, 4) * (scores >= scores.sort(-1).values[..., 2:3])
    assert torch.equal(found, expected.reshape(6, 24))


def test_magnitude_drops_the_smallest_weights_of_the_matrix():
    task = problem(6, out=10, width=40)
    scaled = replace(task, weight=task.weight * torch.linspace(0.1, 2, 10, dtype=torch.float64)[:, None])
    found = solve(scaled, Magnitude(0.35).expand()).values
    threshold = scaled.weight.abs().flatten().sort().values[140]
    assert torch.equal(found, torch.where(scaled.weight.abs() >= threshold, scaled.weight, 0.0))
    assert len(set((found == 0).sum(1).tolist())) > 5


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (3, False), (2, True)])
def test_rounding_to_nearest_is_the_nearest_code_of_each_group(bits, symmetric):
    task = problem(7, out=6, width=64)
    found = solve(task, RTN(bits, 16, symmetric).expand())
    levels = 2**bits
    for row in range(6):
        for group in range(4):
            values = task.weight[row, 16 * group : 16 * group + 16]
            scale = float(found.encoded.tensors["scale"][row, group])
            low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
            exact = 2 * max(-low, high) / (levels - 1) if symmetric else (high - low) / (levels - 1)
            assert scale == pytest.approx(exact, rel=2.0**-7)
            zero_point = 0.0 if symmetric else float(found.encoded.tensors["zero_point"][row, group])
            codes = (torch.round(values / scale) + zero_point).clamp(-levels / 2, levels / 2 - 1)
            assert torch.equal(found.encoded.tensors["codes"][row, 16 * group : 16 * group + 16].double(), codes)
            torch.testing.assert_close(found.values[row, 16 * group : 16 * group + 16], (codes - zero_point) * scale)


def test_methods_order_as_their_papers_say_on_correlated_inputs():
    losses: dict[str, float] = {}
    for seed in range(5):
        gram = correlated_gram(seed * 19, 128, unequal=0.4)
        task = Problem(draw(seed, 32, 128), gram, 512)
        presets = {
            "magnitude": Magnitude(),
            "wanda": Wanda(),
            "sparsegpt": SparseGPT(),
            "awp": Solve(AWP(200), TopK()),
            "rtn": RTN(range="mse"),
            "gptq": GPTQ(act_order=False),
            "gptq ordered": GPTQ(),
        }
        for name, preset in presets.items():
            losses[name] = losses.get(name, 0.0) + solve(task, preset.expand()).loss
    assert losses["magnitude"] > losses["wanda"] > losses["sparsegpt"]
    assert losses["wanda"] > losses["awp"]
    assert losses["rtn"] > losses["gptq"] > losses["gptq ordered"]


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_pruning_orders_as_published_at_the_same_scope(sparsity):
    """128 correlated inputs: magnitude by row, Wanda, SparseGPT, and exact least squares on Wanda's mask."""
    losses: dict[str, float] = {}
    for seed in range(4):
        task = Problem(draw(seed, 24, 128), correlated_gram(seed * 19, 128, unequal=0.4), 512)
        solutions = {
            "magnitude": solve(task, Treatment(Round(), TopK(sparsity))),
            "wanda": solve(task, Wanda(sparsity).expand()),
            "sparsegpt": solve(task, SparseGPT(sparsity).expand()),
            "awp": solve(task, Solve(AWP(200), TopK(sparsity)).expand()),
        }
        for name, found in solutions.items():
            losses[name] = losses.get(name, 0.0) + found.loss
        solved = best_on_mask(task, solutions["wanda"].values != 0)
        losses["least squares"] = losses.get("least squares", 0.0) + loss(task.weight, solved, task.gram)
    assert losses["magnitude"] > 1.2 * losses["wanda"] and losses["wanda"] > 1.2 * losses["sparsegpt"]
    assert losses["wanda"] > 1.2 * losses["awp"] and losses["wanda"] > 1.2 * losses["least squares"]


def best_on_mask(task: Problem, mask: torch.Tensor) -> torch.Tensor:
    """The normal equations of each row, restricted to what the mask keeps."""
    found = torch.zeros_like(task.weight)
    for row, kept in enumerate(mask):
        at = kept.nonzero()[:, 0]
        found[row, at] = torch.linalg.solve(task.gram[at][:, at], task.gram[at] @ task.weight[row])
    return found


def test_quantizing_orders_as_published():
    """128 correlated inputs, 4 bits in groups of 32: rounding, preconditioned steps from it, GPTQ, GPTQ with the largest inputs first."""
    names = ("rounding", "steps", "gptq", "ordered", "steps from gptq")
    losses = dict.fromkeys(names, 0.0)
    for seed in range(4):
        task = Problem(draw(seed, 24, 128), correlated_gram(seed * 19, 128, unequal=0.7), 512)
        solvers = (Round(), AWP(50, start="nearest"), OBS(), OBS(act_order=True), AWP(50))
        for name, solver in zip(names, solvers, strict=True):
            losses[name] += solver.solve(task, Int(4, 32)).loss
    assert losses["rounding"] > 1.005 * losses["steps"]
    assert losses["steps"] > 1.2 * losses["gptq"] and losses["gptq"] > 1.2 * losses["ordered"]
    assert losses["steps from gptq"] <= losses["ordered"] * (1 + 1e-9)


def test_inputs_of_equal_size_leave_wanda_with_the_smallest_of_each_row_and_sparsegpt_with_those_of_each_block():
    task = replace(problem(9, out=10, width=48), gram=1.7 * torch.eye(48, dtype=torch.float64))
    found = solve(task, Wanda(0.5).expand()).values
    threshold = task.weight.abs().sort(1).values[:, 24:25]
    assert torch.equal(found, torch.where(task.weight.abs() >= threshold, task.weight, 0.0))
    found = solve(task, SparseGPT(0.5, mask_block=16).expand()).values
    for block in range(0, 48, 16):
        part = task.weight[:, block : block + 16]
        expected = torch.where(part.abs() >= part.abs().flatten().sort().values[80], part, 0.0)
        torch.testing.assert_close(found[:, block : block + 16], expected, rtol=1e-12, atol=0)


NOTHING = (
    Magnitude(0.0),
    Wanda(0.0),
    Wanda(pattern="4:4"),
    SparseGPT(0.0),
    SparseGPT(pattern="4:4"),
    Solve(AWP(), TopK(0.0)),
    Solve(AWP(start="nearest"), Unstructured(0.0)),
)


@pytest.mark.parametrize("preset", NOTHING, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_to_prune_leaves_every_bit(preset, dtype):
    task = problem(10, dtype=dtype)
    found = solve(task, preset.expand())
    assert torch.equal(found.values, task.weight)
    assert found.values.numpy().tobytes() == task.weight.numpy().tobytes()
    assert found.loss == 0


ZEROS = (
    *(preset for preset in PRESETS if preset != HQQ()),  # which need not have a zero
    Magnitude(pattern="1:4"),
    SparseGPT(pattern="2:4"),
    Solve(AWP(3), TopK(0.6)),
    Solve(AWP(3), Int(2, 8, False)),
    Solve(AWP(3, start="nearest"), Both(NM(), Int(3, 16))),
    Solve(OBS(), Both(Unstructured(0.5, 16), Int(3, 16, False))),
    Solve(OBS(), Int(2, 0, False), BAQ()),
)


@pytest.mark.parametrize("preset", ZEROS, ids=str)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_are_positive_and_the_encoding_gives_the_same_bytes(preset, held, dtype):
    task = problem(11, out=12, width=64, dtype=dtype, unequal=1.5)
    task = replace(task, weight=task.weight.float().to(dtype))
    treatment = preset.expand()
    if held:
        treatment = replace(treatment, target=hold(treatment.target, draw(12, 12, 64) > 0))
    found = solve(task, treatment)
    zeros = found.values == 0
    if held or preset.name != "gptq":
        assert int(zeros.sum()) > 10
    assert not bool(torch.signbit(found.values[zeros]).any())
    assert found.encoded.decode().numpy().tobytes() == found.values.float().numpy().tobytes()


@pytest.mark.parametrize("preset", [RTN(), GPTQ(), Wanda(), Wanda(pattern="2:4"), SparseGPT(pattern="2:4")], ids=str)
def test_stacked_matrices_get_what_each_would_get_alone(preset):
    task = problem(8, out=20, width=64)
    assert not preset.expand().alone
    together = solve(task, preset.expand()).values
    apart = [solve(replace(task, weight=task.weight[rows]), preset.expand()).values for rows in (slice(0, 7), slice(7, 20))]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-9)


def test_rows_that_compete_are_not_stacked():
    for preset in (Magnitude(), SparseGPT(), Solve(AWP(), Both(Unstructured(), Int())), Solve(OBS(), Int(3, 0, False), BAQ())):
        assert preset.expand().alone


def test_impossible_settings_are_refused_in_words():
    for build, words in [
        (lambda: GPTQ(bits=9), "gptq: bits"),
        (lambda: RTN(group_size=-1), "rtn: group_size"),
        (lambda: Wanda(1.0), "wanda: sparsity"),
        (lambda: Wanda(pattern="2 of 4"), "wanda: pattern"),
        (lambda: SparseGPT(damping=0.0), "sparsegpt: damping"),
        (lambda: Solve(OBS(act_order=True), NM()), "act_order"),
        (lambda: Solve(OBS(), Int(4), BAQ()), "asymmetric grid"),
        (lambda: SparseGPT(pattern="5:4").expand(), "n_m"),
        (lambda: Wanda(pattern="2:4", share=Farms()), "n_m has no share of zeros that could differ"),
        (lambda: Solve(OBS(), Int(), OWL()), "int has no share of zeros that could differ"),
        (lambda: Magnitude(share=BAQ()), "asymmetric grid"),
    ]:
        with pytest.raises(InputError, match=words):
            build()
