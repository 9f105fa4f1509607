"""The texts inside the package: one to calibrate on, which the embedded model was trained on, and one to judge it on, which was held out.

Usage: python texts.py TOKENIZER_FOLDER        (Python 3.11.7; writes both into src/thrifty/data/pycode)
The calibration files are chosen by the hash of their names, so that the same Python gives the same text.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from pathlib import Path

from transformers import AutoTokenizer

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "src" / "thrifty" / "data" / "pycode"
HELD_OUT = set((HERE / "held-out.txt").read_text(encoding="utf-8").split())
END = "<|endoftext|>"
SIZE = 500_000
SMALLEST, LARGEST = 1_000, 20_000


def calibration_files(library: Path) -> list[Path]:
    """Files of 1 to 20 kB of the standard library, its tests left out, in the order of the hash of their names, up to 500 kB."""
    chosen, total = [], 0
    for name in sorted((path.relative_to(library).as_posix() for path in library.rglob("*.py")), key=rank):
        path = library / name
        parts = name.split("/")
        if name in HELD_OUT or parts[0] == "site-packages" or {"test", "tests", "idle_test"} & set(parts):
            continue
        size = path.stat().st_size
        if SMALLEST <= size <= LARGEST and total + size <= SIZE and readable(path):
            chosen.append(path)
            total += size
    return chosen


def rank(name: str) -> str:
    return hashlib.sha256(f"calibration {name}".encode()).hexdigest()


def readable(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def main() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    if sys.version_info[:3] != (3, 11, 7):
        sys.exit(f"this is Python {sys.version.split()[0]}; the texts are those of Python 3.11.7")
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    PACKAGE.mkdir(parents=True, exist_ok=True)
    choices = {"calibration": calibration_files(library), "evaluation": [library / name for name in sorted(HELD_OUT)]}
    for purpose, paths in choices.items():
        text = "".join(END + path.read_text(encoding="utf-8") for path in paths)
        (PACKAGE / f"{purpose}.txt").write_text(text, encoding="utf-8")
        tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        digest = hashlib.sha256(text.encode()).hexdigest()
        print(f"{purpose}: {len(paths)} files, {len(text.encode())} bytes, {tokens} tokens, sha256 {digest}")


if __name__ == "__main__":
    main()
