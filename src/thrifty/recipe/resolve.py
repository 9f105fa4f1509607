"""A recipe and a model's anatomy to what is done to each linear: patterns become paths, settings become methods."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from thrifty.base.anatomy import Anatomy
from thrifty.base.errors import InputError
from thrifty.base.method import Method
from thrifty.base.store import canonical
from thrifty.pipeline import steps as pipeline
from thrifty.pipeline.catalogue import load_methods
from thrifty.pipeline.shaping import structural
from thrifty.recipe.language import Recipe, Step
from thrifty.recipe.settings import build_method, merge


def resolve(recipe: Recipe, anatomy: Anatomy, first: int = 1, changed: bool = False) -> tuple[pipeline.Step, ...]:
    """The method of each step for each linear that it selects, every target checked against every shape.

    first: the number of the first step. changed: whether the model was changed by other steps before.
    Raises InputError for a pattern that matches no linear, a step that selects none, and a shape that a target cannot hold.
    """
    load_methods()
    resolved = tuple(_resolve_step(step, f"step {number} ({step.method})", anatomy) for number, step in enumerate(recipe.steps, first))
    if structural(resolved) is None:
        pipeline.Work.of(resolved, changed).check(anatomy)
    return resolved


def _resolve_step(step: Step, at: str, anatomy: Anatomy) -> pipeline.Step:
    paths = [linear.path for linear in anatomy.linears]
    if not paths:
        raise InputError(f"{at}: no linear of this {anatomy.architecture} can be compressed; `thrifty describe` shows what was found")
    for pattern in step.only:
        _must_match(pattern, paths, f"{at}: only")
    never = _never_compressed(anatomy)
    for pattern in step.skip:
        if not _matches(pattern, never):
            _must_match(pattern, paths, f"{at}: skip")
    selected = [path for path in paths if (not step.only or _any(step.only, path)) and not _any(step.skip, path)]
    if not selected:
        raise InputError(f"{at} selects no linear: `skip` takes away everything that `only` leaves")
    for pattern, _ in step.override:
        _must_match(pattern, selected, f"{at}: override")
    return pipeline.Step(step.method, _methods(step, selected), whole=not (step.only or step.skip or step.override))


def _methods(step: Step, selected: list[str]) -> dict[str, Method]:
    """The step's method for each path, overrides laid over each other in order; equal settings share one object."""
    built: dict[str, Method] = {}
    chosen: dict[str, Method] = {}
    for path in selected:
        settings = step.settings
        for pattern, changes in step.override:
            if fnmatchcase(path, pattern):
                settings = merge(settings, changes)
        key = canonical(settings)
        if key not in built:
            built[key] = build_method(step.method, settings)
        chosen[path] = built[key]
    return chosen


def _any(patterns: Iterable[str], path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _matches(pattern: str, paths: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for path in paths)


def _never_compressed(anatomy: Anatomy) -> set[str]:
    """What no step selects anyway, so that skipping it is no mistake: head, embeddings, routers."""
    routers = {router.path for block in anatomy.blocks for router in block.routers}
    return {"lm_head", *anatomy.embeddings, *routers, *({anatomy.head} if anatomy.head else set())}


def _must_match(pattern: str, paths: list[str], what: str) -> None:
    """Raise InputError naming the nearest paths when `pattern` matches none."""
    if _matches(pattern, paths):
        return
    if any(path.startswith(pattern + ".") for path in paths):
        raise InputError(f"{what}: {pattern!r} is the path of no linear; write '{pattern}.*' for all linears inside it")
    close = [path for path in paths if path.endswith("." + pattern)][:1]
    if close:
        raise InputError(f"{what}: {pattern!r} matches no linear; write '*.{pattern}' for all linears of that name")
    bare = pattern.replace("*", "")
    by_end: dict[str, str] = {}
    for path in paths:
        by_end.setdefault(path.rsplit(".", 1)[-1], path)
    ends = difflib.get_close_matches(bare.rsplit(".", 1)[-1], by_end, n=3, cutoff=0.4)
    near = [by_end[end] for end in ends] or difflib.get_close_matches(bare, paths, n=3, cutoff=0.0)
    raise InputError(f"{what}: {pattern!r} matches no linear; the nearest are {', '.join(near)} (`thrifty describe` lists them all)")
