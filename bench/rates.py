"""Rates of their own for matrices that are trained together, by heavy tails, beside one rate for all, at equal steps.

Usage: python bench/rates.py [healing] [codes] [scratch] [--steps 48]       (all, if none is named; writes bench/results/rates.json)

    healing    60 % of the weights pruned by wanda, the rest trained by `distill`, on the model inside the package
    codes      2 bits in groups of 32, trained by `distill`, on the same
    scratch    the vision transformer of training/digits from random weights, on its images and labels, as TempBalance and FARMS are meant

Differences are paired on held-out windows or images, negative where the first is better: an interval that holds 0 means that neither
is. Finished results of the first two are kept in bench/build/rates and scored again, not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from judge import BUILD, HERE, RESULTS, Judge, beside, figures
from torch.nn import functional

import thrifty
from thrifty.measure.hardware import hardware
from thrifty.measure.intervals import mean_interval
from thrifty.tune.farms_rates import FarmsRates
from thrifty.tune.rates import LayerRates
from thrifty.tune.temp_balance import TempBalance

HOME = BUILD / "rates"
RESULT = RESULTS / "rates.json"
DATA = {"calibration": {"samples": 256, "tokens": 96}, "evaluation": {"samples": 2, "tokens": 128}}
LOOKS = 4
"""How often alphas are measured in a training."""
CASES = {
    "healing": {"wanda": {"sparsity": 0.6}},
    "codes": {"solve": {"by": "obs", "into": {"zero_free": {"group_size": 32}}}},
}
PLAIN = "one rate"
SEEDS, EPOCHS = (0, 1), 10


def ways(every: int, side: int) -> dict[str, LayerRates | None]:
    """What differs by matrix in each way, by name. side: of the windows, half of the smallest width, so that every matrix has several."""
    windows = {"every": every, "side": side, "positions": 5}
    return {
        PLAIN: None,
        "temp_balance": TempBalance(every=every),
        "farms_rates": FarmsRates(**windows),
        "farms_rates, 0.6 to 1.4": FarmsRates(**windows, least=0.6, most=1.4),
    }


PAIRS = (
    ("temp_balance", PLAIN),
    ("farms_rates", PLAIN),
    ("farms_rates, 0.6 to 1.4", PLAIN),
    ("farms_rates, 0.6 to 1.4", "temp_balance"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*CASES, "scratch", []])
    parser.add_argument("--steps", type=int, default=48)
    arguments = parser.parse_args()
    for name in arguments.parts or [*CASES, "scratch"]:
        part = scratch() if name == "scratch" else language(name, arguments.steps)
        found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps(found | {name: {**part, "hardware": hardware()}}, indent=2) + "\n")
        print(json.dumps(part, indent=1), flush=True)


def language(case: str, steps: int) -> dict[str, Any]:
    """One case on the model inside the package, in every way."""
    judge = Judge(windows=32, tokens=256)
    scores, rows = {}, []
    for name, rates in ways(steps // LOOKS, judge.source.anatomy.hidden_size // 2).items():
        tuner: dict[str, Any] = {"steps": steps}
        if rates is not None:
            tuner["rates"] = {rates.name: rates.settings()}
        out = HOME / f"{case} {steps} {name}"
        result = thrifty.compress(recipe={**DATA, "steps": [CASES[case], {"distill": tuner}]}, out=out, speed=False)
        scores[name] = judge.scores(out)
        rows.append({"name": name, **figures(scores[name]), "seconds": result["seconds"]})
        print(name, rows[-1]["kl"], flush=True)
    differences = {f"{one} minus {other}": beside(scores[one], scores[other]) for one, other in PAIRS}
    return {
        **judge.describe(),
        "calibration": DATA["calibration"],
        "step": CASES[case],
        "steps": steps,
        "rows": rows,
        "differences": differences,
    }


# -- training from random weights --------------------------------------------------------------------------------------


def scratch() -> dict[str, Any]:
    """Losses and hits of held-out images, in the mean over seeds."""
    sys.path.insert(0, str(HERE.parent / "training" / "digits"))
    from train import load

    held_out, answers = load("held-out")
    losses, hits = {}, {}
    for name, rates in ways(len(load("train")[0]) // 32, 64).items():  # every epoch
        runs = [_outputs(rates, seed, held_out) for seed in SEEDS]
        losses[name] = torch.stack([functional.cross_entropy(logits, answers, reduction="none").double() for logits in runs]).mean(0)
        hits[name] = torch.stack([(logits.argmax(1) == answers).double() for logits in runs]).mean(0)
        print(name, float(losses[name].mean()), float(hits[name].mean()), flush=True)
    rows = [
        {"name": name, "loss": mean_interval(losses[name]).to_json(), "accuracy": mean_interval(hits[name]).to_json()} for name in losses
    ]
    differences = {
        f"{one} minus {other}": {
            "loss_difference": mean_interval(losses[one] - losses[other]).to_json(),
            "errors_difference": mean_interval(hits[other] - hits[one]).to_json(),
        }
        for one, other in PAIRS
    }
    return {"images": len(answers), "seeds": len(SEEDS), "epochs": EPOCHS, "rows": rows, "differences": differences}


def _outputs(rates: LayerRates | None, seed: int, held_out: torch.Tensor) -> torch.Tensor:
    """Logits of the held-out images after a training as in training/digits/train.py, but for its rates and its length."""
    from train import SHAPE, load, moved
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    images, labels = load("train")
    model = ViTForImageClassification(ViTConfig(**SHAPE)).train()
    layers = {name: module.weight for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)}
    named = {name: parameter for name, parameter in model.named_parameters()}
    groups = [{"params": [value], "name": name, "weight_decay": 0.05 if value.ndim > 1 else 0.0} for name, value in named.items()]
    optimizer = torch.optim.AdamW(groups)
    per_epoch = len(images) // 32
    steps, factors = EPOCHS * per_epoch, {}
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images))
        if rates is not None and step % rates.every == 0:
            factors = rates.factors({name: rates.alpha(weight.detach()) for name, weight in layers.items()})
        chosen = order[step % per_epoch * 32 :][:32]
        rate = 1.5e-3 * min((step + 1) / 100, 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item()))
        for group in optimizer.param_groups:
            group["lr"] = rate * factors.get(group["name"].removesuffix(".weight").removesuffix(".bias"), 1.0)
        loss = functional.cross_entropy(model(pixel_values=moved(images[chosen])).logits, labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        return model.eval()(pixel_values=held_out).logits


if __name__ == "__main__":
    main()
