"""What is lost when units and blocks are removed: every way of choosing against the lot, on the model inside the package.

Usage: python bench/structure.py           (writes bench/results/structure.json)
       python bench/structure.py speed     (writes bench/results/structure_speed.json; wants a machine that does nothing else)
       python bench/structure.py channels  (writes bench/results/structure_speed_channels.json; likewise)

All are calibrated and judged on the same windows; differences are paired, window by window. Blocks are also removed by hand, one and two at
a time in every combination, without any of our code for it: the best that a choice could do. Speed is that of a random Llama of 314 million
parameters, dense, with half of its neurons and heads, and with 30 % fewer blocks; and dense again beside half of the channels of its hidden
states, which embeddings and head have, too, and beside half of all parameters: neurons, heads, and as many channels as are left to go.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import torch
from judge import BUILD, HERE, Judge, beside, figures, logits_of, write
from safetensors.torch import load_file

import thrifty
from thrifty.measure.language import WindowScores, causal_targets, score_windows
from thrifty.measure.speed import measure_speed
from thrifty.models import open_model
from thrifty.runtime.load import load, load_source

WINDOWS, TOKENS = 32, 256
CASES = {
    "neurons 20 %": {"cut": ["neurons"], "ratio": 0.2},
    "neurons 33 %": {"cut": ["neurons"], "ratio": 0.33},
    "heads 50 %": {"cut": ["heads"], "ratio": 0.5},
}
METHODS = {
    "magnitude_units": {},
    "wanda_units": {},
    "flap": {},
    "flap without bias": {"compensate_bias": False},
    "taylor_units": {},
    "taylor_units mixed": {"order": "mixed"},
}
LOTS = 3
"""Draws of random units; the one with the median KL divergence is what others are compared with."""

BLOCKS = {"short_gpt": (0.25, 0.5), "efficient_vla": (0.25, 0.5)}
PROMPT, NEW, ROUNDS = 512, 64, 7


NARROW = {"magnitude_units": {"ratio": 0.5, "cut": ["neurons", "heads"]}}
SPEED = {"half the width": [NARROW], "70 % of the blocks": [{"short_gpt": {"ratio": 0.3}}]}
CHANNELS = {
    "half of the channels": [{"slice_gpt": {"ratio": 0.5, "by": "energy", "refit": False}}],
    "half of the parameters": [NARROW, {"slice_gpt": {"ratio": 0.171875, "by": "energy", "refit": False}}],
}


def main() -> None:
    judge = Judge(windows=WINDOWS, tokens=TOKENS)
    rows = [row for case, settings in CASES.items() for row in units(judge, case, settings)]
    found = {**judge.describe(), "units": rows, "blocks": blocks(judge), "blocks by hand": by_hand(judge)}
    write("structure.json", found)


def units(judge: Judge, case: str, settings: dict) -> list[dict]:
    """One row a method, at one ratio; each minus the lot, and FLAP minus magnitude and Wanda."""
    lots = [scored(judge, case, {"random_units": settings}, seed)[0] for seed in range(LOTS)]
    lots.sort(key=lambda scores: float(scores.kl.sum()))
    lot = lots[LOTS // 2]
    rows = [{"case": case, "method": "random_units", **figures(lot), "kl of each draw": [figures(one)["kl"]["value"] for one in lots]}]
    found = {}
    for name, own in METHODS.items():
        found[name], result = scored(judge, f"{case} {name}", {name.partition(" ")[0]: {**settings, **own}})
        structure = {key: [value["before"], value["after"]] for key, value in result["structure"].items()}
        rows.append(
            {"case": case, "method": name, **figures(found[name]), "minus the lot": beside(found[name], lot), "structure": structure}
        )
    for other in ("magnitude_units", "wanda_units", "flap without bias"):
        rows[3][f"minus {other}"] = beside(found["flap"], found[other])
    return rows


def blocks(judge: Judge) -> list[dict]:
    """What the two methods remove, and what that costs."""
    rows = []
    for name, ratios in BLOCKS.items():
        for ratio in ratios:
            scores, result = scored(judge, f"{name} {ratio}", {name: {"ratio": ratio}})
            kept = result["structure"]["text (blocks)"]
            rows.append({"method": name, "blocks": [kept["before"], kept["after"]], "removed": removed(judge, result), **figures(scores)})
    return rows


def removed(judge: Judge, result: dict) -> list[int]:
    """Which blocks are gone, told by their weights."""
    tensors = load_file(Path(result["out"]) / "model.safetensors")
    kept = [tensor for key, tensor in sorted(tensors.items()) if key.endswith("q_proj.weight")]
    source = judge.source
    originals = [source.read(f"{block.path}.self_attn.q_proj.weight") for block in source.anatomy.blocks]
    return [index for index, tensor in enumerate(originals) if not any(torch.equal(tensor, other) for other in kept)]


def by_hand(judge: Judge) -> list[dict]:
    """Every choice of one or two blocks, taken out of the list of transformers' own model."""
    rows = []
    count = len(judge.source.anatomy.blocks)
    for size in (1, 2):
        for gone in itertools.combinations(range(count), size):
            model = load(judge.model, dtype=torch.float32)
            model.model.layers = torch.nn.ModuleList(layer for index, layer in enumerate(model.model.layers) if index not in gone)
            for index, layer in enumerate(model.model.layers):
                layer.self_attn.layer_idx = index
            model.config.num_hidden_layers = count - size
            rows.append({"removed": list(gone), **figures(against(judge, logits_of(model, judge.held_out)))})
    return rows


def scored(judge: Judge, case: str, step: dict, seed: int = 0) -> tuple[WindowScores, dict]:
    """(scores of each held-out window, the certificate) of one step; a result that is there already is taken."""
    out = BUILD / "structure" / f"{case} {seed}".replace(" ", "-").replace("%", "percent")
    result = thrifty.compress(judge.model, {"steps": [step]}, judge.rows["calibration"], out=out, seed=seed, speed=False)
    print(case, seed, flush=True)
    return against(judge, logits_of(load(out, dtype=torch.float32), judge.held_out)), result


def against(judge: Judge, after: list[torch.Tensor]) -> WindowScores:
    """The scores of logits against the original's."""
    parts = zip(judge.expected, after, judge.held_out.split(8), strict=True)
    return WindowScores.joined([score_windows(left, right, causal_targets(part)) for left, right, part in parts])


def speed(cases: dict[str, list[dict]], file: str) -> None:
    """Prefill and decode of the dense model against what each of these lists of steps makes of it, all in turn."""
    dense = BUILD / "random-llama"
    if not dense.exists():
        subprocess.run([sys.executable, HERE / "random_llama.py", dense], check=True)
    source = open_model(dense)
    tokens = torch.randint(3, source.vocabulary, (2, 64), generator=torch.Generator().manual_seed(0))
    models, structure = {"dense": load_source(source)}, {}
    for name, steps in cases.items():
        out = BUILD / f"speed-{name.replace(' ', '-').replace('%', 'percent')}"
        result = thrifty.compress(dense, {"steps": steps}, {"input_ids": tokens}, out=out, force=True, speed=False)
        structure[name] = {key: [value["before"], value["after"]] for key, value in result["structure"].items()}
        models[name] = load(out)
    prompt = torch.randint(3, source.vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    found = measure_speed(models, prompt, new_tokens=NEW, rounds=ROUNDS)
    times = {
        phase: {name: found[f"{phase}_tokens_per_second"][name] / found[f"{phase}_tokens_per_second"]["dense"] for name in cases}
        for phase in ("prefill", "decode")
    }
    write(file, {"model": "random Llama, 314 million parameters", "structure": structure, "times dense": times, **found})


if __name__ == "__main__":
    parts = {("speed",): (SPEED, "structure_speed.json"), ("channels",): (CHANNELS, "structure_speed_channels.json")}
    speed(*parts[tuple(sys.argv[1:])]) if sys.argv[1:] else main()
