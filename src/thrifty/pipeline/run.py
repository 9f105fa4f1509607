"""A run from its request to a result folder: walk, score, assemble, verify, certify.

Everything is made inside `out/.run` and moved into `out` when it is whole; the certificate comes last. A run that was stopped anywhere
goes on from its finished blocks and ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thrifty.base import events
from thrifty.base.errors import GateError
from thrifty.base.events import Event
from thrifty.base.store import content_key, file_digest, writing
from thrifty.data import Rows
from thrifty.measure.certificate import Certificate, Count, Data, Layer, Model, Sources, Verified, made_of_bytes, weights_digest
from thrifty.measure.gate import Gate
from thrifty.measure.hardware import PeakMemory, hardware, rss_bytes, versions
from thrifty.models import Source
from thrifty.pipeline.assemble import assemble, sizes
from thrifty.pipeline.folder import CERTIFICATE, BlockRecord, RunFolder, seconds_of
from thrifty.pipeline.mixing import decided, losses_of
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.price import Load
from thrifty.pipeline.reshape import ReshapeWalk, chosen
from thrifty.pipeline.score import score
from thrifty.pipeline.shaping import Shaping
from thrifty.pipeline.speed import side_by_side
from thrifty.pipeline.steps import Work
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.stored import write_block
from thrifty.pipeline.tuning import tuned
from thrifty.pipeline.verify import verify_runtime
from thrifty.pipeline.walk import Walk

Finish = Callable[[Path, Certificate], None]


@dataclass(frozen=True)
class Job:
    """Everything that decides a result.

    name: the model as the user named it. recipe: canonical text; steps: those of the recipe, as plain JSON values. load: how much data
    there is, for the price. calibration, evaluation: the rows; None where there are none. request: what else the user asked for, as plain
    JSON values. gate: the loss that the user allows.
    speed: whether both models are timed at the end, which is no part of the result. shaping: what a structural step makes of the model,
    where the recipe is one; then nothing is solved.
    """

    name: str
    source: Source
    recipe: str
    steps: list[dict[str, Any]]
    work: Work
    packing: Packing
    setting: Setting
    load: Load
    calibration: Rows | None
    evaluation: Rows | None
    gate: Gate | None = None
    request: dict[str, Any] = field(default_factory=dict)
    speed: bool = True
    shaping: Shaping | None = None

    def key(self, digest: dict[str, str]) -> str:
        """What names the run: two jobs with one key make the same bytes. Where model and texts lie is no part of it."""
        return content_key(
            {
                "thrifty": versions().get("thrifty", ""),
                "model": [weights_digest(digest), _placeless(self.source.config.to_dict())],
                "steps": self.steps,
                "setting": self.setting.to_json(),
                "rows": [None if rows is None else rows.digest for rows in (self.calibration, self.evaluation)],
                "gate": None if self.gate is None else str(self.gate),
                **({} if self.packing.format == Packing.format else {"format": self.packing.format}),
            }
        )


def run(job: Job, out: Path, *, force: bool = False, finish: Finish, full: bool = False) -> Certificate:
    """Carry a job out and leave its result in `out`.

    finish: writes whatever else belongs into the folder (report, model card), given the certificate. full: load the assembled folder in
    transformers and compare its logits before it counts. Returns the certificate; a job whose result is already there is not run again.
    Raises InputError when `out` holds something else, GateError when the result loses more than the gate allows: it is then kept in
    `<out>.rejected`.
    """
    folder = RunFolder(out)
    began = time.perf_counter()
    said: list[str] = []
    with PeakMemory() as memory, events.listening(lambda event: _note(event, said)):
        folder.free(force)
        digest = job.source.digest()
        key = job.key(digest)
        done = None if force else _already(folder, key, full)
        if done is not None:
            return done
        if job.gate is not None:
            folder.free_rejected(key, force)
        folder.claim(key, {"recipe": job.recipe, **job.request}, force=force)
        parts = (job.source, job.work, job.setting, job.calibration, job.evaluation, folder, digest, job.packing, write_block)
        walk = Walk(*parts) if job.shaping is None else ReshapeWalk(*parts, shaping=job.shaping)
        choosing, passed = 0.0, time.perf_counter()
        if isinstance(walk, ReshapeWalk):
            for warning in walk.shaping.warnings:
                events.warn(warning)
            if walk.shaping.undecided:
                shaping, choosing = chosen(walk, key)
                walk = ReshapeWalk(*parts, shaping=shaping)
        if job.work.mixes:
            losses, choosing = losses_of(walk, key)
            work = decided(job.source, job.work, losses, type(job.packing))
            walk.work, walk.packing = work, job.packing.decide(job.source, work)
            job = replace(job, work=work, packing=walk.packing)
        passed = time.perf_counter() - passed
        for warning in job.packing.warnings:
            events.warn(warning)
        if job.packing.schemes and job.source.anatomy.inferred and not full:
            name = job.source.anatomy.architecture
            events.warn(f"{name} was worked out, not declared: whether transformers reads its packed weights is told by --verify full only")
        tuning, place = Stopwatch(), key
        if job.work.tuner is not None:
            walk, place = tuned(walk, key, tuning)
        records, streams, watch = walk.run(place)
        for name, spent_on in tuning.seconds.items():
            watch.add(name, spent_on)
        if choosing:
            watch.add("choose", choosing)
        measured: dict[str, Any] = {}
        beside: dict[str, Any] = {}
        with watch.during("score"):
            if job.evaluation is not None:
                measured = score(job.source, job.evaluation, streams, job.setting.batch, job.setting.seed)
        resized = walk.shaping.resized if isinstance(walk, ReshapeWalk) else None
        result = job.source if resized is None else resized.source
        with watch.during("assemble"):
            staging = assemble(job.source, records, job.packing, folder, None if resized is None else resized.raw)
        if full and job.evaluation is not None:
            with watch.during("verify"):
                verify_runtime(staging, result, job.evaluation, streams)
        peak = memory.read()
        if job.speed and job.evaluation is not None and job.setting.device == "cpu":
            with watch.during("speed"):
                beside = side_by_side(job.source, staging, job.evaluation, peak - rss_bytes(), job.setting.seed)
            measured = {**measured, "quality": [*measured.get("quality", ()), *beside.get("quality", ())]}
        spent = {**seconds_of(records), **watch.seconds}
        seconds = time.perf_counter() - began + sum(seconds_of(records[: walk.resumed]).values()) + max(0.0, choosing - passed)
        costs = {"phases": spent, "seconds": seconds, "peak_rss_bytes": max(peak, memory.read()), "speed": beside.get("speed")}
        verified: Verified = "full" if full else "exact"
        certificate = _certificate(job, key, digest, records, staging, measured, said, verified=verified, **costs)
    job.source.check_unchanged()
    certificate.write(staging)
    finish(staging, certificate)
    return _deliver(folder, staging, certificate)


def _note(event: Event, said: list[str]) -> None:
    if event.kind == "warning" and event.message not in said:
        said.append(event.message)


def _placeless(config: Any) -> Any:
    """A configuration without the folder that it was read from."""
    if not isinstance(config, dict):
        return config
    return {name: _placeless(value) for name, value in config.items() if name != "_name_or_path"}


def _already(folder: RunFolder, key: str, full: bool) -> Certificate | None:
    """The certificate of the same job's finished result, in place or rejected, whose files are still those that were written."""
    for place in (folder.out, folder.rejected):
        found = RunFolder(place).finished()
        if found is None or found.get("run_key") != key:
            continue
        certificate = Certificate.from_json(found, str(place / CERTIFICATE))
        changed = next((name for name, digest in certificate.files.items() if file_digest(place / name) != digest), None)
        if changed is not None:
            events.note(f"{place / changed} is not as it was written; the result is made again")
        elif full and certificate.verified != "full":
            events.note(f"{place} holds this result, but was not loaded in transformers; it is made again")
        else:
            events.note(f"{place} already holds this result")
            return _judged(certificate, place)
    return None


def _judged(certificate: Certificate, place: Path) -> Certificate:
    """The certificate, or GateError when the gate was not met."""
    if certificate.gate is not None and not certificate.gate.passed:
        raise GateError(f"{certificate.gate.reason}; the result is kept apart in {place}", certificate.result(place))
    return certificate


def _deliver(folder: RunFolder, staging: Path, certificate: Certificate) -> Certificate:
    """Move the finished files into place, the certificate last; a result that fails its gate goes beside, whole."""
    if certificate.gate is not None and not certificate.gate.passed:
        place = folder.rejected
        with writing(place):
            if place.exists():
                shutil.rmtree(place)
            os.replace(staging, place)
            folder.close()
        return _judged(certificate, place)
    place, names = folder.out, sorted(path.name for path in staging.iterdir() if path.name != CERTIFICATE)
    with writing(place):
        folder.clear()
        for name in (*names, CERTIFICATE):
            os.replace(staging / name, place / name)
        folder.close()
    return certificate


def _certificate(
    job: Job,
    key: str,
    digest: dict[str, str],
    records: list[BlockRecord],
    staging: Path,
    measured: dict[str, Any],
    said: list[str],
    **costs: Any,
) -> Certificate:
    anatomy = job.source.anatomy
    shapes = {linear.path: linear for linear in anatomy.linears}
    layers = [
        Layer(
            name=layer.name,
            method=layer.method,
            bits=layer.bits,
            sparsity=layer.sparsity,
            error=layer.error,
            relative_error=layer.relative_error,
            tokens=layer.tokens,
            role=shapes[layer.name].role,
            block=position,
            weights=shapes[layer.name].out_features * shapes[layer.name].in_features,
            simulated=layer.simulated,
            details=dict(layer.details),
        )
        for position, record in enumerate(records)
        for layer in record.layers
    ]
    bytes_, bits = sizes(job.source, records if job.shaping is None else [], staging)
    warnings = [*(warning for record in records for warning in record.warnings), *said]
    return Certificate.build(
        measured=measured,
        warnings=dict.fromkeys(warnings),
        run_key=key,
        model=Model(
            name=job.name,
            digest=weights_digest(digest),
            architecture=anatomy.architecture,
            kind=anatomy.kind,
            revision=job.source.revision,
            parameters=anatomy.parameters,
            compressed_parameters=sum(layer.weights for layer in layers),
        ),
        data=Sources(calibration=_data(job.calibration), evaluation=_data(job.evaluation)),
        recipe=job.recipe,
        request=job.request,
        seed=job.setting.seed,
        versions=versions(),
        hardware=hardware(),
        layers=layers,
        bytes=bytes_,
        files={path.name: file_digest(path) for path in sorted(staging.iterdir()) if made_of_bytes(path)},
        bits_per_weight=bits,
        gate=None if job.gate is None else job.gate.verdict(measured.get("quality", ())),
        structure={} if job.shaping is None else {name: Count(before=pair[0], after=pair[1]) for name, pair in job.shaping.changes.items()},
        **costs,
    )


def _data(rows: Rows | None) -> Data | None:
    if rows is None:
        return None
    return Data(source=rows.source, digest=rows.digest, rows=rows.rows, tokens=rows.tokens, samples=list(rows.ids))
