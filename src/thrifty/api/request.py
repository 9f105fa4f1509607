"""From the words of a request to a job: everything is checked here, before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.store import as_path
from thrifty.data import Rows, default_model, load_rows
from thrifty.data.load import SAMPLES
from thrifty.measure.evaluate import LANGUAGE
from thrifty.measure.gate import Gate
from thrifty.measure.hardware import hardware
from thrifty.models import Source, open_model
from thrifty.pipeline.container import ContainerPacking
from thrifty.pipeline.footprint import footprints_of
from thrifty.pipeline.mixing import foreseen
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.plan import Setting, calibration_dtype
from thrifty.pipeline.price import Load, inside_block
from thrifty.pipeline.rebuild import shaped
from thrifty.pipeline.run import Job
from thrifty.pipeline.shaping import structural
from thrifty.pipeline.steps import Work
from thrifty.pipeline.tuning import check_tuning
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

    @property
    def given_rows(self) -> bool:
        """Whether calibration rows came as tensors, which no file remembers."""
        return isinstance(self.calibration, Mapping | Rows)

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
        }


def prepare(request: Request) -> Job:
    """Open the model, resolve the recipe, load the rows. Raises InputError for whatever cannot be right."""
    device = _device(request.device)
    _check_numbers(request)
    if request.format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}; got {request.format!r}")
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
    steps = resolve(recipe, source.anatomy)
    step = structural(steps)
    shaping = None if step is None else shaped(source, step)
    work = Work.of(steps if step is None else ())
    needed = work.needs_calibration if shaping is None else shaping.calibrated
    calibration = _calibration(request, recipe, source) if needed else None
    check_tuning(source, work, calibration)
    evaluation = _evaluation(request, recipe, source, calibration)
    if gate is not None and evaluation is None:
        raise InputError("a largest increase of perplexity was asked for, but there are no rows to judge on; give evaluation rows, too")
    _say(calibration, evaluation)
    dtype = calibration_dtype(source.dtype, device)
    load = _load(source, calibration, evaluation, dtype)
    setting = _setting(source, device, load, dtype, request.seed)
    name = "the model inside the package" if request.model is None else str(request.model)
    return Job(
        name,
        source,
        recipe.with_places(_whole).to_yaml(),
        recipe.plain()["steps"],
        work,
        foreseen(source, work, FORMATS[request.format]),
        setting,
        load,
        calibration,
        evaluation,
        gate,
        request.to_json(),
        request.speed,
        shaping,
    )


def _say(calibration: Rows | None, evaluation: Rows | None) -> None:
    """Which text calibrates and which judges, before anything is computed."""
    parts = [] if calibration is None else [f"calibrated on {calibration.source} ({_amount(calibration)})"]
    parts.append("not judged: no evaluation" if evaluation is None else f"judged on {evaluation.source} ({_amount(evaluation)})")
    events.note("; ".join(parts))


def _amount(rows: Rows) -> str:
    length = rows.tokens // rows.rows
    return f"{rows.rows} rows of {length} tokens" if "input_ids" in rows.inputs else f"{rows.rows} images"


def _load(source: Source, rows: Rows | None, scored: Rows | None, dtype: torch.dtype) -> Load:
    """How much data a job carries, for its price; dtype: of the calibration pass."""
    return Load(
        rows=rows.rows if rows else 0,
        tokens=rows.tokens // rows.rows if rows else 0,
        evaluation_rows=scored.rows if scored else 0,
        evaluation_tokens=scored.tokens // scored.rows if scored else 0,
        vocabulary=source.vocabulary,
        calibration=footprints_of(source, rows, dtype, BATCH),
        evaluation=footprints_of(source, scored, torch.float32, BATCH),
    )


def _check_numbers(request: Request) -> None:
    """Raise InputError for numbers that the command line would not have let through."""
    for name, least, most in (("seed", 0, (1 << 63) - 1), ("samples", 1, 1_000_000), ("tokens", 2, 1_000_000)):
        value = getattr(request, name)
        if value is None and name != "seed":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"{name} must be a whole number from {least} to {most}; got {value!r}")


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
    return str(path.resolve()) if path.exists() else word


def _sources(words: tuple[str, ...], wanted: Calibration | Evaluation, source: Source, option: str) -> tuple[tuple[str, ...], str | None]:
    """(texts, folder of images): the request's words before the recipe's; one folder, for a model that sees, is one of images."""
    if not all(word.strip() for word in words):
        raise InputError(f"{option} is empty; name a file, or leave it out to use the text inside the package")
    if source.anatomy.kind not in ("causal_lm", "masked_lm") and len(words) == 1 and Path(words[0]).is_dir():
        return wanted.text, words[0]
    return words or wanted.text, wanted.images


def _calibration(request: Request, recipe: Recipe, source: Source) -> Rows:
    """The rows that statistics are taken from; a folder of images that also judges gives three quarters of them at most."""
    wanted = recipe.calibration
    if isinstance(request.calibration, Rows):
        return request.calibration
    if isinstance(request.calibration, Mapping):
        return Rows.of(request.calibration)
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
        share=FOR_CALIBRATION if images and judged and Path(images).resolve() == Path(judged).resolve() else 1.0,
        trust_remote_code=request.trust_remote_code,
    )


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
