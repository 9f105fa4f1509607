"""More text of the kind that the embedded model knows: the standard library of this Python, without what the model is judged on."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

from judge import BUILD

HELD_OUT = Path(__file__).parent.parent / "training" / "embedded" / "held-out.txt"
SIZE = 12_000_000


def library() -> Path:
    """A file of 12 MB of it, about four million tokens; its modules in a random order that is always the same."""
    held_out = set(HELD_OUT.read_text(encoding="utf-8").split())
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    names = [name for name in names if name not in held_out and not name.startswith("site-packages/")]
    random.Random(0).shuffle(names)
    text = "".join((root / name).read_text(encoding="utf-8", errors="ignore") for name in names)[:SIZE]
    BUILD.mkdir(exist_ok=True)
    path = BUILD / "library.txt"
    path.write_text(text, encoding="utf-8")
    return path
