"""What `thrifty plan` says beside what the run then takes, for a middle-sized random model of each kind.

Usage: python bench/plan.py [MODEL...] [--recipe INLINE]     (writes bench/results/plan.json; several minutes, alone on the machine)

Plan and run are each a process of their own. Memory is the peak resident size; disk is looked at fifty times a second; time is the whole
call, models of this size and half a minute of work each.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hub

import thrifty

HERE = Path(__file__).parent
RECIPE = "{steps: [{gptq: {bits: 4, group_size: 32, symmetric: true}}]}"
VOCABULARY = 4096
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 12}
PICTURE = {**WIDE, "image_size": 224, "patch_size": 16}
GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 256}
ROWS, LENGTH, PICTURES = 64, 512, 48


def llama() -> Any:
    return hub.LlamaForCausalLM(hub.LlamaConfig(**TEXT))


def gemma2() -> Any:
    return hub.Gemma2ForCausalLM(hub.Gemma2Config(**TEXT, **GEMMA))


def gpt2() -> Any:
    return hub.GPT2LMHeadModel(hub.GPT2Config(vocab_size=VOCABULARY, n_embd=768, n_layer=4, n_head=12))


def olmoe() -> Any:
    return hub.OlmoeForCausalLM(hub.OlmoeConfig(**{**TEXT, "intermediate_size": 512}, num_experts=16, num_experts_per_tok=4))


def mamba() -> Any:
    return hub.MambaForCausalLM(hub.MambaConfig(vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=4))


def mamba2() -> Any:
    sizes = {"num_heads": 24, "head_dim": 64, "n_groups": 1, "state_size": 64, "chunk_size": 128}
    return hub.Mamba2ForCausalLM(hub.Mamba2Config(vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=4, **sizes))


def bert() -> Any:
    return hub.BertForMaskedLM(hub.BertConfig(vocab_size=VOCABULARY, **WIDE))


def vit() -> Any:
    return hub.ViTForImageClassification(hub.ViTConfig(**PICTURE, num_labels=100))


def clip() -> Any:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
    text = {**sizes, "vocab_size": VOCABULARY, "max_position_embeddings": 77, "eos_token_id": 2}
    return hub.CLIPModel(hub.CLIPConfig(text_config=text, vision_config=dict(PICTURE), projection_dim=512))


def llava() -> Any:
    vision = hub.CLIPVisionConfig(**PICTURE)
    return hub.LlavaForConditionalGeneration(
        hub.LlavaConfig(vision_config=vision, text_config=hub.LlamaConfig(**TEXT), image_token_index=VOCABULARY - 1)
    )


MODELS: dict[str, Callable[[], Any]] = {made.__name__: made for made in (llama, gemma2, gpt2, olmoe, mamba, mamba2, bert, vit, clip, llava)}


def inputs(name: str, seed: int) -> dict[str, torch.Tensor]:
    """Calibration or evaluation rows for the model of this name."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(PICTURES, 3, 224, 224, generator=generator)
    tokens = torch.randint(3, VOCABULARY - 1, (ROWS, LENGTH), generator=generator)
    if name == "vit":
        return {"pixel_values": pixels}
    if name == "clip":
        tokens = tokens[:PICTURES, :64]
        tokens[:, -1] = 2
        return {"input_ids": tokens, "pixel_values": pixels}
    if name == "llava":
        image = torch.full((PICTURES // 2, 196), VOCABULARY - 1)
        tokens = tokens[: PICTURES // 2]
        return {"input_ids": torch.cat([tokens[:, :2], image, tokens[:, 2:200]], dim=1), "pixel_values": pixels[: PICTURES // 2]}
    return {"input_ids": tokens}


def work(action: str, name: str, recipe: str, folder: Path) -> None:
    """In a process of its own: plan or run, figures to standard output."""
    data = {"calibration": inputs(name, 0), "evaluation": {key: value[:16] for key, value in inputs(name, 1).items()}}
    request = {"model": folder, "recipe": recipe, **data, "out": folder.with_name(f"{name}-out")}
    if action == "plan":
        began = time.perf_counter()
        cost = thrifty.plan(**request).to_json()["cost"]
        kept = {key: cost[key] for key in ("memory", "disk", "output", "seconds", "parts")}
        print(json.dumps({**kept, "planning_seconds": time.perf_counter() - began}))
        return
    began = time.perf_counter()
    with Watch(request["out"]) as watch:
        found = thrifty.compress(**request, speed=False)
    stored = sum(path.stat().st_size for path in request["out"].glob("*.safetensors"))
    seconds = time.perf_counter() - began
    used = {"memory": found["peak_rss_bytes"], "disk": watch.most, "output": stored, "seconds": seconds}
    print(json.dumps({**used, "phases": found["phases"]}))


class Watch:
    """The most bytes that a folder held while the body ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most = folder, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._done.wait(0.02):
            held = 0
            for path in self.folder.rglob("*") if self.folder.exists() else ():
                try:
                    held += path.stat().st_size if path.is_file() else 0
                except FileNotFoundError:
                    continue
            self.most = max(self.most, held)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


def measure(name: str, recipe: str) -> dict[str, Any]:
    """Plan and run of one model; ratios planned to used."""
    folder = HERE / "build" / "plan" / name
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        MODELS[name]().to(torch.bfloat16).save_pretrained(folder)
    shutil.rmtree(folder.with_name(f"{name}-out"), ignore_errors=True)
    planned, used = (call(action, name, recipe, folder) for action in ("plan", "run"))
    shutil.rmtree(folder.with_name(f"{name}-out"), ignore_errors=True)
    ratios = {key: planned[key] / used[key] for key in ("memory", "disk", "output", "seconds")}
    return {"planned": planned, "used": used, "planned_to_used": ratios}


def call(action: str, name: str, recipe: str, folder: Path) -> dict[str, Any]:
    """`work` in a new process."""
    words = [sys.executable, __file__, "--work", action, name, "--recipe", recipe, "--folder", str(folder)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--work", choices=("plan", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.work:
        return work(words.work, words.models[0], words.recipe, words.folder)
    rows = {}
    for name in words.models or MODELS:
        rows[name] = measure(name, words.recipe)
        print(name, {key: round(value, 3) for key, value in rows[name]["planned_to_used"].items()}, file=sys.stderr)
    summary = {"processor": platform.processor() or platform.machine(), "recipe": words.recipe, "models": rows}
    if not words.models:
        (HERE / "results" / "plan.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
