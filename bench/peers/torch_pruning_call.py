"""One call of Torch-Pruning on an image classifier of transformers, timed from the inside. Runs in an environment of its own.

Removes a share of the neurons of every MLP by the norm of their group. Prints one JSON object: seconds of the import, of loading, of
building the graph and pruning, and of saving; peak memory; and which neurons stay in each block.
"""

import argparse
import json
import sys
import time
from pathlib import Path

START = time.perf_counter()

import torch
import torch_pruning
from safetensors.torch import save_file
from torch_pruning.pruner.importance import GroupMagnitudeImportance
from transformers import AutoModelForImageClassification


def peak_bytes() -> int:
    """Peak memory of this program alone; getrusage counts what the process that started it held, too."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def kept_rows(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Which rows of a matrix are left, in order."""
    rows = {row.numpy().tobytes(): place for place, row in enumerate(before)}
    return [rows[row.numpy().tobytes()] for row in after]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    imported = time.perf_counter()
    model = AutoModelForImageClassification.from_pretrained(arguments.model, dtype=torch.float32).eval()
    loaded = time.perf_counter()
    widening = {name: layer for name, layer in model.named_modules() if name.endswith((".intermediate.dense", ".mlp.fc1"))}
    before = {name: layer.weight.detach().clone() for name, layer in widening.items()}
    others = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer not in set(widening.values())]
    config = model.config
    example = {"pixel_values": torch.zeros(1, config.num_channels, config.image_size, config.image_size)}
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        example,
        importance=GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer=None, bias=True),
        pruning_ratio=0.0,
        pruning_ratio_dict=dict.fromkeys(widening.values(), arguments.ratio),
        ignored_layers=others,
        output_transform=lambda out: out.logits,
    )
    pruner.step()
    pruned = time.perf_counter()
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, Path(arguments.out) / "model.safetensors")
    print(
        json.dumps(
            {
                "peer": "Torch-Pruning " + torch_pruning.__version__,
                "import_seconds": imported - START,
                "load_seconds": loaded - imported,
                "prune_seconds": pruned - loaded,
                "save_seconds": time.perf_counter() - pruned,
                "call_seconds": time.perf_counter() - imported,
                "peak_bytes": peak_bytes(),
                "kept": [kept_rows(before[name], layer.weight.detach()) for name, layer in widening.items()],
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
