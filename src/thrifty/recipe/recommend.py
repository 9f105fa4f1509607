"""What to do when the user only says how many bits, or nothing: a shipped recipe, fitted to the widths of the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from thrifty.base.anatomy import Anatomy, Linear
from thrifty.base.errors import InputError
from thrifty.recipe.language import Recipe, Step
from thrifty.recipe.parse import parse_recipe, shipped

SMALLEST_GROUP = 8


def recommend(anatomy: Anatomy, bits: int = 4) -> tuple[Recipe, str]:
    """The shipped recipe for `bits` (2 to 8), fitted to the anatomy, and a sentence that says what it is.

    Where the group size of the recipe does not divide a width, the largest smaller power of two that does and is at least 8 is taken,
    else one scale a row: for that width, or for all where readers take only one group size in a file. Transforms are left out where no
    space can be rewritten.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise InputError(f"--bits must be a whole number from 2 to 8; got {bits!r}")
    name = f"w{bits}"
    recipe = parse_recipe(name if name in shipped() else "w4")
    steps = []
    for step in recipe.steps:
        if "bits" in step.settings:
            steps.append(_fitted(step, anatomy, bits))
        elif _can_rewrite(anatomy):
            steps.append(step)
    fitted = recipe.model_copy(update={"steps": tuple(steps)})
    return fitted, _sentence(fitted, anatomy, bits)


def fitting_group(width: int, group_size: int) -> int:
    """The largest power-of-two fraction of `group_size` that divides `width` and is at least 8; 0 (one scale a row) where none does."""
    while group_size >= SMALLEST_GROUP:
        if width % group_size == 0:
            return group_size
        group_size //= 2
    return 0


def _fitted(step: Step, anatomy: Anatomy, bits: int) -> Step:
    wanted = step.settings.get("group_size", 0)
    if _one_for_all(step, anatomy):
        wanted = common_group((linear.in_features for linear in anatomy.linears), wanted)
    settings: dict[str, Any] = {**step.settings, "bits": bits}
    if "group_size" in settings:
        settings["group_size"] = wanted
    if any(block.experts for block in anatomy.blocks):
        settings["symmetric"] = True  # transformers reads no packed experts with zero points
    exceptions = _exceptions(anatomy, wanted)
    override = tuple((path, {"group_size": group}) for group, linears in exceptions.items() for path in _patterns(linears, anatomy))
    return step.model_copy(update={"settings": settings, "override": (*step.override, *override)})


def common_group(widths: Iterable[int], group_size: int) -> int:
    """The largest power-of-two fraction of `group_size` that divides every width and is at least 8; 0 where none does."""
    return fitting_group(math.gcd(*widths), group_size)


def _one_for_all(step: Step, anatomy: Anatomy) -> bool:
    """Whether a file of this model may hold one group size only (see `pipeline.packing`): with zero points, state-space blocks, experts."""
    return not step.settings.get("symmetric", True) or any(block.state_space or block.experts for block in anatomy.blocks)


def _exceptions(anatomy: Anatomy, wanted: int) -> dict[int, list[Linear]]:
    """The linears whose width the wanted group size does not divide, by the group size that fits them."""
    found: dict[int, list[Linear]] = defaultdict(list)
    if wanted:
        for linear in anatomy.linears:
            group = fitting_group(linear.in_features, wanted)
            if group != wanted:
                found[group].append(linear)
    return dict(found)


def _patterns(linears: list[Linear], anatomy: Anatomy) -> list[str]:
    """Patterns that match these linears and no others: by last name where that is enough, else path by path."""
    paths = {linear.path for linear in linears}
    patterns: list[str] = []
    for end in dict.fromkeys(linear.path.rsplit(".", 1)[-1] for linear in linears):
        same_end = {linear.path for linear in anatomy.linears if linear.path.endswith("." + end)}
        patterns += [f"*.{end}"] if same_end and same_end <= paths else sorted(path for path in paths if path.rsplit(".", 1)[-1] == end)
    return patterns


def _can_rewrite(anatomy: Anatomy) -> bool:
    return any(space.producers and space.commutes_with != "none" for block in anatomy.blocks for space in block.spaces)


def _sentence(recipe: Recipe, anatomy: Anatomy, bits: int) -> str:
    """One line for the user: methods, bits, group size, and which linears could not have it."""
    step = next(step for step in recipe.steps if "bits" in step.settings)
    wanted = step.settings.get("group_size", 0)
    parts = [f"{recipe.words()}, {bits} bit, {_group(wanted)}"]
    for group, linears in _exceptions(anatomy, wanted).items():
        count = f"{len(linears)} linears of width {', '.join(map(str, sorted({linear.in_features for linear in linears})))}"
        parts.append(f"{_group(group)} for {count}")
    return "; ".join(parts)


def _group(size: int) -> str:
    return f"group {size}" if size else "one scale a row"
