"""What a run ran on, and how much memory it took: recorded with every result, for times mean nothing without it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from thrifty.base.memory import peak_rss_bytes, rss_bytes, status_bytes
from thrifty.base.native import loaded

LIBRARIES = ("thrifty", "torch", "transformers", "tokenizers", "safetensors", "compressed-tensors", "gguf", "numpy", "diffusers")
_CLEAR = Path("/proc/self/clear_refs")
_GROUP = Path("/sys/fs/cgroup")


def hardware() -> dict[str, Any]:
    """CPU, cores, memory, threads and GPU of this machine.

    Keys: cpu, cpu_capability (the vector instructions torch uses; results may differ in the last bit between kinds), cores (of the
    machine), usable_cores (those this process may use), ram_bytes, threads (torch), compiled (C of this package that this process uses;
    torch does what is missing, and its sums differ in the last bits), cuda (device names), system.
    """
    return {
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "ram_bytes": _ram(),
        "threads": torch.get_num_threads(),
        "compiled": loaded(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.machine()}",
    }


def free_device_bytes(device: str) -> int:
    """What this process can still have of a device's memory, with what torch keeps there unused; 0 for the processor."""
    if device == "cpu":
        return 0
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class PeakMemory:
    """Peak resident memory of a `with` block.

    Linux counts the peak anew from the beginning of the block (`own` is then True), so imports and earlier work are told apart. Elsewhere,
    and where /proc/self/clear_refs may not be written, the peak is that of the whole process so far and `own` is False.

        with PeakMemory() as memory:
            work()
        memory.peak_bytes, memory.start_bytes
    """

    def __init__(self) -> None:
        self.own = False
        self.start_bytes = 0
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self.own = _reset_peak()
        self.start_bytes = rss_bytes()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.peak_bytes = self.read()

    def read(self) -> int:
        """The peak up to now."""
        return (status_bytes("VmHWM") if self.own else 0) or peak_rss_bytes()


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return bool(status_bytes("VmHWM"))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_bytes() -> int:
    """Memory that a process could still take: what the system calls available, and what the limit of its group leaves."""
    found = [_ram()]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        found.append(int((_GROUP / "memory.max").read_text()) - int((_GROUP / "memory.current").read_text()))
    return max(0, min(found))


def _ram() -> int:
    """Memory of the machine, or as much of it as the process's group may have; 0 where neither is known."""
    found = []
    with suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # no such group, or "max": no limit
        found.append(int((_GROUP / "memory.max").read_text()))
    return min(found, default=0)
