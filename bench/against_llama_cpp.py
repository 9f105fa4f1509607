"""GGUF files in llama.cpp: their perplexity beside that of the same weights here, on the same windows.

Usage: python bench/against_llama_cpp.py (writes bench/results/perplexity_llama_cpp.json; needs bench/environments.sh llama-cpp)
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors.torch import save_file

import thrifty
from thrifty.data import default_model
from thrifty.data.load import load_rows
from thrifty.export.formats import export_result
from thrifty.measure.language import WindowScores, causal_targets, score_one, summarise_one
from thrifty.models import open_model

HERE = Path(__file__).parent
BUILD = HERE / "build"
RECIPES = {
    "Q4_0": "gptq: {bits: 4, group_size: 32, symmetric: true}",
    "Q4_1": "gptq: {bits: 4, group_size: 32, symmetric: false}",
    "Q8_0": "rtn: {bits: 8, group_size: 32, symmetric: true}",
}


def main() -> None:
    model = default_model()
    config = open_model(model).config
    rows = load_rows(folder=model, config=config, kind="causal_lm", purpose="evaluation", text=(), samples=64, tokens=512, seed=0)
    windows = BUILD / "gguf-windows.safetensors"
    save_file({"input_ids": rows.inputs["input_ids"].contiguous()}, windows)
    table = [compare("BF16", model, windows, rows.inputs["input_ids"])]
    for name, recipe in RECIPES.items():
        folder = BUILD / f"gguf-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        thrifty.compress(model, recipe, out=folder)
        table.append(compare(name, folder, windows, rows.inputs["input_ids"]))
    summary = {"windows": rows.rows, "tokens": rows.tokens, "digest": rows.digest, "rows": table}
    path = HERE / "results" / "perplexity_llama_cpp.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def compare(name: str, folder: Path, windows: Path, tokens: torch.Tensor) -> dict[str, float | str]:
    """Perplexity of a folder in float32 here, and of its GGUF file there."""
    file = BUILD / f"gguf-{name}.gguf"
    file.unlink(missing_ok=True)
    written = export_result(folder, "gguf", file)
    words = [BUILD / "env-llama-cpp" / "bin" / "python", HERE / "peers" / "llama_cpp.py", "perplexity", file, windows]
    words += ["--threads", torch.get_num_threads(), "--plain-buffers"]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])["perplexity"]
    loaded = thrifty.load(folder, torch.float32)
    with torch.inference_mode():
        scores = [score_one(loaded(input_ids=part).logits, causal_targets(part)) for part in tokens.split(8)]
    ours = summarise_one(WindowScores.joined(scores))["perplexity"]["value"]
    return {"format": name, "file_bytes": written["bytes"], "here": ours, "llama_cpp": theirs, "ratio": theirs / ours}


if __name__ == "__main__":
    main()
