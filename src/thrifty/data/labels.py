"""The true classes of images: a folder with one sub-folder a class, as image data sets are usually kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from thrifty.base import events
from thrifty.base.store import as_path


def class_labels(folder: str, ids: Sequence[str], config: Any) -> Int64[Tensor, "rows"] | None:
    """The class of each image, or None where they are not known.

    ids: paths of the images inside `folder`; the first part of each is the name of its sub-folder. config: of a classifier, with
    `id2label`. Sub-folders that are all called as classes of the model are those classes (the whole name or one of its parts between
    commas; capitals, `_` and `-` do not count). Where none is, and there are as many sub-folders as classes, their order by name is that
    of the classes. With anything else, and with images beside the sub-folders, classes are not known, and a note says so.
    """
    if any(len(PurePosixPath(identity).parts) < 2 for identity in ids):
        return None
    names = sorted(path.name for path in as_path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = _classes(config)
    by_name = {name: classes[_plain(name)] for name in names if _plain(name) in classes}
    count = len(getattr(config, "id2label", None) or ())
    if len(by_name) == len(names):
        numbers = by_name
    elif not by_name and len(names) == count:
        numbers = {name: number for number, name in enumerate(names)}
        events.note(
            f"{folder}: no sub-folder has the name of a class, so the {count} of them are taken as the classes in the order of names"
        )
    else:
        stranger = next(name for name in names if name not in by_name)
        events.note(f"{folder}: sub-folder {stranger} is not one of the model's {count} classes, so no accuracy is measured")
        return None
    return torch.tensor([numbers[PurePosixPath(identity).parts[0]] for identity in ids])


def _classes(config: Any) -> dict[str, int]:
    """Class numbers by plain name; a part of a name only where it means one class."""
    whole: dict[str, int] = {}
    parts: dict[str, set[int]] = {}
    for number, label in (getattr(config, "id2label", None) or {}).items():
        whole.setdefault(_plain(str(label)), int(number))
        for part in str(label).split(","):
            parts.setdefault(_plain(part), set()).add(int(number))
    return {**{part: next(iter(numbers)) for part, numbers in parts.items() if len(numbers) == 1}, **whole}


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
