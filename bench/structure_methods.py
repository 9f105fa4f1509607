"""Methods that choose what goes, each beside the baselines of its paper: DGMR, SparseSSM, Olica, SVD-LLM, Fisher-weighted
SVD and SliceGPT.

Usage: python bench/structure_methods.py [digits] [distilled] [states] [mixers] [language] [second]     (all, if none is named)
Writes bench/results/structure_methods.json.

    digits     neurons of the vision transformer of training/digits: DGMR against norms and a draw, with and without the same refit
    distilled  the same after the distillation of DGMR's paper, each choice with and without the refit before it, from one seed
    states     the Mamba of training/mamba: half of the decays switched off, half of the places of the state removed, projections pruned
    mixers     the same model, everything in its mixers pruned to 50 % and 70 %: SparseSSM whole and in its parts
    language   the model inside the package at 20 % and 33 % fewer parameters, embeddings counted: Olica, SliceGPT, FLAP, SVDs
    second     the same on shakespeare-1m, which nothing was tuned on (bench/second_model.py)
    slices     on both, SliceGPT's one rotation for the whole model beside one for each norm, whose matrices on skip connections count

Results are judged on held-out windows or images; differences are paired, one by one, and negative where the first is better: an interval
that holds 0 means that neither is. Nothing is trained after cutting but for `distilled`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from judge import BUILD, HERE, RESULTS, Judge, beside, figures, logits_of
from published_slices import Sliced, width
from safetensors.torch import load_file
from second_model import shakespeare

import thrifty
from thrifty.base.anatomy import Anatomy
from thrifty.measure.hidden import RowScores, score_classes
from thrifty.measure.intervals import mean_interval, ratio_interval
from thrifty.measure.language import WindowScores, causal_targets, score_windows
from thrifty.runtime.load import load
from thrifty.structure.dgmr import refitted
from thrifty.structure.magnitude_units import MagnitudeUnits
from thrifty.structure.random_units import RandomUnits
from thrifty.structure.sparse_ssm import SparseSSM
from thrifty.weights.allocate.sparse_ssm_share import SparseSSMShare

HOME = BUILD / "structure-methods"
DIGITS, MAMBA = HERE / "models" / "digits-vit", HERE / "models" / "python-mamba"
IMAGES, WINDOWS, TOKENS = 256, 24, 128
RATIOS = (0.5, 0.75)
SEEDS, STEPS, BATCH = (0,), 120, 32
RESULT = RESULTS / "structure_methods.json"


@dataclass(frozen=True)
class NormsRefitted(MagnitudeUnits):
    """Neurons by norm, with the refit of DGMR."""

    name: ClassVar[str] = "norms_refitted"
    needs = frozenset({"gram"})
    calibrated = True

    def compensate(self, view, cuts, seen):
        return refitted(view, cuts, seen, 1e-4)


@dataclass(frozen=True)
class DrawRefitted(RandomUnits):
    """Neurons at random, with the refit of DGMR."""

    name: ClassVar[str] = "draw_refitted"
    needs = frozenset({"gram"})
    calibrated = True

    def compensate(self, view, cuts, seen):
        return refitted(view, cuts, seen, 1e-4)


@dataclass(frozen=True)
class LargestDecays(SparseSSM):
    """The other way round: entries of large |A_log| go."""

    name: ClassVar[str] = "largest_decays"

    def _worth(self, scan, a_log, count):
        return -a_log.abs()


@dataclass(frozen=True)
class DrawnDecays(SparseSSM):
    """Entries at random."""

    name: ClassVar[str] = "drawn_decays"

    def _worth(self, scan, a_log, count):
        return torch.rand(a_log.shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class OtherWayRound(SparseSSMShare):
    """Projections that read more give up more."""

    name: ClassVar[str] = "other_way_round"

    def score(self, look):
        return -super().score(look)


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        for part in PARTS[name]():
            found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            found[name] = part
            RESULTS.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n")


def made(model: Path, step: Mapping[str, Any], rows: dict[str, torch.Tensor], name: str = "result", **more: Any) -> tuple[Path, dict]:
    """(the folder of one step, its certificate). more: `then`, what comes after it in one chain; `seed`."""
    out, then = HOME / name, more.pop("then", [])
    shutil.rmtree(out, ignore_errors=True)
    return out, thrifty.compress(model, {"steps": [dict(step), *then]}, rows, out=out, speed=False, **more)


def compared(scores: Mapping[str, Any], ours: Mapping[str, tuple[str, ...]], described: Any, minus: Any) -> dict:
    """Each result, and the difference of some from others."""
    differences = {f"{name} minus {other}": minus(scores[name], scores[other]) for name, others in ours.items() for other in others}
    print(json.dumps({name: described(found) for name, found in scores.items()}, indent=1), flush=True)
    return {"results": {name: described(found) for name, found in scores.items()}, "differences": differences}


# -- neurons of a vision transformer -----------------------------------------------------------------------------------

CHOICES = {
    "norms": {"magnitude_units": {}},
    "draw": {"random_units": {}},
    "dgmr": {"dgmr": {"refit": False}},
    "norms, refitted": {"norms_refitted": {}},
    "draw, refitted": {"draw_refitted": {}},
    "dgmr, refitted": {"dgmr": {}},
}
"""Ways to choose neurons, without and with the same refit."""


def _images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(images to calibrate and train on, held-out images, their labels)."""
    sys.path.insert(0, str(HERE.parent / "training" / "digits"))
    from train import load

    (images, _), (held_out, labels) = load("train"), load("held-out")
    return images, held_out, labels


def digits() -> Iterator[dict]:
    """What was found so far, after every ratio."""
    images, held_out, labels = _images()
    expected = _classes(DIGITS, held_out)
    steps = {
        **CHOICES,
        "dgmr weighted, refitted": {"dgmr": {"by": "weighted"}},
        "dgmr by activations, refitted": {"dgmr": {"by": "activations"}},
        "dgmr by outputs, refitted": {"dgmr": {"by": "outputs"}},
    }
    others = ("norms, refitted", "draw, refitted")
    pairs = {"dgmr": ("norms", "draw"), **dict.fromkeys(list(steps)[5:], others)}
    rows = {"pixel_values": images[:IMAGES]}
    found: dict[str, Any] = {"images": {"calibration": IMAGES, "held out": len(labels)}}
    for ratio in RATIOS:
        scores = {}
        for name, step in steps.items():
            ((method, settings),) = step.items()
            folder, _ = made(DIGITS, {method: {"cut": ["neurons"], "ratio": ratio, **settings}}, rows)
            scores[name] = score_classes(expected, _classes(folder, held_out), labels)
        found[f"{ratio:.0%} of the neurons"] = compared(scores, pairs, _of_images, _between_images)
        yield found


def distilled() -> Iterator[dict]:
    """What was found so far, after every ratio. All images of the training split are used, none of their labels."""
    images, held_out, labels = _images()
    expected = _classes(DIGITS, held_out)
    pairs = {name: tuple(name.replace("dgmr", other) for other in ("norms", "draw")) for name in ("dgmr", "dgmr, refitted")}
    pairs["dgmr, refitted"] += ("dgmr",)
    training = {"distill_features": {"steps": STEPS, "batch": BATCH}}
    found: dict[str, Any] = {
        "images": {"calibration": len(images), "held out": len(labels)},
        "seeds": len(SEEDS),
        "training": training,
    }
    for ratio in RATIOS:
        scores = {}
        for name, step in CHOICES.items():
            ((method, settings),) = step.items()
            cut = {method: {"cut": ["neurons"], "ratio": ratio, **settings}}
            runs = (made(DIGITS, cut, {"pixel_values": images}, then=[training], seed=seed)[0] for seed in SEEDS)
            scores[name] = _mean([score_classes(expected, _classes(folder, held_out), labels) for folder in runs])
        found[f"{ratio:.0%} of the neurons"] = compared(scores, pairs, _of_images, _between_images)
        yield found


def _mean(runs: list[RowScores]) -> RowScores:
    """Of each image, what it is in the mean over runs."""
    return RowScores(*(torch.stack([getattr(run, field.name) for run in runs]).mean(0) for field in fields(RowScores)))


@torch.inference_mode()
def _classes(folder: Path, images: torch.Tensor) -> torch.Tensor:
    return load(folder, dtype=torch.float32)(pixel_values=images).logits


def _of_images(found: RowScores) -> dict:
    return {
        "accuracy": mean_interval(found.right_after).to_json(),
        "relative_error": ratio_interval(found.error, found.norm).to_json(),
        "kl": mean_interval(found.kl).to_json(),
    }


def _between_images(ours: RowScores, theirs: RowScores) -> dict:
    return {
        "errors_difference": mean_interval(theirs.right_after - ours.right_after).to_json(),
        "relative_error_difference": ratio_interval(ours.error - theirs.error, ours.norm).to_json(),
        "kl_difference": mean_interval(ours.kl - theirs.kl).to_json(),
    }


# -- a state-space model -----------------------------------------------------------------------------------------------


class Language:
    """A language model and its windows. steps are scored by name."""

    def __init__(self, model: Path | None, text: dict[str, Path] | None = None) -> None:
        self.judge = Judge(model, windows=WINDOWS, tokens=TOKENS, text=text)
        self.rows = {"input_ids": self.judge.rows["calibration"].inputs["input_ids"]}
        self.made: dict[str, tuple[Path, dict]] = {}

    def scored(self, *steps: Mapping[str, Any]) -> tuple[WindowScores, int]:
        """(scores of the held-out windows, parameters that are left) of steps, each in a run of its own."""
        model: Path = Path(self.judge.model)
        parameters = self.judge.source.anatomy.parameters
        for number, step in enumerate(steps):
            so_far = json.dumps(steps[: number + 1])
            if so_far not in self.made:
                self.made[so_far] = made(model, step, self.rows, f"{Path(self.judge.model).name}-{len(self.made)}")
            model, result = self.made[so_far]
            parameters = result.get("structure", {}).get("parameters", {}).get("after", parameters)
        return self.windows(logits_of(load(model, dtype=torch.float32), self.judge.held_out)), parameters

    def windows(self, after: Iterable[torch.Tensor]) -> WindowScores:
        """Scores of the held-out windows by their logits, eight at a time."""
        parts = zip(self.judge.expected, after, self.judge.held_out.split(8), strict=True)
        return WindowScores.joined([score_windows(left, right, causal_targets(part)) for left, right, part in parts])

    def zeros(self, *steps: Mapping[str, Any]) -> float:
        """The share of zeros in all linears of a result that `scored` made: a share may ask for no whole number of them."""
        tensors = load_file(self.made[json.dumps(steps)][0] / "model.safetensors")
        matrices = [tensors[linear.source] for linear in self.judge.source.anatomy.linears]
        return sum(int((matrix == 0).sum()) for matrix in matrices) / sum(matrix.numel() for matrix in matrices)


def states() -> Iterator[dict]:
    """What was found so far, after every comparison."""
    language = Language(MAMBA)
    found: dict[str, Any] = language.judge.describe()
    by = {name: {"sparse_ssm": {"by": name}} for name in ("weighted", "vote", "error")}
    by |= {"smallest |A_log|": {"sparse_ssm": {"by": "magnitude"}}, "largest |A_log|": {"largest_decays": {}}, "draw": {"drawn_decays": {}}}
    baselines = ("smallest |A_log|", "largest |A_log|", "draw")
    for mode in ("unit_decay", "memoryless"):
        scores = {}
        for name, step in by.items():
            ((method, settings),) = step.items()
            scores[name] = language.scored({method: {"mode": mode, **settings}})[0]
        pairs = {"weighted": baselines, "vote": baselines, "error": (*baselines, "weighted", "vote")}
        found[f"half of the decays, {mode}"] = compared(scores, pairs, figures, beside)
        yield found
    places = {
        "vote": {"sparse_ssm_states": {}},
        "error": {"sparse_ssm_states": {"by": "error"}},
        "norms": {"magnitude_units": {"cut": ["states"], "ratio": 0.5}},
        "draw": {"random_units": {"cut": ["states"], "ratio": 0.5}},
    }
    scores = {name: language.scored(step)[0] for name, step in places.items()}
    found["half of the places"] = compared(scores, {"vote": ("norms", "draw"), "error": ("norms", "draw", "vote")}, figures, beside)
    yield found
    projections = {name: language.scored({name: {}})[0] for name in ("wanda", "sparsegpt")}
    found["half of the projections' weights"] = compared(projections, {"sparsegpt": ("wanda",)}, figures, beside)
    yield found


def mixers() -> Iterator[dict]:
    """What was found so far, after every comparison."""
    language = Language(MAMBA)
    found: dict[str, Any] = language.judge.describe()
    for sparsity in (0.5, 0.7):
        amount = {"sparsity": sparsity}
        decays, inner = {"sparse_ssm": amount}, {"sparse_ssm_inner": amount}
        plain = ({"sparse_ssm": {**amount, "by": "magnitude"}}, {"sparse_ssm_inner": {**amount, "by": "magnitude"}})
        shared = {"sparsegpt": {**amount, "share": "sparse_ssm_share"}}
        whole = {
            "SparseSSM": (decays, inner, shared),
            "SparseSSM, decays by error": ({"sparse_ssm": {**amount, "by": "error"}}, inner, shared),
            "SparseSSM, projections alike": (decays, inner, {"sparsegpt": amount}),
            "magnitude, and SparseGPT": (*plain, {"sparsegpt": amount}),
            "magnitude, and Wanda": (*plain, {"wanda": amount}),
        }
        scores = {name: language.scored(*steps)[0] for name, steps in whole.items()}
        others = tuple(whole)[2:]
        pairs = {"SparseSSM": others, "SparseSSM, decays by error": ("SparseSSM", *others)}
        zeros = {"zeros": {name: language.zeros(*steps) for name, steps in whole.items()}}
        found[f"{sparsity:.0%} of the mixers"] = {**compared(scores, pairs, figures, beside), **zeros}
        yield found
        ways: dict[str, Any] = {"": "uniform", ", shared": "sparse_ssm_share"}
        alone = {f"{by}{words}": {by: {**amount, "share": share}} for by in ("wanda", "sparsegpt") for words, share in ways.items()}
        ways = {"shared the other way round": "other_way_round", "shared, alpha 0.1": {"sparse_ssm_share": {"alpha": 0.1}}}
        alone |= {f"sparsegpt, {words}": {"sparsegpt": {**amount, "share": share}} for words, share in ways.items()}
        alone |= {"inner": inner, "inner by magnitude": plain[1]}
        scores = {name: language.scored(step)[0] for name, step in alone.items()}
        pairs = {
            "wanda, shared": ("wanda",),
            "sparsegpt": ("wanda",),
            "sparsegpt, shared": ("wanda", "sparsegpt", "sparsegpt, shared the other way round"),
            "sparsegpt, shared, alpha 0.1": ("sparsegpt",),
            "inner": ("inner by magnitude",),
        }
        zeros = {"zeros": {name: language.zeros(step) for name, step in alone.items()}}
        found[f"{sparsity:.0%} of the parts"] = {**compared(scores, pairs, figures, beside), **zeros}
        yield found


# -- a language model --------------------------------------------------------------------------------------------------


def language() -> Iterator[dict]:
    """What was found so far, after every ratio."""
    return _language(Language(None))


def second() -> Iterator[dict]:
    """The same on the second model."""
    return _language(Language(*shakespeare()))


def _language(judged: Language) -> Iterator[dict]:
    found: dict[str, Any] = judged.judge.describe()
    for ratio in (0.2, 0.33):
        runs = _language_steps(judged, ratio)
        both = {name: judged.scored(*steps) for name, steps in runs.items()}
        most = (1 - ratio + 0.01) * judged.judge.source.anatomy.parameters
        left_out = {name: pair[1] for name, pair in both.items() if pair[1] > most}  # larger than what they would be held beside
        runs, both = ({name: item for name, item in kept.items() if name not in left_out} for kept in (runs, both))
        scores = {name: pair[0] for name, pair in both.items()}
        others = tuple(name for name in runs if not name.startswith(("olica", "slice_gpt", "fisher_svd")))
        pairs = {"olica": (*others, "olica without patch", "olica as published"), "olica as published": others}
        sliced = tuple(name for name in runs if name.startswith("slice_gpt,"))
        pairs |= {"slice_gpt": (*others, "olica", "olica as published", *sliced), "slice_gpt, published choice": (*others, *sliced[-2:])}
        pairs |= {"fisher_svd": ("svd_llm", "olica")}
        key = f"{ratio:.0%} of the parameters"
        found[key] = {**compared(scores, pairs, figures, beside), "parameters left": {name: pair[1] for name, pair in both.items()}}
        found[key] |= {"too large to compare": left_out} if left_out else {}
        yield found


def _language_steps(judged: Language, ratio: float) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Each way to the same number of parameters; units go in two runs, for a step has one ratio: a group of heads first, then neurons."""
    anatomy = judged.judge.source.anatomy
    first = anatomy.blocks[0]
    size = {linear.role: linear.out_features * linear.in_features for linear in first.linears}
    attention, neurons = (sum(size[role] for role in roles) for roles in (("q", "k", "v", "o"), ("gate", "up", "down")))
    wanted = ratio * anatomy.parameters / len(anatomy.blocks)
    heads = 0.5  # a Llama of this width can have 8 heads or 4, and none between
    best = {"decomposition": "product", "patch": "regression"}
    runs: dict[str, tuple[Mapping[str, Any], ...]] = {
        "olica": ({"olica": {"ratio": ratio, **best}},),
        "olica without patch": ({"olica": {"ratio": ratio, **best, "patch": "none"}},),
        "olica as published": ({"olica": {"ratio": ratio}},),
        "svd_llm": ({"svd_llm": {"ratio": wanted / (attention + neurons)}},),
        "fisher_svd": ({"fisher_svd": {"ratio": wanted / (attention + neurons)}},),
    }
    channels = _channels(anatomy, judged.judge.source.shell_parameters(), ratio)
    plain = {"normalised": False, "refit": False}
    for name, settings in {
        "slice_gpt": {},
        "slice_gpt, not refitted": {"refit": False},
        "slice_gpt, energy as norms see it": {"by": "energy", "refit": False},
        "slice_gpt, published choice": {"by": "energy", **plain},
        "slice_gpt, channels of most energy": {"by": "channels", **plain},
        "slice_gpt, drawn": {"by": "random", **plain},
    }.items():
        runs[name] = ({"slice_gpt": {**channels, **settings}},)
    for name in ("flap", "magnitude_units"):
        runs[f"{name}, neurons"] = ({name: {"cut": ["neurons"], "ratio": wanted / neurons}},)
        of_neurons = {name: {"cut": ["neurons"], "ratio": (wanted - heads * attention) / neurons}}
        runs[f"{name}, heads and neurons"] = ({name: {"cut": ["heads"], "ratio": heads}}, of_neurons)
    return runs


def _channels(anatomy: Anatomy, shell: int, ratio: float) -> dict[str, float]:
    """Settings of `slice_gpt` that leave so many parameters: a head that shares its matrix with the embeddings gets one of its own, so that
    more of the channels must go."""
    return {"ratio": 1 - (1 - ratio) * anatomy.parameters / (anatomy.parameters + anatomy.tied * shell)}


def slices() -> Iterator[dict]:
    """What was found so far, after every ratio and model."""
    found: dict[str, Any] = {}
    for name, judged in (("package", Language(None)), ("shakespeare-1m", Language(*shakespeare()))):
        judge, anatomy = judged.judge, judged.judge.source.anatomy
        shell = judge.source.shell_parameters()
        for ratio in (0.2, 0.33):
            ours, left = judged.scored({"slice_gpt": _channels(anatomy, shell, ratio)})
            kept = width(anatomy.hidden_size, anatomy.parameters, shell, bool(anatomy.tied), len(anatomy.blocks), left)
            sliced = Sliced(load(judge.model, dtype=torch.float32), kept)
            sliced.logits(judged.rows["input_ids"])
            scores = {"one rotation": ours, "a rotation for each norm": judged.windows(map(sliced.logits, judge.held_out.split(8)))}
            case = compared(scores, {"one rotation": ("a rotation for each norm",)}, figures, beside)
            found[f"{ratio:.0%} of the parameters, {name}"] = {**case, "channels": kept, "parameters left": left}
            yield found


PARTS = {
    "digits": digits,
    "distilled": distilled,
    "states": states,
    "mixers": mixers,
    "language": language,
    "second": second,
    "slices": slices,
}


if __name__ == "__main__":
    main()
