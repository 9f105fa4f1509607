"""What the comparisons with peers share: one call in a process of its own, and the judge of what came out of it.

A judge holds a model, its calibration windows in a file that every peer reads, and held-out windows on which all results are scored
against the original, window by window: an interval of a difference that holds 0 means that neither is better.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
BUILD = HERE / "build"
RESULTS = HERE / "results"
# Every call of a comparison runs on these, with one thread each.
CORES = sorted(os.sched_getaffinity(0))[:2]


def call(who: str, model: Path, windows: Path, out: Path | None, *words: str) -> dict:
    """One call in a process of its own; what it printed. Peers run in their own environments (bench/environments.sh)."""
    ours = who == "thrifty"
    python = sys.executable if ours else str(BUILD / f"env-{who}" / "bin" / "python")
    script = HERE / "peers" / ("thrifty_call.py" if ours else f"{who.replace('-', '_')}.py")
    place = ["--out", str(out)] if out is not None else []
    environment = os.environ | {"OMP_NUM_THREADS": str(len(CORES))}
    if not ours:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, script, model, windows, *place, *words], capture_output=True, text=True, env=environment, preexec_fn=_pin
    )
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _pin() -> None:
    os.sched_setaffinity(0, CORES)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the result of a call that is only timed; it is gone before and afterwards."""
    out = BUILD / "cost"
    shutil.rmtree(out, ignore_errors=True)
    yield out
    shutil.rmtree(out, ignore_errors=True)


def kept(key: str, measure: Callable[[], dict]) -> dict:
    """What was measured under this key, from bench/build where it was measured before: so a run that was stopped goes on."""
    place = BUILD / "calls" / f"{key}.json"
    if not place.exists():
        found = measure()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found))
        print(key, json.dumps(found), file=sys.stderr, flush=True)
    return json.loads(place.read_text())


def random_model(name: str) -> Path:
    """The folder of a random Llama of 314 million parameters, made when it is not there."""
    model = BUILD / name
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "random_llama.py", model], check=True)
    return model


def random_windows(model: Path, count: int) -> Path:
    """The file of `count` windows of 512 random tokens that a model knows."""
    windows = BUILD / f"windows-{model.name}-{count}.safetensors"
    config = json.loads((model / "config.json").read_text())
    tokens = torch.randint(3, min(2048, config["vocab_size"]), (count, 512), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": tokens}, windows)
    return windows


class Judge:
    """A model (None: the one inside the package), and as many calibration as evaluation windows of some tokens.

    text: the file of each purpose (none: what comes with the package).
    """

    def __init__(self, model: Path | None = None, windows: int = 128, tokens: int = 512, text: dict[str, Path] | None = None) -> None:
        from thrifty.data import default_model, load_rows
        from thrifty.models import open_model

        self.model = model or default_model()
        self.source = open_model(self.model)
        self.rows = {
            purpose: load_rows(
                folder=self.model,
                config=self.source.config,
                kind="causal_lm",
                purpose=purpose,
                text=(str(text[purpose]),) if text else (),
                samples=windows,
                tokens=tokens,
                seed=0,
            )
            for purpose in ("calibration", "evaluation")
        }
        self.windows = BUILD / ("windows-embedded.safetensors" if model is None else f"windows-{model.name}.safetensors")
        BUILD.mkdir(exist_ok=True)
        save_file({"input_ids": self.rows["calibration"].inputs["input_ids"].contiguous()}, self.windows)
        self.held_out = self.rows["evaluation"].inputs["input_ids"]

    @cached_property
    def expected(self) -> list[Tensor]:
        """The original's logits, by batches of held-out windows."""
        from thrifty.runtime.load import load

        return logits_of(load(self.model, dtype=torch.float32), self.held_out)

    def describe(self) -> dict:
        """The head of a result file."""
        return {
            "model": self.source.anatomy.architecture,
            **{
                purpose: {
                    "rows": int(rows.inputs["input_ids"].shape[0]),
                    "tokens": int(rows.inputs["input_ids"].numel()),
                    "digest": rows.digest,
                }
                for purpose, rows in self.rows.items()
            },
        }

    def results(self, peer: str, requests: dict[str, dict[str, tuple[str, ...]]]) -> tuple[dict, dict]:
        """(scores, costs of the call) of thrifty and `peer` by (who, request). requests: name -> who -> words of the call."""
        scores, costs = {}, {}
        for name, words in requests.items():
            for who in ("thrifty", peer):
                out = BUILD / "quality" / who / name.replace(" ", "-").replace("%", "percent")
                shutil.rmtree(out, ignore_errors=True)
                costs[who, name] = call(who, self.model, self.windows, out, *words[who])
                if who != "thrifty":
                    drop_scheme(out)
                scores[who, name] = self.scores(out)
        return scores, costs

    def scores(self, folder: Path, whole: bool = True):
        """Scores of each window, paired with the original's. whole: whether every matrix must have changed."""
        from thrifty.measure.language import WindowScores, causal_targets, score_windows
        from thrifty.runtime.load import load

        if whole:
            self._check_changed(folder)
        after = logits_of(load(folder, dtype=torch.float32), self.held_out)
        parts = zip(self.expected, after, self.held_out.split(8), strict=True)
        return WindowScores.joined([score_windows(left, right, causal_targets(part)) for left, right, part in parts])

    def _check_changed(self, folder: Path) -> None:
        """Peers have been seen to write the original weights, or to leave matrices out, without an error."""
        keys = {linear.source for linear in self.source.anatomy.linears}
        same = []
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                names = [key for key in opened.keys() if key in keys]  # noqa: SIM118 (no mapping)
                same += [key for key in names if torch.equal(opened.get_tensor(key).float(), self.source.read(key).float())]
        if same:
            raise SystemExit(f"{folder}: {len(same)} matrices are those of the original, first {same[0]}")


def logits_of(model: torch.nn.Module, tokens: Tensor) -> list[Tensor]:
    """Logits by batches of windows."""
    with torch.inference_mode():
        return [model(input_ids=part).logits for part in tokens.split(8)]


def drop_scheme(folder: Path) -> None:
    """Peers write rounded weights as plain ones and leave their scheme in the config, which readers would apply again."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))


def earlier(result: str, steps: int) -> tuple[dict[str, dict], dict]:
    """(rows by name, differences) that a result file holds of as many steps: what stays when only some rows are made again."""
    path = RESULTS / result
    found = json.loads(path.read_text()) if path.exists() else {}
    found = found if found.get("steps") == steps else {}
    return {row["name"]: row for row in found.get("rows", ())}, dict(found.get("differences", {}))


def figures(found) -> dict:
    """Perplexity and KL divergence of one result."""
    from thrifty.measure.intervals import mean_interval, perplexity

    return {
        "perplexity_before": perplexity(found.nll_before, found.tokens).to_json(),
        "perplexity": perplexity(found.nll_after, found.tokens).to_json(),
        "kl": mean_interval(found.kl, found.tokens).to_json(),
    }


def beside(ours, theirs) -> dict:
    """Ours minus theirs on the same windows; negative is better for us."""
    from thrifty.measure.intervals import mean_interval, perplexity_difference

    return {
        "perplexity_difference": perplexity_difference(theirs.nll_after, ours.nll_after, ours.tokens).to_json(),
        "kl_difference": mean_interval(ours.kl - theirs.kl, ours.tokens).to_json(),
    }


def verdict(name: str, peer: str, scores: dict) -> dict:
    """One request, thrifty and the peer."""
    ours, theirs = scores["thrifty", name], scores[peer, name]
    return {"request": name, "thrifty": figures(ours), peer: figures(theirs), f"thrifty minus {peer}": beside(ours, theirs)}


def best(bits: int, names: list[str], peer: str, scores: dict) -> dict:
    """The better request of each by KL divergence, against each other."""
    chosen = {who: min(names, key=lambda name: float(scores[who, name].kl.sum())) for who in ("thrifty", peer)}
    ours, theirs = scores["thrifty", chosen["thrifty"]], scores[peer, chosen[peer]]
    return {"bits": bits, "settings": chosen, f"thrifty minus {peer}": beside(ours, theirs)}


def write(name: str, found: dict) -> None:
    """Into bench/results, and onto the screen."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
