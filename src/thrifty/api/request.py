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
from thrifty.data import Rows, default_model, load_rows
from thrifty.measure.gate import Gate
from thrifty.measure.hardware import hardware
from thrifty.models import Source, open_model
from thrifty.pipeline.packing import packing
from thrifty.pipeline.plan import Setting, calibration_dtype
from thrifty.pipeline.price import Load, activations
from thrifty.pipeline.run import Job
from thrifty.pipeline.steps import Work
from thrifty.recipe.language import Calibration, Evaluation, Recipe
from thrifty.recipe.parse import complete, parse_recipe
from thrifty.recipe.recommend import recommend
from thrifty.recipe.resolve import resolve

BATCH = 8
"""Rows that go through a block at once wherever they need not go all together."""

STAGE_SHARE, STAGE_BYTES = 0.25, 512 << 20
"""The share of this machine's memory, and the bytes, that the hidden states of one block may take in stage order. Results of block order
are as good; it passes the rows through each block once more."""

Words = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Request:
    """The words of `thrifty compress`, as the user gave them."""

    model: str | Path | None = None
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None
    bits: int | None = None
    calibration: Words | Mapping[str, Tensor] | Rows | None = None
    evaluation: Mapping[str, Tensor] | Rows | None = None
    samples: int | None = None
    tokens: int | None = None
    seed: int = 0
    device: str | None = None
    max_perplexity_increase: float | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    speed: bool = True

    @property
    def given_rows(self) -> bool:
        """Whether calibration rows came as tensors, which no file remembers."""
        return isinstance(self.calibration, Mapping | Rows)

    def to_json(self) -> dict[str, Any]:
        """What `thrifty repeat` needs besides the recipe."""
        return {
            "model": str(Path(self.model).expanduser().resolve()) if self.model is not None and Path(self.model).exists() else self.model,
            "calibration": None
            if self.calibration is None
            else "given tensors"
            if self.given_rows
            else [str(word) for word in _words(self.calibration)],
            "samples": self.samples,
            "tokens": self.tokens,
            "device": self.device,
            "max_perplexity_increase": self.max_perplexity_increase,
            "allow_pickle": self.allow_pickle,
            "trust_remote_code": self.trust_remote_code,
        }


def prepare(request: Request) -> Job:
    """Open the model, resolve the recipe, load the rows. Raises InputError for whatever cannot be right."""
    device = _device(request.device)
    if not 0 <= request.seed < 1 << 63:
        raise InputError(f"the seed must be a whole number from 0 to 2^63 - 1; got {request.seed}")
    gate = None if request.max_perplexity_increase is None else Gate(request.max_perplexity_increase)
    source = open_model(
        default_model() if request.model is None else request.model,
        allow_pickle=request.allow_pickle,
        trust_remote_code=request.trust_remote_code,
    )
    recipe = _recipe(request, source)
    work = Work.of(resolve(recipe, source.anatomy))
    calibration = _calibration(request, recipe.calibration, source) if work.needs_calibration else None
    evaluation = _evaluation(request, recipe.evaluation, source, calibration)
    setting = _setting(source, device, calibration, request.seed)
    name = "the model inside the package" if request.model is None else str(request.model)
    return Job(
        name,
        source,
        recipe.to_yaml(),
        work,
        packing(source.anatomy, work, source.dtype),
        setting,
        calibration,
        evaluation,
        gate,
        request.to_json(),
        request.speed,
    )


def load_of(job: Job) -> Load:
    """How much data a job carries, for the price."""
    rows, scored = job.calibration, job.evaluation
    return Load(
        rows=rows.rows if rows else 0,
        tokens=rows.tokens // rows.rows if rows else 0,
        evaluation_rows=scored.rows if scored else 0,
        evaluation_tokens=scored.tokens // scored.rows if scored else 0,
        vocabulary=job.source.vocabulary,
    )


def _device(word: str | None) -> str:
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


def _calibration(request: Request, wanted: Calibration, source: Source) -> Rows:
    """The rows that statistics are taken from; the request's words go before the recipe's."""
    if isinstance(request.calibration, Rows):
        return request.calibration
    if isinstance(request.calibration, Mapping):
        return Rows.of(request.calibration)
    words, images = _words(request.calibration) or wanted.text, wanted.images
    if not all(word.strip() for word in words):
        raise InputError("--calibration is empty; name a file, or leave it out to use the text inside the package")
    if source.anatomy.kind not in ("causal_lm", "masked_lm") and len(words) == 1 and Path(words[0]).is_dir():
        words, images = (), words[0]
    return load_rows(
        folder=source.folder,
        config=source.config,
        kind=source.anatomy.kind,
        purpose="calibration",
        text=words,
        images=images,
        samples=request.samples or wanted.samples,
        tokens=request.tokens or wanted.tokens,
        seed=request.seed,
        trust_remote_code=request.trust_remote_code,
    )


def _evaluation(request: Request, wanted: Evaluation, source: Source, calibration: Rows | None) -> Rows | None:
    """The rows that the result is judged on, never those it was calibrated on."""
    if isinstance(request.evaluation, Rows):
        return request.evaluation
    if isinstance(request.evaluation, Mapping):
        return Rows.of(request.evaluation)
    if request.given_rows:
        return None
    images = wanted.images
    folder = _words(request.calibration)
    if images is None and len(folder) == 1 and Path(folder[0]).is_dir():
        images = folder[0]
    same = calibration is not None and bool(wanted.text) and calibration.source == ", ".join(wanted.text)
    return load_rows(
        folder=source.folder,
        config=source.config,
        kind=source.anatomy.kind,
        purpose="evaluation",
        text=wanted.text,
        images=images,
        samples=wanted.samples,
        tokens=wanted.tokens,
        seed=request.seed,
        exclude=calibration.ids if same and calibration is not None else (),
        trust_remote_code=request.trust_remote_code,
    )


def _setting(source: Source, device: str, calibration: Rows | None, seed: int) -> Setting:
    """Stage order where the hidden states of one block fit well, block order in small batches otherwise."""
    dtype = calibration_dtype(source.dtype, device)
    order = "stage"
    if calibration is not None:
        room = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else hardware()["ram_bytes"]
        needed = max(
            (
                activations(block, stage, calibration.tokens, source.anatomy.hidden_size, dtype.itemsize)
                for block in source.anatomy.blocks
                for stage in block.stages
            ),
            default=0,
        )
        order = "stage" if needed <= min(STAGE_BYTES, STAGE_SHARE * room if room else STAGE_BYTES) else "block"
    return Setting(device=device, dtype=dtype, batch=BATCH, order=order, seed=seed)
