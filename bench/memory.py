"""Peak memory is set by the widest block, not by the depth: the same run on 8 and on 32 identical blocks.

Usage: python bench/memory.py            (writes bench/results/memory.json; needs about 10 GB of disk and several minutes)
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RECIPE = "{evaluation: {samples: 8, tokens: 256}, steps: [{gptq: {bits: 4, group_size: 128}}]}"
SHAPE = ["--hidden", "2048", "--inner", "5632", "--heads", "32", "--key-value-heads", "4", "--vocabulary", "2048"]


def measure(layers: int) -> dict[str, float]:
    """The plan's and the run's own figures for a checkpoint with this many blocks."""
    model = HERE / "build" / f"llama-2048-{layers}"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "random_llama.py", model, *SHAPE, "--layers", str(layers)], check=True)
    source = Path(__import__("thrifty").__file__).parent / "data" / "pycode" / "model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, model / name)
    out = HERE / "build" / f"memory-{layers}"
    shutil.rmtree(out, ignore_errors=True)
    request = [str(model), "--recipe", RECIPE, "--samples", "8", "--tokens", "256", "--json"]
    plan = run(["plan", *request, "--out", str(out)])
    result = run(["compress", *request, "--out", str(out)])
    stored = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {
        "layers": layers,
        "checkpoint_bytes": stored,
        "result_bytes": written,
        "planned_output_bytes": plan["cost"]["output"],
        "planned_memory_bytes": plan["cost"]["memory"],
        "planned_seconds": plan["cost"]["seconds"],
        "peak_rss_bytes": result["peak_rss_bytes"],
        "seconds": result["seconds"],
    }


def run(arguments: list[str]) -> dict:
    """One thrifty command; its JSON."""
    done = subprocess.run([sys.executable, "-m", "thrifty", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    rows = [measure(layers) for layers in (8, 32)]
    shallow, deep = rows
    summary = {
        "processor": platform.processor() or platform.machine(),
        "rows": rows,
        "peak_ratio_32_to_8": deep["peak_rss_bytes"] / shallow["peak_rss_bytes"],
        "peak_to_checkpoint_at_32": deep["peak_rss_bytes"] / deep["checkpoint_bytes"],
    }
    path = HERE / "results" / "memory.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
