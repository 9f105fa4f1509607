"""A folder of images, alone or with texts, as rows: through the processor that came with the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.store import as_path
from thrifty.data.embedded import Purpose
from thrifty.data.rows import Rows

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SAMPLES = {"calibration": 128, "evaluation": 64}
_PROMPT = "Describe this image."
_CAPTIONS = tuple(
    f"a {form} of {thing}"
    for form in ("photo", "drawing", "close-up")
    for thing in ("a dog", "two people", "a city at night", "food on a plate", "a red car", "a mountain lake", "handwriting", "a chair")
)


def choose_images(
    folder: str, purpose: Purpose, samples: int | None, seed: int, exclude: Collection[str] = (), share: float = 1.0
) -> tuple[list[Path], tuple[str, ...]]:
    """Image files below a folder and their ids (paths inside it): chosen at random to calibrate on, evenly spread to judge on.

    exclude: paths of images that are never chosen, resolved. share: of all images, the part that may be chosen at most.
    Raises InputError where there is no folder, or no image in it that may be chosen.
    """
    top = as_path(folder)
    if not top.is_dir():
        raise InputError(f"there is no folder {folder}; give a folder with .png or .jpg images.")
    paths = [path for path in sorted(top.rglob("*")) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not paths:
        raise InputError(f"{folder} has no images; give a folder with .png or .jpg images.")
    free = [path for path in paths if str(path.resolve()) not in exclude]
    if not free:
        raise InputError(f"all {len(paths)} images of {folder} are already used for calibration; give another folder or more images.")
    limit = int(share * len(paths))
    if not limit:
        raise InputError(f"{folder} has one image, and another is needed to judge on; give a folder of more images.")
    wanted = _SAMPLES[purpose] if samples is None else samples
    if wanted < 1:
        raise InputError(f"{wanted} images were asked for; ask for at least 1.")
    count = min(wanted, len(free), limit)
    if samples is not None and count < samples:
        kept = "" if count == len(free) else f", as {len(free) - count} are kept to judge on"
        events.warn(f"{folder} has {count} images to choose from{kept}, fewer than the {samples} asked for; all of them are used")
    if purpose == "calibration":
        order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    else:
        order = [number * len(free) // count for number in range(count)]
    chosen = [free[number] for number in order]
    return chosen, tuple(path.relative_to(top).as_posix() for path in chosen)


def image_rows(model: Path, paths: Sequence[Path], ids: tuple[str, ...], source: str, trust_remote_code: bool = False) -> Rows:
    """`pixel_values` [rows, channels, height, width] of images, for a vision model."""
    processor = _processor(AutoImageProcessor, model, trust_remote_code)
    return _rows([{"pixel_values": _call(processor, path, images=_open(path))["pixel_values"]} for path in paths], ids, source)


def pair_rows(
    model: Path,
    paths: Sequence[Path],
    ids: tuple[str, ...],
    source: str,
    captions: Sequence[str],
    length: int,
    trust_remote_code: bool = False,
) -> Rows:
    """`pixel_values` and `input_ids` [rows, length] for a dual encoder (CLIP): image n beside caption n, the captions in turn.

    Captions are cut or padded to `length` as the model's tokenizer does it. Without captions, plain ones inside the package are used.
    """
    processor = _processor(AutoProcessor, model, trust_remote_code)
    texts = captions or _CAPTIONS
    padding: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
    inputs = []
    for number, path in enumerate(paths):
        made = _call(processor, path, images=_open(path), text=[texts[number % len(texts)]], **padding)
        inputs.append({"pixel_values": made["pixel_values"], "input_ids": made["input_ids"]})
    return _rows(inputs, ids, source)


def prompt_rows(
    model: Path, paths: Sequence[Path], ids: tuple[str, ...], source: str, prompt: str | None, trust_remote_code: bool = False
) -> Rows:
    """Everything a vision-language model (LLaVA) is called with: each image in one and the same prompt, so that no row needs padding.

    The chat template of the processor writes the prompt where there is one; else the image token stands before it.
    """
    processor = _processor(AutoProcessor, model, trust_remote_code)
    words = prompt or _PROMPT
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": words}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    elif getattr(processor, "image_token", None):
        text = f"{processor.image_token}\n{words}"
    else:
        raise InputError(f"the processor in {model} names no image token; copy all processor and tokenizer files of the model into it.")
    inputs = []
    for path in paths:
        made = _call(processor, path, images=_open(path), text=[text])
        inputs.append({name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor) and name != "attention_mask"})
    return _rows(inputs, ids, source)


def _processor(loader: Any, model: Path, trust_remote_code: bool) -> Any:
    try:
        return loader.from_pretrained(model, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # a broken or missing file surfaces as almost any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{model} has no image processor that can be loaded ({reason}); copy its preprocessor_config.json from the model."
        ) from error


def _open(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("images need the pillow library; run: pip install thrifty[datasets]") from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not an image that can be read; repair or remove it.") from error


def _call(processor: Any, path: Path, **given: Any) -> Any:
    try:
        return processor(return_tensors="pt", **given)
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"the model's processor refuses {path}: {error}") from error


def _rows(inputs: Sequence[dict[str, Tensor]], ids: tuple[str, ...], source: str) -> Rows:
    """One row a dictionary, each tensor [1, ...]; all must be of one shape."""
    for name, first in inputs[0].items():
        for identity, row in zip(ids, inputs, strict=True):
            if row[name].shape[0] != 1 or row[name].shape != first.shape:
                raise InputError(
                    f"{source}: {name} of {identity} has shape {list(row[name].shape)}, that of {ids[0]} {list(first.shape)}; "
                    "give images of one size, as this model's processor does not bring them to one shape."
                )
    return Rows({name: torch.cat([row[name] for row in inputs]) for name in inputs[0]}, ids, source)
