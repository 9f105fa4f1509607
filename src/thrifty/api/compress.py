"""Compress, price, and repeat."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from thrifty.api.pages import write_pages
from thrifty.api.request import Request, prepare
from thrifty.base.errors import GateError, InputError, RunError
from thrifty.base.events import note
from thrifty.base.lock import alone
from thrifty.base.store import as_path, file_digest
from thrifty.measure.certificate import Certificate, made_of_bytes
from thrifty.measure.hardware import free_bytes, free_device_bytes, hardware, rss_bytes
from thrifty.pipeline.duration import estimate_seconds, estimate_shaping
from thrifty.pipeline.folder import RunFolder
from thrifty.pipeline.job import Job
from thrifty.pipeline.on_device import device_memory, parts_of_job
from thrifty.pipeline.plan import Cost
from thrifty.pipeline.price import output_bytes, price, price_shaping
from thrifty.pipeline.probe import probe
from thrifty.pipeline.run import run
from thrifty.pipeline.speed import memory_needed
from thrifty.report.numbers import size

DEFAULT_OUT = "thrifty-result"


@dataclass(frozen=True)
class Plan:
    """What a run would do and need. refusals: why it cannot run here, each with the number and what to change."""

    model: str
    out: str
    recipe: str
    setting: dict[str, Any]
    cost: Cost
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is needed of a device only where there is one."""
        found = asdict(self)
        if self.setting["device"] == "cpu":
            del found["cost"]["device_memory"]
        return found


def compress(
    model: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    calibration: Any = None,
    *,
    evaluation: Any = None,
    bits: int | None = None,
    out: str | Path | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    device: Literal["cpu", "cuda"] | None = None,
    force: bool = False,
    verify: Literal["exact", "full"] = "exact",
    max_perplexity_increase: str | float | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    speed: bool = True,
    format: Literal["compressed-tensors", "thrifty"] = "compressed-tensors",
    check: Literal["safety"] | None = None,
    pairs: str | Path | None = None,
) -> dict[str, Any]:
    """Make a model smaller and prove what was lost.

    model: folder or hub id; the model inside the package where none is named. recipe: file, name of a shipped recipe, inline text or plain
    values; `bits` (2 to 8) takes the shipped recipe that suits, 4 is the default. calibration: text files, chats as jsonl, a folder of
    images, data set names, or tensors by argument name, each [rows, ...]; `evaluation` as tensors goes with them. samples, tokens: number
    and length of the calibration windows. out: the result folder, `thrifty-result` by default; an unfinished run is resumed, a finished one
    returned. verify: `exact` reads every tensor back, `full` also loads the result in transformers and compares logits.
    max_perplexity_increase: by how much perplexity may rise at most, as a share of
    the original's: `5%` or 0.05. speed: whether both models are timed at the
    end, where they fit into the memory that the run took. format: `thrifty` stores every result at its own rate, in a container that
    needs `import thrifty` to be loaded in transformers; by default what no public format holds is stored dense. check: `safety` asks both
    models requests that should be refused, and harmless twins, and tells in the certificate what changed; both are in memory for that.
    pairs: a file of such requests, {"refuse": .., "answer": ..} a line; those inside the package by default.

    Returns the certificate as plain values, with `model` and `out`. Raises InputError for a request that cannot be right (nothing is
    written), RunError for one that fails on the way (finished work is kept), GateError when more is lost than allowed.
    """
    request = Request(
        model,
        recipe,
        bits,
        calibration,
        evaluation,
        samples,
        tokens,
        seed,
        device,
        max_perplexity_increase,
        allow_pickle,
        trust_remote_code,
        speed,
        format,
        check,
        pairs,
    )
    place = as_path(out or DEFAULT_OUT)
    job = prepare(request)
    RunFolder(place).free(force)
    RunFolder(place).spare(job.source.folder, request.files(job), gated=job.gate is not None)
    with alone(place):
        return _compress(job, place, force, verify == "full")


def _compress(job: Job, place: Path, force: bool, full: bool) -> dict[str, Any]:
    resumed = (place / ".run").exists() or (place / "certificate.json").exists()  # what it needs of the disk is there in part

    def fits() -> None:
        cost = _cost(job)
        refusals = _refusals(job, cost, place, disk=not resumed)
        if refusals:
            raise InputError(f"this run does not fit here: {'; '.join(refusals)}")
        free = free_bytes() + rss_bytes()
        if job.setting.device == "cpu" and hardware()["ram_bytes"] and cost.memory > free:
            note(f"this run needs {size(cost.memory)} of memory, and {size(free)} are free now; close other programs")

    folder = RunFolder(place)
    made = not force and any((at / "certificate.json").exists() for at in (folder.out, folder.rejected))
    if not made:
        fits()  # before the model is hashed; else only if what is there turns out to be something else
    quantized = any(link.work.quantizes for link in job.links)
    pages = partial(write_pages, place.absolute().name, job.source.folder, quantized)
    certificate = run(job, place, force=force, finish=pages, full=full, fits=fits if made else lambda: None)
    return certificate.result(place)


def plan(
    model: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    calibration: Any = None,
    *,
    evaluation: Any = None,
    bits: int | None = None,
    out: str | Path | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    device: Literal["cpu", "cuda"] | None = None,
    max_perplexity_increase: str | float | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    format: Literal["compressed-tensors", "thrifty"] = "compressed-tensors",
    check: Literal["safety"] | None = None,
    pairs: str | Path | None = None,
) -> Plan:
    """Say what `compress` with the same words would do and need, without reading weights. Takes a few seconds to time this machine;
    the time leaves out what `check` takes.

    Raises InputError as `compress` does.
    """
    request = Request(
        model,
        recipe,
        bits,
        calibration,
        evaluation,
        samples,
        tokens,
        seed,
        device,
        max_perplexity_increase,
        allow_pickle,
        trust_remote_code,
        format=format,
        check=check,
        pairs=pairs,
    )
    place = as_path(out or DEFAULT_OUT)
    job = prepare(request)
    cost = _cost(job)  # before the probe takes memory of its own
    cost = replace(cost, seconds=sum(_seconds(link, place) for link in job.links))
    warnings = tuple(said for link in job.links for said in _foreseen_warnings(link))
    return Plan(job.name, str(place), job.recipe, job.setting.to_json(), cost, tuple(_refusals(job, cost, place)), warnings)


def _foreseen_warnings(job: Job) -> tuple[str, ...]:
    if job.shaping is not None:
        return job.shaping.warnings
    return (*job.packing.warnings, *job.work.idle(job.source.anatomy))


def _cost(job: Job) -> Cost:
    """All but the time; of a chain, the memory of its hungriest link, and disk for the results of all."""
    resident = rss_bytes()
    costs = [_cost_of_one(link, resident) for link in job.links]
    widest = max(costs, key=lambda cost: cost.memory)
    kept = [sum(cost.output for cost in costs[:position]) + cost.disk for position, cost in enumerate(costs)]
    there = max(cost.device_memory for cost in costs)
    widest = replace(widest, disk=max(kept), output=costs[-1].output, device_memory=there)
    if not job.safety or job.original.anatomy.kind != "causal_lm":
        return widest
    asking = memory_needed(job.original)
    return replace(widest, memory=max(widest.memory, resident + asking), parts={**widest.parts, "asking": asking})


def _cost_of_one(job: Job, resident: int) -> Cost:
    there = 0 if job.setting.device == "cpu" else device_memory(parts_of_job(job))
    if job.shaping is not None:
        return replace(price_shaping(job.source, job.shaping, job.setting, job.load, resident), device_memory=there)
    cost = price(job.source, job.work, job.setting, job.load, resident, output_bytes(job.source, job.packing))
    return replace(cost, device_memory=there)


def _seconds(job: Job, place: Path) -> float:
    """How long it takes, after a look at what this machine can do."""
    rates = probe(job.source, job.work, job.setting, job.calibration, job.evaluation, place.absolute())
    if job.shaping is not None:
        return estimate_shaping(job.source, job.shaping, job.setting, job.load, rates)
    return estimate_seconds(job.source, job.work, job.setting, job.load, rates)


def _refusals(job: Job, cost: Cost, place: Path, disk: bool = True) -> list[str]:
    """Why the run does not fit, with the setting to change. disk: whether the disk is looked at, too."""
    found = []
    ram = hardware()["ram_bytes"]
    if job.setting.device == "cpu" and ram and cost.memory > ram:
        largest = max((name for name in cost.parts if name not in ("resident", "rows")), key=lambda name: cost.parts[name])
        advice = "a smaller model"
        if largest == "asking":
            advice = "a smaller model, or leave out --check safety, which has both whole models in memory"
        elif largest in ("solving", "healing", "passing") or cost.parts["rows"] > ram // 4:
            advice = "fewer --samples or shorter --tokens"
        elif largest in ("evaluating", "scoring"):
            advice = "fewer evaluation samples or shorter ones (`evaluation: {samples: .., tokens: ..}` in the recipe)"
        found.append(f"it needs {size(cost.memory)} of memory ({largest} takes most) and this machine has {size(ram)}; use {advice}")
    if job.setting.device != "cpu":
        found.extend(_device_refusals(job, free_device_bytes(job.setting.device)))
    parent = place.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if disk and cost.disk > free:
        found.append(f"it needs {size(cost.disk)} of disk and {parent} has {size(free)} free; choose another --out")
    return found


DEVICE_ADVICE = {
    "cutting": "shorter --tokens or ",
    "evaluating": "shorter evaluation rows (`evaluation: {tokens: ..}` in the recipe) or ",
    "healing": "shorter --tokens or ",
    "passing": "shorter --tokens or ",
    "tuning": "a smaller `batch` in the step that trains, shorter --tokens, or ",
}
"""What else than the processor helps, by the phase that takes most of a device."""


def _device_refusals(job: Job, free: int) -> list[str]:
    """Why the first link that needs more than so many bytes of its device cannot run, with as few rows at a time as it can go on with."""
    for link in job.links:
        parts = parts_of_job(link, least=True)
        if device_memory(parts) > free:
            largest = max(parts, key=lambda name: parts[name])
            fewest = " even with one row at a time" if link.shaping is None else ""
            need = f"it needs {size(device_memory(parts))} on the device{fewest} ({largest} takes most) and {size(free)} are free there"
            return [f"{need}; use {DEVICE_ADVICE.get(largest, '')}--device cpu"]
    return []


def repeat(folder: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Repeat the run that made a result, and compare the bytes of every weight file and of config.json.

    out: where the second result goes, `<folder>.repeat` by default. Returns {folder, out, equal, files [{file, equal}]}.
    Raises InputError when the certificate does not hold what a repetition needs, RunError when the bytes differ.
    """
    folder = as_path(folder)
    certificate = Certificate.read(folder)
    if not certificate.run_key:
        raise InputError(f"{folder} was written by thrifty export; repeat the run of the result that it was exported from")
    words = dict(certificate.request)
    if words.get("calibration") == "given tensors":
        raise InputError(f"{folder} was calibrated on tensors given by a program, which no file remembers; run that program again")
    place = as_path(out) if out is not None else folder.absolute().with_name(folder.absolute().name + ".repeat")
    if place.absolute() == folder.absolute():
        raise InputError(f"{folder} is the result itself; choose another --out for its repetition")
    try:
        again = compress(words.pop("model"), certificate.recipe, words.pop("calibration"), out=place, seed=certificate.seed, **words)
    except GateError as error:  # as the first time, then: its result is kept beside
        again = error.result or {}
        place = Path(again["out"])
    names = sorted(path.name for path in folder.iterdir() if made_of_bytes(path))
    files = [{"file": name, "equal": file_digest(folder / name) == file_digest(place / name)} for name in names]
    different = [str(entry["file"]) for entry in files if not entry["equal"]]
    if different:
        changed = [name for name in ("run_key", "versions", "hardware") if again[name] != certificate.to_json()[name]]
        advice = (
            "the model, the data or the settings are not those of the first run"
            if "run_key" in changed
            else f"look at {', '.join(changed) or 'the number of threads'} in both certificates"
        )
        raise RunError(f"{', '.join(different)} in {place} differ from {folder}; {advice}")
    return {"folder": str(folder), "out": str(place), "equal": True, "files": files}
