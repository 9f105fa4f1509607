"""Linears that are made of several: two matrices in a row, narrower values on one side, a branch beside a module.

A family's form names the linear that the architecture has. Where several modules stand there, or a branch beside one, the form is rewritten
to name the matrices that are really there, each with the space that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from thrifty.models.template import BlockForm, SpaceForm, StageForm

BRANCH = "branch"


def with_pieces(form: BlockForm, block: nn.Module) -> BlockForm:
    """The form of a block, its linears those that the block has."""
    for path, module in block.named_modules():
        if isinstance(module, nn.Sequential) and not path.endswith("." + BRANCH) and any(isinstance(part, nn.Linear) for part in module):
            form = _in_a_row(form, path, module)
    for path, module in block.named_modules():
        if isinstance(getattr(module, BRANCH, None), nn.Sequential):
            form = _beside(form, path, isinstance(module, nn.Linear | Conv1D | nn.Sequential))
    return form


def _in_a_row(form: BlockForm, path: str, module: nn.Sequential) -> BlockForm:
    """What stands in place of one linear, the parts that are none between them."""
    parts = list(module.named_children())
    linears = [
        (name, before)
        for before, (name, part) in zip([None, *(part for _, part in parts)], parts, strict=False)
        if isinstance(part, nn.Linear)
    ]
    first, before = linears[0]
    head = (f"{path}.{first}",) if before is None else ()
    tail = (f"{path}.{linears[-1][0]}",) if isinstance(parts[-1][1], nn.Linear) else ()
    spaces = {
        name: space.model_copy(update={"consumers": _put(space.consumers, path, head), "producers": _put(space.producers, path, tail)})
        for name, space in form.spaces.items()
    }
    stages: list[StageForm] = []
    for stage in form.stages:
        role = next((role for role, place in stage.linears if place == path), None)
        kept = tuple((own, place) for own, place in stage.linears if place != path)
        if role is None:
            stages.append(stage)
            continue
        direct = tuple((role, place) for place in head)
        stages.append(stage.model_copy(update={"linears": direct + kept}))
        previous = f"{path}.{first}"
        for name, passed in linears[len(head) :]:
            reads = f"{path}.{name}.input"
            inner = isinstance(passed, nn.Linear)
            spaces[reads] = SpaceForm(
                producers=(previous,) if inner else (), consumers=(f"{path}.{name}",), commutes_with="any" if inner else "none"
            )
            stages.append(StageForm(reads=reads, linears=((role, f"{path}.{name}"),)))
            previous = f"{path}.{name}"
    return form.model_copy(update={"spaces": spaces, "stages": tuple(stage for stage in stages if stage.linears or stage.experts)})


def _beside(form: BlockForm, path: str, linear: bool) -> BlockForm:
    """A branch that reads what the module at `path` reads."""
    down, up = f"{path}.{BRANCH}.down", f"{path}.{BRANCH}.up"
    place = next((at for at, stage in enumerate(form.stages) if any(_within(own, path) for _, own in stage.linears)), None)
    if place is None or form.stages[place].reads is None:
        return form
    stage = form.stages[place]
    spaces = dict(form.spaces)
    for name, space in form.spaces.items():
        consumers = (*space.consumers, down) if name == stage.reads else space.consumers
        # What a linear with a branch writes is no longer scaled by scaling its rows.
        producers = tuple(own for own in space.producers if not (linear and _within(own, path)))
        spaces[name] = space.model_copy(update={"consumers": consumers, "producers": producers})
    spaces[f"{up}.input"] = SpaceForm(producers=(down,), consumers=(up,), commutes_with="any")
    stages = list(form.stages)
    stages[place] = stage.model_copy(update={"linears": (*stage.linears, ("other", down))})
    last = max(at for at, own in enumerate(stages) if any(_within(inner, path) for _, inner in own.linears))
    stages.insert(last + 1, StageForm(reads=f"{up}.input", linears=(("other", up),)))
    return form.model_copy(update={"spaces": spaces, "stages": tuple(stages)})


def _within(place: str, path: str) -> bool:
    return place == path or place.startswith(path + ".")


def _put(places: tuple[str, ...], path: str, instead: tuple[str, ...]) -> tuple[str, ...]:
    def parts() -> Iterator[str]:
        for place in places:
            yield from instead if place == path else (place,)

    return tuple(parts())
