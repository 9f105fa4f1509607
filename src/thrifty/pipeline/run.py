"""A run from its request to a result folder: walk, score, assemble, verify, certify.

Everything is made inside `out/.run` and moved into `out` when it is whole; the certificate comes last. A run that was stopped anywhere
goes on from its finished blocks and ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thrifty.base import events
from thrifty.base.errors import GateError, InputError, RunError
from thrifty.base.events import Event
from thrifty.base.store import file_digest, writing
from thrifty.data import Rows
from thrifty.measure.certificate import Certificate, Count, Data, Layer, Model, Sources, made_of_bytes, weights_digest
from thrifty.measure.hardware import PeakMemory, hardware, rss_bytes, versions
from thrifty.pipeline.assemble import assemble, sizes
from thrifty.pipeline.chain import through
from thrifty.pipeline.choosing import chosen
from thrifty.pipeline.folder import CERTIFICATE, BlockRecord, RunFolder, move_folder, seconds_of
from thrifty.pipeline.job import Job
from thrifty.pipeline.mixing import decided, losses_of
from thrifty.pipeline.rebuild import Rebuilding, RebuildWalk, surveyed
from thrifty.pipeline.refusals import digest_of, refusals
from thrifty.pipeline.reshape import ReshapeWalk
from thrifty.pipeline.score import score
from thrifty.pipeline.shaping import Shaping
from thrifty.pipeline.sharing import scores_of, shared
from thrifty.pipeline.slicing import SliceWalk, Slicing, settled
from thrifty.pipeline.speed import side_by_side
from thrifty.pipeline.steps import Work
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.stored import write_block
from thrifty.pipeline.tuning import tuned
from thrifty.pipeline.verify import verify_runtime
from thrifty.pipeline.walk import Walk

Finish = Callable[[Path, Certificate], None]


def run(
    job: Job, out: Path, *, force: bool = False, finish: Finish, full: bool = False, fits: Callable[[], None] = lambda: None
) -> Certificate:
    """Carry a job out and leave its result in `out`.

    finish: writes whatever else belongs into the folder (report, model card), given the certificate. full: load the assembled folder in
    transformers and compare its logits before it counts. fits: raises InputError where this machine cannot do it; asked only when there is
    something to do. Returns the certificate; a job whose result is already there is not run
    again, only judged again where its gate is another one. Raises InputError when `out` holds something else, GateError when the
    result loses more than the gate allows: it is then kept in `<out>.rejected`.
    """
    for link in job.links:
        _check_verifiable(link, full)
    folder = RunFolder(out)
    began = time.perf_counter()
    said: list[str] = []
    with events.listening(lambda event: _note(event, said)):
        folder.free(force)
        digest = job.source.digest()
        key = job.key(digest)
        done = None if force else _already(job, folder, key, full)
        if done is not None:
            return _judged_again(job, folder, key, *done, finish)
        fits()
        if job.gate is not None:
            folder.free_rejected(key, force)
        folder.claim(key, {"recipe": job.recipe, **job.request}, force=force)
        with _late(folder):
            if job.then is not None:
                job = through(job, folder, lambda link, place: run(link, place, finish=lambda *_: None))
                began, digest = time.perf_counter(), job.source.digest()
                said.clear()  # what the links before warned of stands in their own certificates
            with PeakMemory() as memory:
                return _carry_out(job, folder, key, digest, finish, full, Account(began, memory, said))


@contextmanager
def _late(folder: RunFolder) -> Iterator[None]:
    """What shows to be a bad request only now leaves nothing behind; where work is finished by then, it is a run that failed."""
    try:
        yield
    except InputError as error:
        if folder.begun:
            raise RunError(str(error)) from error
        folder.close()
        raise


def _check_verifiable(job: Job, full: bool) -> None:
    """Raise InputError where a result is to be compared with readers that cannot do what the run does."""
    if full and job.packing.alone:
        raise InputError(f"{min(job.packing.alone)}: no reader rounds inputs by channel, so none can verify it; leave --verify full out")


@dataclass(frozen=True)
class Account:
    """What a run has taken: when it began, its peak memory, and what it warned of."""

    began: float
    memory: PeakMemory
    said: list[str]


def _carry_out(job: Job, folder: RunFolder, key: str, digest: dict[str, str], finish: Finish, full: bool, account: Account) -> Certificate:
    walk, choosing, passed = _chosen(_walk(job, folder, digest), job, key)
    job = replace(job, source=walk.source, work=walk.work, packing=walk.packing)
    _check_verifiable(job, full)
    for warning in (*job.packing.warnings, *job.work.idle(job.source.anatomy)):
        events.warn(warning)
    if job.packing.schemes and job.source.anatomy.inferred and not full:
        name = job.source.anatomy.architecture
        events.warn(f"{name} was worked out, not declared: whether transformers reads its packed weights is told by --verify full only")
    tuning, place = Stopwatch(), key
    if job.work.tuner is not None:
        walk, place = tuned(walk, key, tuning)
    records, streams, watch = walk.run(place)
    for name, spent_on in {**tuning.seconds, **({"choose": choosing} if choosing else {})}.items():
        watch.add(name, spent_on)
    measured: dict[str, Any] = {}
    with watch.during("score"):
        if job.evaluation is not None:
            measured = score(job.source, job.evaluation, streams, job.setting.batch, job.setting.seed, job.original)
    shaping = walk.shaping if isinstance(walk, ReshapeWalk) else None
    resized = None if shaping is None else shaping.resized
    with watch.during("assemble"):
        staging, digests = assemble(job.source, records, job.packing, folder, None if resized is None else resized.raw)
    if full and job.evaluation is not None:
        with watch.during("verify"):
            verify_runtime(staging, job.source if resized is None else resized.source, job.evaluation, streams)
    peak = account.memory.read()
    beside = _beside(job, staging, peak, watch)
    measured = {**measured, "quality": [*measured.get("quality", ()), *beside.pop("quality", ())]}
    seconds = time.perf_counter() - account.began + sum(seconds_of(records[: walk.resumed]).values()) + max(0.0, choosing - passed)
    costs = {
        "phases": {**seconds_of(records), **watch.seconds},
        "seconds": seconds,
        "peak_rss_bytes": max(peak, account.memory.read()),
        "verified": "full" if full else "exact",
        **beside,
    }
    certificate = _certificate(job, key, digest, records, staging, measured, account.said, shaping, digests, **costs)
    if job.ending is not None and job.evaluation is not None:
        streams.only("before").save(job.ending)
    job.source.check_unchanged()
    certificate.write(staging)
    finish(staging, certificate)
    return _deliver(folder, staging, certificate)


def _walk(job: Job, folder: RunFolder, digest: dict[str, str]) -> Walk:
    """The walk of a job through its model."""
    parts = (job.source, job.work, job.setting, job.calibration, job.evaluation, folder, digest, job.packing, write_block)
    chained = {} if job.against is None else {"original": job.against.source, "ending": job.against.ending}
    if job.shaping is None:
        return Walk(*parts, **chained)
    for warning in job.shaping.warnings:
        events.warn(warning)
    kinds = {Rebuilding: RebuildWalk, Slicing: SliceWalk}
    kind = kinds.get(type(job.shaping), ReshapeWalk)
    return kind(*parts, **chained, shaping=job.shaping)


def _chosen(walk: Walk, job: Job, key: str) -> tuple[Walk, float, float]:
    """(the walk with its targets and blocks chosen, the seconds that the choice took in all, and in this attempt)."""
    began, choosing = time.perf_counter(), 0.0
    if isinstance(walk, SliceWalk):
        walk, choosing = settled(walk, key)
    elif isinstance(walk, RebuildWalk):
        walk, choosing = surveyed(walk) if walk.shaping.undecided else (walk, 0.0)
    elif isinstance(walk, ReshapeWalk) and walk.shaping.undecided:
        shaping, choosing = chosen(walk, key)
        walk = replace(walk, shaping=shaping)
    if job.work.shares:
        scores, choosing = scores_of(walk, key)
        _take_over(walk, job, shared(job.source, job.work, scores))
    if job.work.mixes:
        losses, spent = losses_of(walk, key)
        _take_over(walk, job, decided(job.source, walk.work, losses, type(job.packing)))
        choosing += spent
    return walk, choosing, time.perf_counter() - began


def _take_over(walk: Walk, job: Job, work: Work) -> None:
    walk.work, walk.packing = work, job.packing.decide(job.source, work)


def _beside(job: Job, staging: Path, peak: int, watch: Stopwatch) -> dict[str, Any]:
    """What both whole models, side by side, have to tell: speed, quality, safety."""
    found: dict[str, Any] = {}
    if job.speed and job.evaluation is not None and job.setting.device == "cpu":
        with watch.during("speed"):
            found |= side_by_side(job.original, staging, job.evaluation, peak - rss_bytes(), job.setting.seed)
    elif job.speed and job.evaluation is not None:
        events.note("speed was not measured: that is done on the processor alone, and this run used another device")
    if job.safety:
        with watch.during("safety"):
            found["safety"] = refusals(job.original, staging, job.safety, job.setting.seed)
    return found


def _note(event: Event, said: list[str]) -> None:
    if event.kind == "warning" and event.message not in said:
        said.append(event.message)


def _already(job: Job, folder: RunFolder, key: str, full: bool) -> tuple[Path, Certificate] | None:
    """(where the same job's finished result is, in place or rejected, its certificate), if its files are still those that were written."""
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
        elif job.safety and (certificate.safety or {}).get("requests") != digest_of(job.safety):
            events.note(f"{place} holds this result, but it was not asked these requests; it is made again")
        else:
            events.note(f"{place} already holds this result")
            RunFolder(place).sweep()
            return place, certificate
    return None


def _judged_again(job: Job, folder: RunFolder, key: str, place: Path, certificate: Certificate, finish: Finish) -> Certificate:
    """A finished result by the gate of this job: what it says and where it lies follow the verdict, and its bytes stay."""
    found = certificate.to_json()
    verdict = None if job.gate is None else job.gate.verdict(found["quality"])
    rejected = verdict is not None and not verdict["passed"]
    if verdict != found["gate"]:
        gate = "max_perplexity_increase"
        certificate = Certificate.from_json({**found, "gate": verdict, "request": {**found["request"], gate: job.request.get(gate)}})
    moved = folder.swap(key, to_rejected=rejected) if place != (folder.rejected if rejected else folder.out) else place
    if verdict != found["gate"]:
        with writing(moved):
            finish(moved, certificate)
            certificate.write(moved)
    return _judged(certificate, moved)


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
            move_folder(staging, place)
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
    shaping: Shaping | None,
    digests: Mapping[str, str],
    **costs: Any,
) -> Certificate:
    anatomy = job.source.original.anatomy
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
    bytes_, bits = sizes(job.source, records if job.shaping is None else [], staging, job.original)
    links = () if job.against is None else job.against.links
    structure = {} if shaping is None else {name: Count(before=before, after=after) for name, (before, after) in shaping.outcome().items()}
    warnings = [*(warning for record in records for warning in record.warnings), *said]
    certificate = Certificate.build(
        measured=measured,
        warnings=dict.fromkeys(warnings),
        run_key=key,
        model=Model(
            name=job.name,
            digest=weights_digest(digest) if job.against is None else job.against.digest,
            architecture=job.original.anatomy.architecture,
            kind=job.original.anatomy.kind,
            revision=job.original.revision,
            parameters=job.original.anatomy.parameters,
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
        files={path.name: digests.get(path.name) or file_digest(path) for path in sorted(staging.iterdir()) if made_of_bytes(path)},
        bits_per_weight=bits,
        gate=None if job.gate is None else job.gate.verdict(measured.get("quality", ())),
        structure=structure,
        **costs,
    )
    return certificate if not links else certificate.after(links, job.words)


def _data(rows: Rows | None) -> Data | None:
    if rows is None:
        return None
    return Data(source=rows.source, digest=rows.digest, rows=rows.rows, tokens=rows.tokens, samples=list(rows.ids))
