"""From the words of a request to a job: everything is checked here, before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.store import as_path, exists
from thrifty.data import Rows, default_model, load_rows
from thrifty.data.load import SAMPLES
from thrifty.measure.evaluate import LANGUAGE
from thrifty.measure.gate import Gate
from thrifty.measure.hardware import hardware
from thrifty.measure.safety import Pair, read_pairs, shipped_pairs
from thrifty.models import Rotated, Source, open_model
from thrifty.pipeline.container import ContainerPacking
from thrifty.pipeline.footprint import footprints_of
from thrifty.pipeline.job import Job, Then
from thrifty.pipeline.mixing import foreseen
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.plan import Setting, calibration_dtype
from thrifty.pipeline.price import Load, inside_block
from thrifty.pipeline.rebuild import shaped
from thrifty.pipeline.shaping import Shaping, structural
from thrifty.pipeline.steps import Work
from thrifty.pipeline.trajectories import trajectory_rows
from thrifty.pipeline.tuning import check_tuning
from thrifty.recipe.chain import Part, parts_of
from thrifty.recipe.language import Calibration, Evaluation, Recipe
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.recommend import recommend
from thrifty.recipe.resolve import resolve

BATCH = 8
"""Rows that go through a block at once wherever they need not go all together."""

STAGE_SHARE, STAGE_BYTES = 0.25, 256 << 20
"""The share of this machine's memory, and the bytes, that the hidden states of one block may take in stage order. Results of block order
are as good; it passes the rows through each block once more."""

FOR_CALIBRATION = 0.75
"""The share of the images of a folder that are taken to calibrate on where the same folder has to judge."""

FORMATS = {known.format: known for known in (Packing, ContainerPacking)}
"""What a result can be stored in, and how that is decided."""

Words = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Request:
    """The words of `thrifty compress`, as the user gave them."""

    model: str | Path | None = None
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None
    bits: int | None = None
    calibration: Words | Mapping[str, Tensor] | Rows | None = None
    evaluation: Words | Mapping[str, Tensor] | Rows | None = None
    samples: int | None = None
    tokens: int | None = None
    seed: int = 0
    device: str | None = None
    max_perplexity_increase: str | float | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    speed: bool = True
    format: str = "compressed-tensors"
    check: str | None = None
    pairs: str | Path | None = None

    @property
    def given_rows(self) -> bool:
        """Whether calibration rows came as tensors, which no file remembers."""
        return isinstance(self.calibration, Mapping | Rows)

    def files(self, job: Job) -> list[Path]:
        """Files and folders that its job reads, the model apart."""
        recipe = parse_recipe(job.recipe)
        named = [word for part in (recipe.calibration, recipe.evaluation) for word in (*part.text, part.images)]
        named += [word for rows in (self.calibration, self.evaluation) if not isinstance(rows, Mapping | Rows) for word in _words(rows)]
        named += [word for word in (self.recipe, self.pairs) if isinstance(word, str | Path)]
        return [path for path in (as_path(word) for word in named if word) if exists(path)]

    def to_json(self) -> dict[str, Any]:
        """What `thrifty repeat` needs besides the recipe."""
        return {
            "model": None if self.model is None else _whole(str(self.model)),
            "calibration": _remembered(self.calibration),
            "evaluation": _remembered(self.evaluation),
            "samples": self.samples,
            "tokens": self.tokens,
            "device": self.device,
            "max_perplexity_increase": self.max_perplexity_increase,
            "allow_pickle": self.allow_pickle,
            "trust_remote_code": self.trust_remote_code,
            "format": self.format,
            "check": self.check,
            "pairs": None if self.pairs is None else _whole(str(self.pairs)),
        }


def prepare(request: Request) -> Job:
    """Open the model, resolve the recipe, load the rows. Raises InputError for whatever cannot be right.

    A recipe with steps of several kinds is a chain: the job of its first link, which knows the others.
    """
    device = _device(request.device)
    _check_numbers(request)
    if request.format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}; got {request.format!r}")
    safety = pairs_of(request.check, request.pairs)
    gate = None if request.max_perplexity_increase is None else Gate.parse(request.max_perplexity_increase)
    source = open_model(
        default_model() if request.model is None else request.model,
        allow_pickle=request.allow_pickle,
        trust_remote_code=request.trust_remote_code,
    )
    if gate is not None and source.anatomy.kind not in LANGUAGE:
        raise InputError(
            f"a largest increase of perplexity was asked for, but a model of kind {source.anatomy.kind} has none; leave it out"
        )
    recipe = _recipe(request, source)
    links = _links(request, recipe, source)
    needed = any(link.calibrated for link in links)
    calibration = _calibration(request, recipe, source) if needed else None
    for link in links:
        check_tuning(link.model, link.work, calibration)
    evaluation = _evaluation(request, recipe, source, calibration)
    if gate is not None and evaluation is None:
        raise InputError("a largest increase of perplexity was asked for, but there are no rows to judge on; give evaluation rows, too")
    _say(calibration, evaluation)
    common = _Common(request, recipe, device, calibration, evaluation, gate, safety)
    first, *others = [common.job(link) for link in links]
    if not others:
        return first
    parts = [link.part for link in links]
    return replace(first, then=Then(tuple(others), lambda place, model: common.job(_Link.of(request, model, parts[place], place > 0))))


@dataclass(frozen=True)
class _Link:
    """A part of a recipe on a model: what is done to matrices, or what a structural step makes of it.

    model: as it is read, turned where a step says so; outcome: what the next link starts from, with the right shapes.
    """

    part: Part
    model: Source
    work: Work
    packing: Packing
    shaping: Shaping | None

    @classmethod
    def of(cls, request: Request, source: Source, part: Part, changed: bool) -> _Link:
        """changed: whether an earlier link changed the model."""
        steps = resolve(part.recipe, source.anatomy, part.first, changed)
        step = structural(steps)
        shaping = None if step is None else shaped(source, step)
        work = Work.of(steps if step is None else (), changed)
        if work.turn is not None:
            source = Rotated(source, work.turn.rotation)
        return cls(part, source, work, foreseen(source, work, FORMATS[request.format]), shaping)

    @property
    def calibrated(self) -> bool:
        """Whether it looks at calibration rows."""
        return self.work.needs_calibration if self.shaping is None else self.shaping.calibrated

    @property
    def outcome(self) -> Source:
        """Raises InputError where the result is no plain model that another link could go on from."""
        if self.packing.schemes or self.packing.alone:
            words = " + ".join(step.method for step in self.part.recipe.steps)
            does = "stores codes" if self.packing.schemes else "rounds inputs"
            raise InputError(f"{words} {does}, and a step of another kind after it needs plain weights; put what {does} last")
        return self.model if self.shaping is None else self.shaping.resized.source


def _links(request: Request, recipe: Recipe, source: Source) -> list[_Link]:
    """All links of a recipe, those after the first on models that do not exist yet."""
    found: list[_Link] = []
    for part in parts_of(recipe):
        found.append(_Link.of(request, found[-1].outcome if found else source, part, bool(found)))
    return found


@dataclass(frozen=True)
class _Common:
    """What all links of a request share."""

    request: Request
    recipe: Recipe
    device: str
    calibration: Rows | None
    evaluation: Rows | None
    gate: Gate | None
    safety: tuple[Pair, ...]

    def job(self, link: _Link) -> Job:
        """The job of a link."""
        request, source = self.request, link.model
        calibration = self.calibration if link.calibrated else None
        dtype = calibration_dtype(source.dtype, self.device)
        load = _load(source, calibration, self.evaluation, dtype)
        there = None if self.device == "cpu" else _load(source, calibration, self.evaluation, dtype, self.device)
        return Job(
            name="the model inside the package" if request.model is None else str(request.model),
            source=source,
            recipe=self.recipe.with_places(_whole).to_yaml(),
            steps=self.recipe.plain()["steps"],
            work=link.work,
            packing=link.packing,
            setting=_setting(source, self.device, load, dtype, request.seed),
            load=load,
            calibration=calibration,
            evaluation=self.evaluation,
            gate=self.gate,
            request=request.to_json(),
            speed=request.speed,
            safety=self.safety,
            shaping=link.shaping,
            device_load=there,
        )


def _say(calibration: Rows | None, evaluation: Rows | None) -> None:
    """Which text calibrates and which judges, before anything is computed."""
    parts = [] if calibration is None else [f"calibrated on {calibration.source} ({_amount(calibration)})"]
    parts.append("not judged: no evaluation" if evaluation is None else f"judged on {evaluation.source} ({_amount(evaluation)})")
    events.note("; ".join(parts))


def _amount(rows: Rows) -> str:
    length = rows.tokens // rows.rows
    return (
        f"{rows.rows} rows of {length} tokens"
        if "input_ids" in rows.inputs
        else f"{rows.rows} {'images' if 'pixel_values' in rows.inputs else 'rows'}"
    )


def _load(source: Source, rows: Rows | None, scored: Rows | None, dtype: torch.dtype, device: str = "cpu") -> Load:
    """How much data a job carries, for its price; dtype: of the calibration pass. device: where blocks hold what is in the price."""
    return Load(
        rows=rows.rows if rows else 0,
        tokens=rows.tokens // rows.rows if rows else 0,
        evaluation_rows=scored.rows if scored else 0,
        evaluation_tokens=scored.tokens // scored.rows if scored else 0,
        vocabulary=source.vocabulary,
        calibration=footprints_of(source, rows, dtype, BATCH, device),
        evaluation=footprints_of(source, scored, torch.float32, BATCH, device),
    )


def _check_numbers(request: Request) -> None:
    """Raise InputError for numbers that the command line would not have let through."""
    for name, least, most in (("seed", 0, (1 << 63) - 1), ("samples", 1, 1_000_000), ("tokens", 2, 1_000_000)):
        value = getattr(request, name)
        if value is None and name != "seed":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"{name} must be a whole number from {least} to {most}; got {value!r}")


def pairs_of(check: str | None, pairs: str | Path | None) -> tuple[Pair, ...]:
    """The pairs of requests that both models are to be asked; none where no check was asked for.

    Raises InputError for another check, for a file that holds something else, and for a file without the check that reads it.
    """
    if check not in (None, "safety"):
        raise InputError(f"check must be safety, the one that there is; got {check!r}")
    if check is None and pairs is not None:
        raise InputError("pairs are what --check safety asks both models; add it, or leave them out")
    if check is None:
        return ()
    return tuple(shipped_pairs() if pairs is None else read_pairs(pairs))


def _device(word: str | None) -> str:
    if word not in (None, "cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda; got {word!r}")
    if word == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; leave the option out to compute on the processor")
    return word or ("cuda" if torch.cuda.is_available() else "cpu")


def _recipe(request: Request, source: Source) -> Recipe:
    if request.recipe is not None and request.bits is not None:
        raise InputError("recipe and bits both say what to do; give one of them")
    if request.recipe is not None:
        return complete(parse_recipe(request.recipe))
    recipe, sentence = recommend(source.anatomy, 4 if request.bits is None else request.bits)
    events.note(f"recipe: {sentence}")
    return complete(recipe)


def _words(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (str(value),) if isinstance(value, str | Path) else tuple(str(word) for word in value)


def _remembered(value: Any) -> list[str] | str | None:
    """The words of a text or folder for a repetition, which may start elsewhere."""
    if isinstance(value, Mapping | Rows):
        return "given tensors"
    return [_whole(word) for word in _words(value)] or None


def _whole(word: str) -> str:
    """A file or folder by its whole path; any other word as it is."""
    path = as_path(word)
    return str(path.resolve()) if exists(path) else word


def _sources(words: tuple[str, ...], wanted: Calibration | Evaluation, source: Source, option: str) -> tuple[tuple[str, ...], str | None]:
    """(texts, folder of images): the request's words before the recipe's; one folder, for a model that sees, is one of images."""
    if not all(word.strip() for word in words):
        raise InputError(f"{option} is empty; name a file, or leave it out to use the text inside the package")
    if source.anatomy.kind not in ("causal_lm", "masked_lm") and len(words) == 1 and as_path(words[0]).is_dir():
        return wanted.text, words[0]
    return words or wanted.text, wanted.images


def _calibration(request: Request, recipe: Recipe, source: Source) -> Rows:
    """The rows that statistics are taken from; a folder of images that also judges gives three quarters of them at most."""
    wanted = recipe.calibration
    if isinstance(request.calibration, Rows):
        return request.calibration
    if isinstance(request.calibration, Mapping):
        return Rows.of(request.calibration)
    if source.anatomy.kind == "diffusion":
        _check_made(_words(request.calibration) or wanted.text, "--calibration")
        return trajectory_rows(source, "calibration", request.samples or wanted.samples, request.seed)
    texts, images = _sources(_words(request.calibration), wanted, source, "--calibration")
    judged = None if isinstance(request.evaluation, Mapping | Rows) else _judged_on(request, recipe, source)[1]
    return load_rows(
        folder=source.folder,
        config=source.config,
        kind=source.anatomy.kind,
        purpose="calibration",
        text=texts,
        images=images,
        samples=request.samples or wanted.samples,
        tokens=request.tokens or wanted.tokens,
        seed=request.seed,
        share=FOR_CALIBRATION if images and judged and as_path(images).resolve() == as_path(judged).resolve() else 1.0,
        trust_remote_code=request.trust_remote_code,
    )


def _check_made(words: Sequence[str], option: str) -> None:
    """Raise InputError for data that a diffusion transformer does not look at."""
    if words:
        raise InputError(f"{option} {words[0]}: a diffusion transformer makes its own rows from noise, or takes tensors; leave it out")


def _judged_on(request: Request, recipe: Recipe, source: Source) -> tuple[tuple[str, ...], str | None]:
    """(texts, folder of images) to judge on; images are those to calibrate on where no others are named."""
    texts, images = _sources(_words(request.evaluation), recipe.evaluation, source, "--evaluation")
    if images is None and not request.given_rows:
        images = _sources(_words(request.calibration), recipe.calibration, source, "--calibration")[1]
    return texts, images


def _evaluation(request: Request, recipe: Recipe, source: Source, calibration: Rows | None) -> Rows | None:
    """The rows that the result is judged on, never those it was calibrated on."""
    if isinstance(request.evaluation, Rows):
        return request.evaluation
    if isinstance(request.evaluation, Mapping):
        return Rows.of(request.evaluation)
    if request.given_rows and request.evaluation is None:
        return None
    wanted = recipe.evaluation
    if source.anatomy.kind == "diffusion":
        _check_made(_words(request.evaluation) or wanted.text, "--evaluation")
        return trajectory_rows(source, "evaluation", wanted.samples, request.seed)
    texts, images = _judged_on(request, recipe, source)
    return load_rows(
        folder=source.folder,
        config=source.config,
        kind=source.anatomy.kind,
        purpose="evaluation",
        text=texts,
        images=images,
        samples=wanted.samples or (None if wanted.stride is None else SAMPLES["evaluation"]),
        tokens=wanted.tokens,
        stride=wanted.stride,
        seed=request.seed,
        exclude=() if calibration is None else calibration.used,
        trust_remote_code=request.trust_remote_code,
    )


def _setting(source: Source, device: str, load: Load, dtype: torch.dtype, seed: int) -> Setting:
    """Stage order where the hidden states of one block fit well, block order in small batches otherwise."""
    room = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else hardware()["ram_bytes"]
    needed = max((inside_block(source, block, load, load.rows, dtype) for block in source.anatomy.blocks), default=0)
    order = "stage" if needed <= min(STAGE_BYTES, STAGE_SHARE * room if room else STAGE_BYTES) else "block"
    return Setting(device=device, dtype=dtype, batch=BATCH, order=order, seed=seed)
