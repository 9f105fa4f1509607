"""A quarter of the neurons of vision transformers removed by the norm of their group, beside Torch-Pruning: which stay, and the time.

Usage: bench/environments.sh torch-pruning
       python bench/against_torch_pruning.py        (writes bench/results/torch_pruning.json)

Models: the small one in bench/models, and a random one of the size of ViT-Base. Each call is a process of its own on the same two cores,
from a model folder to a model folder, imports apart, nothing judged; calls take turns, medians count. Torch-Pruning leaves the weights of a
model that it has in memory; it has no config for them. Here tensors are hashed, written twice so that a stop anywhere costs a block at
most, and read back, and a block of each kind is compared with the original's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

START = time.perf_counter()

from judge import BUILD, CORES, write  # noqa: E402

HOME = BUILD / "torch_pruning"
RATIO = 0.25
TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
        return
    rows = []
    for model in (Path(__file__).parent / "models" / "digits-vit", large()):
        turns = {"thrifty": [], "Torch-Pruning": []}
        for _ in range(TURNS):
            for who, calls in turns.items():
                calls.append(call(who, model))
        rows.append({"model": model.name, **beside(turns)})
    from thrifty.measure.hardware import hardware

    write("torch_pruning.json", {"ratio": RATIO, "turns": TURNS, "hardware": hardware(), "load": os.getloadavg(), "rows": rows})


def beside(turns: dict[str, list[dict]]) -> dict:
    """What both took, and whether the same neurons stayed."""
    seconds = {who: statistics.median(found["call_seconds"] for found in calls) for who, calls in turns.items()}
    kept = {who: calls[0]["kept"] for who, calls in turns.items()}
    return {
        "seconds": seconds,
        "ratio": seconds["thrifty"] / seconds["Torch-Pruning"],
        "import_seconds": {who: statistics.median(found["import_seconds"] for found in calls) for who, calls in turns.items()},
        "peak_bytes": {who: max(found["peak_bytes"] for found in calls) for who, calls in turns.items()},
        "neurons": sum(map(len, kept["thrifty"])),
        "same": kept["thrifty"] == kept["Torch-Pruning"],
        "peer": {name: calls[0][name] for calls in [turns["Torch-Pruning"]] for name in ("peer", "load_seconds", "prune_seconds")},
    }


def call(who: str, model: Path) -> dict:
    """One call in a process of its own."""
    out = HOME / who / model.name
    shutil.rmtree(out, ignore_errors=True)
    peer = [BUILD / "env-torch-pruning/bin/python", Path(__file__).parent / "peers/torch_pruning_call.py", model, "--ratio", str(RATIO)]
    words = [sys.executable, __file__, "--one", model, out] if who == "thrifty" else [*peer, "--out", out]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(CORES))}
    if who != "thrifty":
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, CORES)
    )
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def one(model: str, out: str) -> dict:
    """thrifty's turn."""
    import torch

    from thrifty.api.request import Request, prepare
    from thrifty.pipeline.run import run

    imported = time.perf_counter()
    step = {"magnitude_units": {"ratio": RATIO, "cut": ["neurons"], "multiple_of": 1}}
    size = json.loads((Path(model) / "config.json").read_text())
    image = {"pixel_values": torch.zeros(1, size["num_channels"], size["image_size"], size["image_size"])}
    run(prepare(Request(model, {"steps": [step]}, calibration=image)), Path(out), finish=lambda *_: None)
    ended = time.perf_counter()
    from safetensors import safe_open

    with safe_open(Path(model) / "model.safetensors", "pt") as before, safe_open(Path(out) / "model.safetensors", "pt") as after:
        names = [name for name in after.keys() if name.endswith((".intermediate.dense.weight", ".mlp.fc1.weight"))]  # noqa: SIM118
        names.sort(key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
        kept = []
        for name in names:
            rows = {row.numpy().tobytes(): place for place, row in enumerate(before.get_tensor(name))}
            kept.append([rows[row.numpy().tobytes()] for row in after.get_tensor(name)])
    peak = 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"import_seconds": imported - START, "call_seconds": ended - imported, "peak_bytes": peak, "kept": kept}


def large() -> Path:
    """A random model of the size of ViT-Base, made once."""
    folder = BUILD / "vit-base"
    if not (folder / "config.json").exists():
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        ViTForImageClassification(ViTConfig()).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
