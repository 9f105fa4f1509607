"""The training text of the embedded model: Python's standard library, tokenised once.

Usage: python prepare.py TOKENIZER_FOLDER        (writes build/train.bin, build/validation.bin and build/manifest.json)
The held-out files are never trained on; one file in sixty, by the hash of its name, only chooses the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from pathlib import Path

import numpy
from transformers import AutoTokenizer

HERE = Path(__file__).parent
HELD_OUT = set((HERE / "held-out.txt").read_text().split())


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    library = Path(sysconfig.get_path("stdlib"))
    parts: dict[str, list[numpy.ndarray]] = {"train": [], "validation": []}
    manifest: dict[str, dict[str, str]] = {"train": {}, "validation": {}}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if name in HELD_OUT or name.startswith("site-packages/"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()
        split = "validation" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 60 == 0 else "train"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        parts[split].append(numpy.array([*ids, end], dtype=numpy.uint16))
        manifest[split][name] = digest
    build = HERE / "build"
    build.mkdir(exist_ok=True)
    for split, pieces in parts.items():
        tokens = numpy.concatenate(pieces)
        tokens.tofile(build / f"{split}.bin")
        print(f"{split}: {len(pieces)} files, {tokens.size} tokens")
    (build / "manifest.json").write_text(json.dumps({"python": sys.version, **manifest}, indent=1))


if __name__ == "__main__":
    main()
