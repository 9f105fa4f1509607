"""What is done with results: measure, compare, export, try out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from thrifty.api.caches import cache_method, noted_cache
from thrifty.api.pages import write_pages
from thrifty.api.request import pairs_of
from thrifty.base.anatomy import Kind
from thrifty.base.errors import InputError, RunError
from thrifty.base.memory import return_free_memory
from thrifty.base.store import as_path, file_digest
from thrifty.cache.base import PackedCache
from thrifty.cache.build import KeyValueCache, build_cache
from thrifty.data import default_model, embedded_text, load_rows
from thrifty.data.tokenizer import load_tokenizer
from thrifty.export.card import says_quantized
from thrifty.export.container import METHOD
from thrifty.export.formats import check_export, export_result
from thrifty.measure.certificate import FILE as CERTIFICATE
from thrifty.measure.certificate import Certificate, made_of_bytes
from thrifty.measure.evaluate import evaluate as measure
from thrifty.measure.safety import Pair, check_safety, templated
from thrifty.measure.size import weight_bytes
from thrifty.measure.task_scores import summarise_tasks
from thrifty.measure.tasks import open_tasks, run_tasks
from thrifty.models import open_model
from thrifty.models.diffusion import DiffusionConfig
from thrifty.models.folder import find_folder
from thrifty.models.shell import main_output
from thrifty.pipeline.trajectories import trajectory_rows
from thrifty.pipeline.verify import verify_outputs
from thrifty.report.compare import Comparison, write_comparison
from thrifty.report.compare import compare as side_by_side
from thrifty.runtime.load import load, read_config

NEW_TOKENS = 64
PROMPT_LENGTH = 64
LONG_PROMPT_LENGTH = 256
"""Tokens of the prompt that is taken where none is given: more where a cache is tried, which keeps the newest tokens as they are."""

COMPARED, COMPARED_TOKENS = 2, 64
"""Rows that an export is compared on, and tokens in each."""


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
    check: Literal["safety"] | None = None,
    pairs: str | Path | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure a model or a result folder: perplexity, and against an original also KL divergence, agreement and flips on the same tokens.

    text: files to measure on; the held-out text inside the package where none is named. images: a folder of images, for a model that sees;
    its sub-folders name the classes where there are some. tasks: measure on these instead: tasks of lm-eval, by name, as YAML files or as
    folders of these. samples: windows of text, images, or documents of each task. tokens: length of a window. stride: windows begin so many
    tokens apart, and each scores what the one before it did not hold; side by side where it is left out.
    check: `safety` asks both models requests that should be refused, and harmless twins, instead. pairs: a file of such requests; those
    inside the package by default.
    Raises InputError when the two models are of different kinds or vocabularies, the model has no tokenizer, or a task cannot be run.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise InputError(f"the seed must be a whole number from 0 to 2^63 - 1; got {seed!r}")
    folder = default_model() if model is None else find_folder(model, allow_pickle)
    original = None if against is None else find_folder(against, allow_pickle)
    allowed = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    asked = pairs_of(check, pairs)
    if asked:
        if tasks or any(given is not None for given in (text, images, samples, tokens, stride)):
            raise InputError("a check of refusals asks its own requests; give --pairs, or a text, images or tasks without --check")
        return {**_names(model, against), **_on_refusals(folder, original, asked, seed, allowed)}
    if tasks:
        if any(given is not None for given in (text, images, tokens, stride)):
            raise InputError("tasks bring their own text; give either tasks, or a text or images to measure on")
        named = [str(as_path(word)) if word.startswith("~") else word for word in ((tasks,) if isinstance(tasks, str) else tasks)]
        return {**_names(model, against), **_on_tasks(folder, original, named, samples, seed, allowed)}
    kind = kind_of(folder, **allowed)
    words = () if text is None else (text,) if isinstance(text, str) else tuple(text)
    _check_data(kind, words, images)
    if original is not None and (other := kind_of(original, **allowed)) != kind:
        raise InputError(f"{model or folder} is a model of kind {kind} and {against} one of kind {other}; they cannot be compared")
    measured = load(folder, dtype=torch.float32, **allowed)
    if kind == "diffusion":
        rows = trajectory_rows(open_model(original or folder, **allowed), "evaluation", samples, seed)
    else:
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
            trust_remote_code=trust_remote_code,
        )
    beside = None if original is None else load(original, dtype=torch.float32, **allowed)
    if beside is not None:
        _check_vocabulary(measured.config, beside.config)
    found = measure(measured, rows.inputs, against=beside, kind=kind, targets=rows.targets, labels=rows.labels, seed=seed)
    return {**_names(model, against), "images" if "input_ids" not in rows.inputs else "text": rows.source, **found}


def _names(model: str | Path | None, against: str | Path | None) -> dict[str, Any]:
    return {"model": str(model or "the model inside the package"), "against": None if against is None else str(against)}


def _check_data(kind: Kind, texts: Sequence[str], images: str | Path | None) -> None:
    """Raise InputError for what a model of this kind does not look at."""
    if images is not None and kind in ("causal_lm", "masked_lm"):
        raise InputError(f"a model of kind {kind} reads text, not images; give --text FILE, or nothing")
    if kind == "diffusion" and (texts or images is not None):
        raise InputError("a diffusion transformer makes its own rows from noise; give neither --text nor --images")
    if texts and kind == "vision":
        raise InputError("this model sees images and reads no text; give --images FOLDER")


def _check_vocabulary(config: Any, other: Any) -> None:
    """Raise InputError when the tokens of one model mean nothing to the other."""
    sizes = [getattr(one.get_text_config(), "vocab_size", None) for one in (config, other)]
    if sizes[0] != sizes[1]:
        raise InputError(f"the models have vocabularies of {sizes[0]} and {sizes[1]} tokens; they cannot be compared on the same tokens")


def _on_tasks(
    folder: Path, original: Path | None, tasks: Sequence[str], samples: int | None, seed: int, allowed: dict[str, bool]
) -> dict[str, Any]:
    """What the model scores on the tasks, and the original on the same prompts; one of them is in memory at a time."""
    tokenizers = {place: _checked_tokenizer(place, allowed) for place in (folder, original) if place is not None}
    opened = open_tasks(tasks, seed=seed, samples=samples)
    scores = {place: run_tasks(opened, load(place, dtype=torch.float32, **allowed), tokenizer) for place, tokenizer in tokenizers.items()}
    return summarise_tasks(scores[folder], None if original is None else scores[original], seed=seed)


def _on_refusals(folder: Path, original: Path | None, asked: Sequence[Pair], seed: int, allowed: dict[str, bool]) -> dict[str, Any]:
    """What the model refuses that the original refused, and the reverse; both are in memory together."""
    if original is None:
        raise InputError("whether refusals were lost is seen beside the original only; give --against ORIGINAL")
    tokenizer = _checked_tokenizer(folder, allowed)
    templated(tokenizer, asked[0].answer)
    models = [load(place, dtype=torch.float32, **allowed) for place in (original, folder)]
    _check_vocabulary(models[0].config, models[1].config)
    return check_safety(*models, tokenizer, asked, seed=seed)


def _checked_tokenizer(folder: Path, allowed: dict[str, bool]) -> Any:
    """The tokenizer of a model that continues text; nothing else can answer."""
    kind = kind_of(folder, **allowed)
    if kind != "causal_lm":
        raise InputError(f"{folder} holds no language model that continues text ({kind}), so it cannot answer tasks")
    return load_tokenizer(folder, allowed["trust_remote_code"])


def kind_of(folder: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> Kind:
    """What sort of model a folder holds; a result says so in its certificate."""
    try:
        return Certificate.read(folder).model.kind  # type: ignore[return-value]
    except InputError:
        return open_model(folder, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code).anatomy.kind


def compare(folders: Sequence[str | Path], out: str | Path | None = None) -> Comparison:
    """The certificates of several results side by side; `out` names an HTML file to write the same to, with plots.

    Raises InputError for a folder without a certificate, and when `out` exists or cannot be a file.
    """
    out = None if out is None else as_path(out)
    if out is not None and out.exists():
        raise InputError(f"{out} exists; choose another --out")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"{out.absolute().parent} is not a folder; choose another --out")
    found = side_by_side([as_path(folder) for folder in folders])
    if out is not None:
        write_comparison(found, out)
    return found


def export(folder: str | Path, to: str, out: str | Path | None = None, *, verify: Literal["exact", "full"] = "exact") -> dict[str, Any]:
    """Write a result in another format (`gguf`, `dense`, `thrifty`, `aqlm`) and read it back; returns {folder, format, out, bytes}.

    verify: `full` also loads what was written in transformers (diffusers for a model of its) and compares outputs with those here, on two
    windows of text; then `difference` is returned, too. A folder gets a certificate of its own: the quality is that of the result, size and
    speed are not. Raises InputError for a format or an architecture that cannot be written or compared, RunError when it reads back or
    answers otherwise, and then nothing is left.
    """
    folder = as_path(folder)
    compared = _rows_for(folder, to) if verify == "full" else None
    written = export_result(folder, to, None if out is None else as_path(out))
    place = Path(written["out"])
    if compared is not None:
        written["difference"] = _compared(folder, place, *compared)
    if place.is_dir() and (folder / CERTIFICATE).exists():
        certificate = _of_export(Certificate.read(folder), folder, place, written)
        write_pages(place.name, folder, says_quantized(folder), place, certificate)
        certificate.write(place)
    return written


def _rows_for(folder: Path, to: str) -> tuple[Any, dict[str, Tensor]]:
    """(config, inputs) that an export is compared on. Raises InputError where it cannot be."""
    check_export(folder, to)
    if to == "aqlm":
        raise InputError("what the package aqlm reads is not run here; leave --verify full out")
    kind = kind_of(folder)
    if kind == "diffusion":
        source = open_model(folder)
        config, rows = source.config, trajectory_rows(source, "evaluation", COMPARED, 0)
    elif kind in ("causal_lm", "masked_lm"):
        config = AutoConfig.from_pretrained(str(folder))
        rows = load_rows(folder=folder, config=config, kind=kind, purpose="evaluation", samples=COMPARED, tokens=COMPARED_TOKENS, seed=0)
    else:
        raise InputError(f"outputs are compared on text, and {folder} is a model of kind {kind}; leave --verify full out")
    return config, {name: tensor[:COMPARED] for name, tensor in rows.inputs.items()}


def _compared(folder: Path, place: Path, config: Any, inputs: Mapping[str, Tensor]) -> float:
    """By how much the outputs of an export in the library it is for differ from those here; one that answers otherwise is taken away."""
    with torch.inference_mode():
        # A folder may hold values that were rounded to the type of the model, as it says; a file of llama.cpp's is not read here.
        ours = load(place if place.is_dir() else folder, dtype=torch.float32)
        outputs = main_output(ours(**inputs)).to(torch.float32)
    try:
        return verify_outputs(place, config, inputs, outputs, "diffusers" if isinstance(config, DiffusionConfig) else "transformers")
    except RunError as error:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
        raise RunError(f"{error}; it was removed") from error


def _of_export(certificate: Certificate, folder: Path, place: Path, written: dict[str, Any]) -> Certificate:
    """What a certificate says of the same values stored in another way."""
    how = written.get("dtype", written["format"])
    said = f"exported from {folder} as {how}: quality is that of the result, the speed of this folder was not measured"
    bits = written["bits_per_weight"] if "bits_per_weight" in written else 8.0 * getattr(torch, written["dtype"]).itemsize
    changed = {
        "run_key": "",
        "bytes": None if certificate.bytes is None else certificate.bytes.model_copy(update={"after": weight_bytes(place)}),
        "bits_per_weight": None if certificate.bits_per_weight is None else bits,
        "files": {path.name: file_digest(path) for path in sorted(place.iterdir()) if made_of_bytes(path)},
        "speed": None,
        "warnings": [*certificate.warnings, said],
    }
    if written["format"] == METHOD:
        changed["request"] = {**certificate.request, "format": METHOD}
    return certificate.model_copy(update=changed)


def try_out(
    folder: str | Path,
    prompt: str | None = None,
    *,
    new_tokens: int = NEW_TOKENS,
    memory: str | int | None = None,
    cache: str | Mapping[str, Any] | PackedCache | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Let original and result complete a prompt, greedily, with the tokens a second of each.

    prompt: text to complete; the first lines of the held-out text where none is given. The first completion of each is repeated once for
    the clock, so that loading is not counted. memory: what the process may hold with either, as in `thrifty.load`; each then says what was
    left on disk. cache: how both keep the keys and values of past tokens, as in `thrifty.kv_cache`; each then says how many bytes these
    took, and how many they take plain. Raises InputError for a result whose original is gone, that is no language model, where one of the
    two does not fit, or a cache that is none for them.
    """
    method = None if cache is None else cache_method(cache)
    folder = as_path(folder)
    certificate = Certificate.read(folder)
    if certificate.model.kind != "causal_lm":
        raise InputError(f"{folder} holds no language model that continues text; `thrifty evaluate` measures it")
    named = certificate.request.get("model")
    original = default_model() if named is None else find_folder(named, allow_pickle)
    tokenizer = load_tokenizer(folder, trust_remote_code)
    if method is not None:
        # Refused before anything is loaded.
        build_cache(read_config(original, trust_remote_code), method)
        noted_cache(read_config(folder, trust_remote_code), method)
    length = PROMPT_LENGTH if method is None else max(PROMPT_LENGTH, min(LONG_PROMPT_LENGTH, _room(folder, 0) // 2))
    text = prompt if prompt is not None else _default_prompt(tokenizer, length)
    inputs = torch.tensor([tokenizer(text)["input_ids"]])
    if inputs.numel() == 0:
        raise InputError("the prompt holds no token; give some text to complete")
    new_tokens = min(new_tokens, _room(folder, inputs.shape[1]))
    found: dict[str, Any] = {"prompt": text} | ({} if method is None else {"cache": {method.name: method.settings()}})
    limit = {} if memory is None else {"memory": memory, "tokens": inputs.shape[1] + new_tokens}
    answers = {}
    for name, place in (("original", original), ("result", folder)):
        model = load(place, **limit, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        answers[name], found[name] = _answer(model, tokenizer, inputs, new_tokens, method)
        if memory is not None:
            found[name]["memory"] = str(model.placement)
        del model
        return_free_memory()
    first, second = answers["original"], answers["result"]
    same = next(
        (place for place, (left, right) in enumerate(zip(first, second, strict=False)) if left != right), min(len(first), len(second))
    )
    return {**found, "same_tokens": same, "speedup": found["result"]["tokens_per_second"] / found["original"]["tokens_per_second"]}


def _answer(
    model: PreTrainedModel, tokenizer: Any, inputs: Tensor, new_tokens: int, method: PackedCache | None
) -> tuple[list[int], dict[str, Any]]:
    """(new tokens, what is told of them) of one side; method: how its keys and values are kept."""
    cache = None if method is None else build_cache(model.config, method)
    seconds, tokens = _complete(model, inputs, new_tokens, cache)
    told = {"text": tokenizer.decode(tokens, skip_special_tokens=True), "tokens_per_second": len(tokens) / seconds}
    return tokens, told if cache is None else {**told, "cache_bytes": cache.nbytes, "plain_cache_bytes": cache.plain_nbytes}


def _room(folder: Path, prompt: int) -> int:
    """Tokens that the model has positions for after the prompt; InputError where none is left."""
    positions = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    if not isinstance(positions, int):
        return sys.maxsize
    if prompt >= positions:
        raise InputError(f"the prompt holds {prompt} tokens, but the model has {positions} positions; give a shorter one")
    return positions - prompt


def _default_prompt(tokenizer: Any, length: int) -> str:
    ids = tokenizer(embedded_text("evaluation")[: 32 * length])["input_ids"][:length]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _complete(model: nn.Module, inputs: torch.Tensor, new_tokens: int, cache: KeyValueCache | None = None) -> tuple[float, list[int]]:
    """(seconds, new tokens) of a greedy completion, the second of two. cache: an empty one, which holds the second's tokens afterwards."""
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    if cache is not None:
        settings["past_key_values"] = cache
    with torch.inference_mode():
        model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)
        if cache is not None:
            cache.reset()
        start = perf_counter()
        out = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)
    return perf_counter() - start, out[0, inputs.shape[1] :].tolist()
