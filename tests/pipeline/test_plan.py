"""What a plan says: every architecture is priced by what its blocks really make, and a run then needs what was said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.base.records import Problem, Solution
from thrifty.data import Rows
from thrifty.models import Source, open_model
from thrifty.pipeline.duration import estimate_seconds
from thrifty.pipeline.footprint import Ledger, footprints
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.price import Load
from thrifty.pipeline.probe import block_seconds, probe
from thrifty.pipeline.sample import appetite, sample_widths
from thrifty.pipeline.steps import Work
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.resolve import resolve
from thrifty.weights.base import Target, Treatment
from thrifty.weights.solve.obs import OBS
from thrifty.weights.target.int import Int
from thrifty.weights.target.n_m import NM

BATCH = 2
RECIPE = "{steps: [{awq: {}}, {gptq: {bits: 4, group_size: 0}}]}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_block_of_every_architecture_is_priced_and_timed(name: str, tmp_path: Path) -> None:
    source = open_model(tiny(name, tmp_path / "model"))
    rows = Rows.of(inputs(name, BATCH, 24))
    found = footprints(source, rows.select(0, 1).inputs, torch.float32, BATCH)
    blocks = source.anatomy.blocks
    assert found.keys() == {block.path for block in blocks}
    for block in blocks:
        here = found[block.path]
        reached = {stage.reads.name for stage in block.stages}
        assert here.stages.keys() == reached, "every stage is reached in a pass without values"
        assert all(0 <= alive <= here.peak for alive in here.stages.values())
        assert 0 < here.row <= here.peak and 0 <= here.heap <= here.peak

    setting = Setting(batch=BATCH)
    assert block_seconds(source, rows, torch.float32, setting).keys() == found.keys()


@pytest.mark.parametrize("name", ["llama", "olmoe", "vit"])
def test_more_data_takes_longer(name: str, tmp_path: Path) -> None:
    source = open_model(tiny(name, tmp_path / "model"))
    rows = Rows.of(inputs(name, BATCH, 24))
    work, setting = _work(source), Setting(batch=BATCH)
    rates = probe(source, work, setting, rows, rows, tmp_path)
    blocks = source.anatomy.blocks
    assert rates.calibration.keys() == rates.evaluation.keys() == {block.path for block in blocks}
    assert rates.gram.keys() == {stage.reads.width for block in blocks for stage in block.stages}
    once, twice = (estimate_seconds(source, work, setting, _load(rows, factor), rates) for factor in (1, 100))
    assert 0 < once < twice


def _work(source: Source) -> Work:
    return Work.of(resolve(complete(parse_recipe(RECIPE)), source.anatomy))


def _load(rows: Rows, factor: int) -> Load:
    count, tokens = rows.rows * factor, rows.tokens // rows.rows
    return Load(count, tokens, count, tokens, 96)


def test_a_ledger_counts_what_is_alive_at_once() -> None:
    wide, narrow = torch.empty(100, 10, device="meta"), torch.empty(10, 100, device="meta")
    hidden = torch.empty(1, 10, device="meta")
    ledger = Ledger([wide, narrow, hidden], small=100)
    with ledger:
        first = nn.functional.linear(hidden, wide)  # 400 bytes
        second = first.relu()  # 400 more, both alive
        del first
        view = second.view(100)  # nothing of its own
        third = nn.functional.linear(view, narrow)  # 40 bytes
    assert third.shape == (10,)
    assert ledger.peak == 800 and ledger.now == 440
    assert ledger.heap == 0, "at the peak nothing smaller than 100 bytes was there"


def test_attention_that_a_model_makes_by_itself_is_in_the_price(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, so that they are in memory: [heads, tokens, tokens]; fused attention makes none."""
    found = {}
    for name in ("gemma2", "llama"):
        source = open_model(tiny(name, tmp_path / name))
        path = source.anatomy.blocks[0].path
        found[name] = [footprints(source, inputs(name, 1, length), torch.float32, 1)[path].peak for length in (64, 128)]
    scores = 4 * 128 * 128 * 4
    assert found["llama"][1] == pytest.approx(2 * found["llama"][0], rel=0.01), "grows with the tokens"
    assert found["gemma2"][1] - 2 * found["gemma2"][0] >= scores / 2, "grows with their square"


def test_products_of_ever_new_shapes_do_not_pile_up() -> None:
    """oneDNN makes code for every number of tokens that an expert meets; a thousand of them would be half a gigabyte."""
    script = """
import thrifty, torch
from thrifty.base.memory import return_free_memory
def resident():
    return_free_memory()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
weight = torch.randn(512, 512).bfloat16()
def multiply(start, stop):
    for tokens in range(start, stop):
        torch.nn.functional.linear(torch.randn(tokens, 512).bfloat16(), weight)
multiply(500, 600)
before = resident()
multiply(600, 900)
print((resident() - before) >> 20)
"""
    environment = {name: value for name, value in os.environ.items() if "CAPACITY" not in name}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert int(done.stdout) < 40


MAMBA = {"vocab_size": 96, "hidden_size": 256, "state_size": 16, "num_hidden_layers": 3}


def test_a_run_needs_what_its_plan_says(tmp_path: Path) -> None:
    """Each in a process of its own. Scans hold far more than linears read: without them the price would be a fourth."""
    torch.manual_seed(0)
    transformers.MambaForCausalLM(transformers.MambaConfig(**MAMBA)).save_pretrained(tmp_path / "model")
    planned, used = (json.loads(_apart(action, tmp_path)) for action in ("plan", "compress"))
    assert 0.95 <= planned["memory"] / used["memory"] <= 1.15
    assert planned["output"] == pytest.approx(used["output"], rel=0.01)


SCRIPT = """
import json, sys, torch, thrifty
action, folder = sys.argv[1:]
tokens = torch.randint(3, 96, (24, 256), generator=torch.Generator().manual_seed(0))
words = {"evaluation": {"input_ids": tokens[:8]}, "out": folder + "/out"}
found = getattr(thrifty, action)(folder + "/model", {"steps": [{"rtn": {"group_size": 16}}, ]}, {"input_ids": tokens}, **words)
if action == "plan":
    print(json.dumps({"memory": found.cost.memory, "output": found.cost.output}))
else:
    print(json.dumps({"memory": found["peak_rss_bytes"], "output": found["bytes"]["after"]}))
"""


def _apart(action: str, folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", SCRIPT, action, str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment, timeout=120).stdout.splitlines()[-1]


def test_methods_are_tried_on_widths_that_their_target_takes() -> None:
    """Groups of 96 divide 288, and no power of two that a small problem would have."""
    for target, width in (
        (Int(group_size=96), 288),
        (Int(group_size=32), 64),
        (NM(n=3, m=6), 768),
        (Int(group_size=1024), 2048),
        (None, 8),
    ):
        small, large = sample_widths(target, width)
        assert 256 <= small < large
        for size in (small, large) if target is not None else ():
            target.check(size, size, "weight")
    found = appetite(Treatment(OBS(), Int(group_size=96)), 288)
    assert 2 <= found.alone / 4 < 4, "a factor, a damped copy, and what is on the way from one to the other"
    assert 1 <= found.gram / 4 < 2.5 and 2 <= found.matrix / 4 < 6, "the factor; the error, the values, and both once more"


def test_a_greedy_solver_is_known_for_what_it_holds() -> None:
    """Its memory is found by trying it, so a solver that keeps five copies of the Gram matrix is priced with five."""

    class Hoarder(OBS):
        def solve(self, problem: Problem, target: Target) -> Solution:
            kept = [problem.gram.clone() for _ in range(5)]
            return super().solve(replace(problem, gram=kept[0]), target)

    plain, hoarding = (appetite(Treatment(solver, Int()), 256) for solver in (OBS(), Hoarder()))
    assert hoarding.bytes(64, 256) - plain.bytes(64, 256) == pytest.approx(5 * 4 * 256**2, rel=0.01)
