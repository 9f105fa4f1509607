"""GGUF files in llama.cpp: their perplexity beside that of the same weights here, on the same windows.

Usage: python bench/against_llama_cpp.py (writes bench/results/perplexity_llama_cpp.json; needs bench/environments.sh llama-cpp)

First the model inside the package, then a small model of each family (`small_families.py`), whose tokenizer must also cut text there as it
does here.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_families import FAMILIES, LENGTH, write_model
from torch.nn.functional import kl_div

import thrifty
from thrifty.data import default_model, embedded_text
from thrifty.data.embedded import END_OF_FILE
from thrifty.data.load import load_rows
from thrifty.data.rows import Rows
from thrifty.data.tokenizer import load_tokenizer
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
FEW_LEVELS = {
    "TQ1_0": "{solve: {by: obs, into: {ternary: {group_size: 256}}}}",
    "TQ2_0": "{solve: {by: obs, into: {int: {bits: 2, group_size: 256, range: mse}}}}",
    "Q2_K": "{solve: {by: obs, into: {zero_free: {group_size: 256}}}}",
}
ANYWHERE = {"Q4_1, hqq": "hqq: {group_size: 32}", "Q2_K, hqq": "hqq: {bits: 2, group_size: 256, range: mse}"}
K_QUANTS = {name: f"{{solve: {{by: descent, into: {{k_quant: {{type: {name}}}}}}}}}" for name in ("Q3_K", "Q4_K", "Q5_K", "Q6_K")}
"""These, as the few levels, for widths that 256 divides, as those of the model inside the package."""
HELD = {name: "thrifty" for name in (*ANYWHERE, *K_QUANTS)}
"""What is not in compressed-tensors before it is exported."""
PACKAGES = ("torch", "transformers", "compressed-tensors", "gguf")
ODD_TEXTS = (
    "Grüße aus Łódź, 東京 🙂",
    "  two spaces first",
    "\ttabs\t\tand\r\nline ends\n\n\n",
    "don't WE'LL 1234567 x=3.14",
    "a  b   c    d",
    "",
)
TEXTS, LETTERS = 40, 3000


def main() -> None:
    recipes = RECIPES | FEW_LEVELS | ANYWHERE | K_QUANTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(recipes), help="the file keeps its other rows of the same windows, and its families"
    )
    asked = parser.parse_args().only
    path = HERE / "results" / "perplexity_llama_cpp.json"
    model = default_model()
    rows = windows_of(model, samples=64, tokens=512)
    before = json.loads(path.read_text()) if asked else {}
    known = {row["format"]: row for row in before.get("rows", ()) if before["digest"] == rows.digest}
    chosen = {name: recipes[name] for name in asked or recipes}
    known |= {row["format"]: row for row, _ in compressed(model, "gguf", rows, recipes=chosen)}
    table = [known[name] for name in ("BF16", *recipes) if name in known]
    families = before.get("families") or [family(name) for name in FAMILIES]
    summary = {
        "versions": {**{name: version(name) for name in PACKAGES}, "llama-cpp-python": llama_cpp_version()},
        "windows": rows.rows,
        "tokens": rows.tokens,
        "digest": rows.digest,
        "rows": table,
        "families": families,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def family(name: str) -> dict[str, Any]:
    """A small model of the family: what its files compute there, and how its texts are cut."""
    folder = BUILD / "families" / name.replace(" ", "-").lower()
    shutil.rmtree(folder, ignore_errors=True)
    write_model(FAMILIES[name], folder)
    texts = [*ODD_TEXTS, *(text[:LETTERS] for text in embedded_text("evaluation").split(END_OF_FILE)[1 : TEXTS + 1])]
    tokenizer = load_tokenizer(folder)
    here = [tokenizer(text)["input_ids"] for text in texts]
    found = list(compressed(folder, f"families/{folder.name}", windows_of(folder, samples=32, tokens=LENGTH), texts))
    there = found[0][1]["ids"]
    return {
        "family": name,
        "model_class": type(open_model(folder).config).__name__.removesuffix("Config"),
        "texts": len(texts),
        "text_tokens": sum(map(len, here)),
        "texts_cut_alike": sum(ours == theirs for ours, theirs in zip(here, there, strict=True)),
        "rows": [row for row, _ in found],
    }


def windows_of(model: Path, samples: int, tokens: int) -> Rows:
    config = open_model(model).config
    return load_rows(folder=model, config=config, kind="causal_lm", purpose="evaluation", samples=samples, tokens=tokens)


def compressed(model: Path, stem: str, rows: Rows, texts: list[str] | None = None, recipes: dict[str, str] = RECIPES) -> Any:
    """(figures, the peer's answer) of the model as it is and of each recipe's result."""
    yield compare("BF16", model, BUILD / f"{stem}-BF16.gguf", rows, texts)
    for name, recipe in recipes.items():
        folder = BUILD / f"{stem}-{name.replace(', ', '-')}"
        shutil.rmtree(folder, ignore_errors=True)
        # Calibration and judging by thrifty itself need no more than what is compared here.
        held = HELD.get(name, "compressed-tensors")
        thrifty.compress(model, recipe, out=folder, format=held, tokens=min(512, rows.inputs["input_ids"].shape[1]))
        yield compare(name, folder, folder.with_name(f"{folder.name}.gguf"), rows)


def compare(name: str, folder: Path, file: Path, rows: Rows, texts: list[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Perplexity of a folder in float32 here and of its GGUF file there, and the divergence of what is predicted there from here."""
    file.unlink(missing_ok=True)
    written = export_result(folder, "gguf", file)
    answer = llama_cpp(file, rows, texts)
    loaded, tokens = thrifty.load(folder, torch.float32), rows.inputs["input_ids"]
    there = load_file(file.with_suffix(".logits"))["logits"]
    scores, divergence = [], 0.0
    with torch.inference_mode():
        for part, theirs in zip(tokens.split(8), there.split(8), strict=True):
            logits = loaded(input_ids=part).logits
            scores.append(score_one(logits, causal_targets(part)))
            ours = logits[:, :-1].double().log_softmax(-1)
            divergence += float(kl_div(theirs.double().log_softmax(-1), ours, log_target=True, reduction="sum"))
    ours = summarise_one(WindowScores.joined(scores))["perplexity"]["value"]
    theirs = answer["perplexity"]
    figures = {"format": name, "file_bytes": written["bytes"], "here": ours, "llama_cpp": theirs, "ratio": theirs / ours}
    return {**figures, "kl": divergence / answer["tokens"]}, answer


def llama_cpp(file: Path, rows: Rows, texts: list[str] | None) -> dict[str, Any]:
    """What llama.cpp finds on the windows and in the texts; the logits lie beside the file."""
    windows = file.with_suffix(".windows")
    save_file({"input_ids": rows.inputs["input_ids"].contiguous()}, windows)
    words = [python(), HERE / "peers" / "llama_cpp.py", "perplexity", file, windows, "--logits", file.with_suffix(".logits")]
    words += ["--threads", torch.get_num_threads(), "--plain-buffers"]
    if texts is not None:
        listed = file.with_suffix(".texts")
        listed.write_text(json.dumps(texts), encoding="utf-8")
        words += ["--texts", listed]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    if not math.isfinite(answer["perplexity"]):
        raise SystemExit(f"{file}: llama.cpp finds a perplexity of {answer['perplexity']}")
    return answer


def python() -> Path:
    return BUILD / "env-llama-cpp" / "bin" / "python"


def llama_cpp_version() -> str:
    ask = "from importlib.metadata import version; print(version('llama-cpp-python'))"
    return subprocess.run([python(), "-c", ask], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
