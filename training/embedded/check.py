"""What the embedded model writes: the share of its completions that parse.

Usage: python check.py [MODEL]            (a model folder; the model inside the package if left out)
The prompts are the first three lines of top-level functions and classes of the held-out text; each is continued greedily by 64 tokens.
"""

from __future__ import annotations

import ast
import sys

import torch
from transformers import AutoTokenizer

import thrifty
from thrifty.data import default_model, parses
from thrifty.data.text import END_OF_FILE, embedded_text

PROMPTS, LINES, NEW = 200, 3, 64


def prompts() -> list[str]:
    """The beginnings of definitions, in the order of the text."""
    found = []
    for file in embedded_text("evaluation").split(END_OF_FILE):
        try:
            body = ast.parse(file).body
        except SyntaxError:
            continue
        lines = file.splitlines(keepends=True)
        long = (node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.end_lineno - node.lineno > LINES)
        found += ["".join(lines[node.lineno - 1 : node.lineno - 1 + LINES]) for node in long]
    return found[:PROMPTS]


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else default_model()
    model, tokenizer = thrifty.load(folder), AutoTokenizer.from_pretrained(default_model())
    good = 0
    chosen = prompts()
    for prompt in chosen:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        good += parses(prompt, tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :]))
    print(f"{good} of {len(chosen)} completions parse")


if __name__ == "__main__":
    main()
