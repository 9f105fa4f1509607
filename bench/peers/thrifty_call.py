"""One call of thrifty on given token windows, timed from the inside: the counterpart of the peers' scripts.

Prints one JSON object: seconds of the import, of the call without the certificate's measurements, and of its phases, peak memory before and
after, and where the result was written. Quality is measured elsewhere, so no evaluation rows are given.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

START = time.perf_counter()

import torch
from safetensors.torch import load_file

import thrifty
from thrifty.api.request import Request, prepare
from thrifty.pipeline.run import run


def recipe(arguments: argparse.Namespace) -> dict:
    """The same request as the peer's."""
    if arguments.method == "sparsegpt":
        return {"steps": [{"sparsegpt": {"sparsity": arguments.sparsity}}]}
    settings = {"bits": arguments.bits, "group_size": arguments.group_size, "symmetric": not arguments.asymmetric}
    return {"steps": [{"gptq": settings}]}


def peak_bytes() -> int:
    """Peak memory of this program alone; getrusage counts what the process that started it held, too."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("windows", help="safetensors file with input_ids [rows, tokens]")
    parser.add_argument("--method", choices=["gptq", "sparsegpt"], default="gptq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    arguments = parser.parse_args()
    imported = time.perf_counter() - START
    windows = load_file(arguments.windows)["input_ids"]
    job = prepare(Request(arguments.model, recipe(arguments), calibration={"input_ids": windows}))
    before = peak_bytes()
    start = time.perf_counter()
    certificate = run(job, arguments.out, force=True, finish=lambda folder, certificate: None)
    call = time.perf_counter() - start
    print(
        json.dumps(
            {
                "peer": f"thrifty {thrifty.__version__}",
                "import_seconds": imported,
                "call_seconds": call,
                "total_seconds": time.perf_counter() - START,
                "phases": certificate.phases,
                "peak_before_bytes": before,
                "peak_bytes": peak_bytes(),
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
