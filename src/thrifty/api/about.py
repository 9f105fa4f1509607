"""What there is: a model's anatomy, the methods, this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from thrifty.base.anatomy import Anatomy
from thrifty.base.errors import InputError
from thrifty.base.method import Method, nearest
from thrifty.data import default_model
from thrifty.measure.hardware import hardware, versions
from thrifty.models import open_model
from thrifty.pipeline.catalogue import load_methods
from thrifty.recipe.parse import recipes
from thrifty.runtime.linear import multiplies_bytes

__all__ = ["describe", "doctor", "methods", "recipes"]


def describe(model: str | Path | None = None, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> Anatomy:
    """What a model is made of; the model inside the package where none is named.

    Raises InputError for whatever is not a model (see `thrifty.models.open_model`).
    """
    return open_model(model or default_model(), allow_pickle=allow_pickle, trust_remote_code=trust_remote_code).anatomy


def methods(name: str | None = None) -> list[dict[str, Any]] | dict[str, Any]:
    """Every method: {name, family, paper, summary, parameters}, by name; or the one called `name`, with its `explanation`.

    Raises InputError for a name that no method has.
    """
    known = load_methods()
    if name is None:
        return [_entry(method) for method in known.values()]
    if name not in known:
        raise InputError(f"there is no method called {name!r}{nearest(name, known)}; `thrifty methods` lists them")
    return {**_entry(known[name]), "explanation": known[name].explanation()}


def _entry(method: type[Method]) -> dict[str, Any]:
    return {
        "name": method.name,
        "family": method.family,
        "paper": None if method.paper is None else vars(method.paper),
        "summary": method.summary(),
        "parameters": method.parameters(),
    }


def doctor() -> dict[str, Any]:
    """This machine and this installation: {versions, hardware, checks [{check, fine, note}]}."""
    kernel = multiplies_bytes() and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    free = shutil.disk_usage(Path.cwd()).free
    checks = [
        {
            "check": "kernels of torch for codes on this processor",
            "fine": kernel,
            "note": "" if kernel else "packed weights run decoded: slower",
        },
        {
            "check": "CUDA",
            "fine": torch.cuda.is_available(),
            "note": "" if torch.cuda.is_available() else "not needed: everything runs on the processor",
        },
        {"check": "free disk here", "fine": free > 1 << 30, "note": f"{free / 1e9:.1f} GB"},
        {"check": "model inside the package", "fine": (default_model() / "config.json").is_file(), "note": str(default_model())},
    ]
    return {"versions": versions(), "hardware": hardware(), "checks": checks}
