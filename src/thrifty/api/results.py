"""What is done with results: measure, compare, export, try out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from thrifty.base.anatomy import Kind
from thrifty.base.errors import InputError
from thrifty.data import default_model, embedded_text, load_rows
from thrifty.data.tokenizer import load_tokenizer
from thrifty.export.formats import export_result
from thrifty.measure.certificate import Certificate
from thrifty.measure.evaluate import evaluate as measure
from thrifty.measure.task_scores import summarise_tasks
from thrifty.measure.tasks import open_tasks, run_tasks
from thrifty.models import open_model
from thrifty.report.compare import Comparison, write_comparison
from thrifty.report.compare import compare as side_by_side
from thrifty.runtime import load

NEW_TOKENS = 64
PROMPT_LENGTH = 64


def evaluate(
    model: str | Path | None = None,
    *,
    against: str | Path | None = None,
    text: str | Sequence[str] | None = None,
    images: str | Path | None = None,
    tasks: str | Sequence[str] | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    stride: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a model or a result folder: perplexity, and against an original also KL divergence, agreement and flips on the same tokens.

    text: files to measure on; the held-out text inside the package where none is named. images: a folder of images, for a model that sees;
    its sub-folders name the classes where there are some. tasks: measure on these instead: tasks of lm-eval, by name, as YAML files or as
    folders of these. samples: windows of text, images, or documents of each task. tokens: length of a window. stride: windows begin so many
    tokens apart, and each scores what the one before it did not hold; side by side where it is left out.
    Raises InputError when the two models do not have one vocabulary, the model has no tokenizer, or a task cannot be run.
    """
    folder = Path(model) if model is not None else default_model()
    if tasks:
        if any(given is not None for given in (text, images, tokens, stride)):
            raise InputError("tasks bring their own text; give either tasks, or a text or images to measure on")
        named = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        original = None if against is None else Path(against)
        return {**_names(model, against), **_on_tasks(folder, original, named, samples, seed)}
    kind = kind_of(folder)
    words = () if text is None else (text,) if isinstance(text, str) else tuple(text)
    measured = load(folder, dtype=torch.float32)
    rows = load_rows(
        folder=folder,
        config=measured.config,
        kind=kind,
        purpose="evaluation",
        text=words,
        images=None if images is None else str(images),
        samples=samples,
        tokens=tokens,
        stride=stride,
        seed=seed,
    )
    original = None if against is None else load(Path(against), dtype=torch.float32)
    found = measure(measured, rows.inputs, against=original, kind=kind, targets=rows.targets, labels=rows.labels, seed=seed)
    return {**_names(model, against), "images" if "input_ids" not in rows.inputs else "text": rows.source, **found}


def _names(model: str | Path | None, against: str | Path | None) -> dict[str, Any]:
    return {"model": str(model or "the model inside the package"), "against": None if against is None else str(against)}


def _on_tasks(folder: Path, original: Path | None, tasks: Sequence[str], samples: int | None, seed: int) -> dict[str, Any]:
    """What the model scores on the tasks, and the original on the same prompts; one of them is in memory at a time."""
    tokenizers = {place: _checked_tokenizer(place) for place in (folder, original) if place is not None}
    opened = open_tasks(tasks, seed=seed, samples=samples)
    scores = {place: run_tasks(opened, load(place, dtype=torch.float32), tokenizer) for place, tokenizer in tokenizers.items()}
    return summarise_tasks(scores[folder], None if original is None else scores[original], seed=seed)


def _checked_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model that continues text; nothing else can answer."""
    kind = kind_of(folder)
    if kind != "causal_lm":
        raise InputError(f"{folder} holds no language model that continues text ({kind}), so it cannot answer tasks")
    return load_tokenizer(folder)


def kind_of(folder: Path) -> Kind:
    """What sort of model a folder holds; a result says so in its certificate."""
    try:
        return Certificate.read(folder).model.kind  # type: ignore[return-value]
    except InputError:
        return open_model(folder).anatomy.kind


def compare(folders: Sequence[str | Path], out: str | Path | None = None) -> Comparison:
    """The certificates of several results side by side; `out` names an HTML file to write the same to, with plots.

    Raises InputError for a folder without a certificate, and when `out` exists or cannot be a file.
    """
    if out is not None and Path(out).exists():
        raise InputError(f"{out} exists; choose another --out")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InputError(f"{Path(out).absolute().parent} is not a folder; choose another --out")
    found = side_by_side([Path(folder) for folder in folders])
    if out is not None:
        write_comparison(found, out)
    return found


def export(folder: str | Path, to: str, out: str | Path | None = None) -> dict[str, Any]:
    """Write a result in another format (`gguf`, `dense`) and read it back; returns {folder, format, out, bytes}.

    Raises InputError for a format or an architecture that cannot be written, RunError when it reads back otherwise.
    """
    return export_result(Path(folder), to, None if out is None else Path(out))


def try_out(folder: str | Path, prompt: str | None = None, *, new_tokens: int = NEW_TOKENS) -> dict[str, Any]:
    """Let original and result complete a prompt, greedily, with the tokens a second of each.

    prompt: text to complete; the first lines of the held-out text where none is given. The first completion of each is repeated once for
    the clock, so that loading is not counted. Raises InputError for a result whose original is gone, or that is no language model.
    """
    folder = Path(folder)
    certificate = Certificate.read(folder)
    if certificate.model.kind != "causal_lm":
        raise InputError(f"{folder} holds no language model that continues text; `thrifty evaluate` measures it")
    named = certificate.request.get("model")
    original = default_model() if named is None else Path(named)
    tokenizer = load_tokenizer(folder)
    text = prompt if prompt is not None else _default_prompt(tokenizer)
    inputs = torch.tensor([tokenizer(text)["input_ids"]])
    if inputs.numel() == 0:
        raise InputError("the prompt holds no token; give some text to complete")
    found: dict[str, Any] = {"prompt": text}
    answers = {}
    for name, place in (("original", original), ("result", folder)):
        model = load(place)
        answers[name] = _complete(model, inputs, new_tokens)
        seconds, tokens = answers[name]
        found[name] = {"text": tokenizer.decode(tokens, skip_special_tokens=True), "tokens_per_second": len(tokens) / seconds}
        del model
    first, second = (answers[name][1] for name in ("original", "result"))
    same = next(
        (place for place, (left, right) in enumerate(zip(first, second, strict=False)) if left != right), min(len(first), len(second))
    )
    return {**found, "same_tokens": same, "speedup": found["result"]["tokens_per_second"] / found["original"]["tokens_per_second"]}


def _default_prompt(tokenizer: Any) -> str:
    ids = tokenizer(embedded_text("evaluation")[:2000])["input_ids"][:PROMPT_LENGTH]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _complete(model: nn.Module, inputs: torch.Tensor, new_tokens: int) -> tuple[float, list[int]]:
    """(seconds, new tokens) of a greedy completion, the second of two."""
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)
        start = perf_counter()
        out = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)
    return perf_counter() - start, out[0, inputs.shape[1] :].tolist()
