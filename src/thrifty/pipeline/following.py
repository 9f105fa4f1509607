"""The pass in which what a model predicts is followed back through it before anything is decided: made once, and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from thrifty.base import events
from thrifty.base.anatomy import Block
from thrifty.base.store import write_json
from thrifty.data import Rows
from thrifty.pipeline.walk import Walk

Found = TypeVar("Found")


def followed(
    walk: Walk,
    rows: int,
    kept: Path,
    title: str,
    follow: Callable[[Rows], Iterator[tuple[Block, Found]]],
    judge: Callable[[Block, Found], tuple[dict[str, Any], list[str]]],
) -> dict[str, Any]:
    """What such a pass told, from the file `kept` where it was made before: `found`, `unreached` and `seconds`.

    rows: calibration rows, the first ones, that are followed. follow: all blocks, with what is found at each. judge: what is to be known of
    a block, by name, and the names of what the loss of no row changes with.
    """
    if not kept.exists():
        assert walk.calibration is not None
        began, found, unreached = time.perf_counter(), {}, []
        first = walk.calibration.select(0, min(rows, walk.calibration.rows))
        with events.task(title, len(walk.source.anatomy.blocks)) as advance:
            for count, (block, here) in enumerate(follow(first)):
                advance(count, block.path)
                known, missing = judge(block, here)
                found |= known
                unreached += missing
                advance(count + 1, block.path)
        walk.source.check_unchanged()
        write_json(kept, {"seconds": time.perf_counter() - began, "found": found, "unreached": unreached})
    told: dict[str, Any] = json.loads(kept.read_text())
    return told
