"""Break containers in 10,000 ways: each gives a clear error or decodes, without more memory than the file's size times a small constant.

    python bench/fuzz_container.py [--count 10000] [--seed 0]

The changes are those of `tests/export/container/mutations.py`; results/fuzz_container.json holds what came of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.export.container.mutations import WEIGHTS, good_folder, mutated
from tests.export.container.test_container import survives

RESULTS = Path(__file__).parent / "results" / "fuzz_container.json"


def peak() -> int:
    """Bytes of resident memory at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        good_folder(folder)
        content, config = (folder / WEIGHTS).read_bytes(), json.loads((folder / "config.json").read_text())
        survives(folder, "nothing", content, json.dumps(config))
        before, began = peak(), perf_counter()
        outcomes: Counter[str] = Counter()
        for done, weights, text in mutated(content, config, words.count, words.seed):
            refused = survives(folder, done, weights, text)
            for change in set(done.split()):
                outcomes[f"{change} {'refused' if refused else 'decoded'}"] += 1
            outcomes["refused" if refused else "decoded"] += 1
        found = {
            "count": words.count,
            "seed": words.seed,
            "file_bytes": len(content),
            "more_peak_rss_bytes": peak() - before,
            "seconds": round(perf_counter() - began, 1),
            "outcomes": dict(sorted(outcomes.items())),
        }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
