"""What a structural step will make of a model, decided before any weight is read: which units there are, how many stay, in which config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from thrifty.base.anatomy import Block, Units
from thrifty.base.errors import InputError
from thrifty.models import Source
from thrifty.models.resize import Resized, Resizer
from thrifty.models.units import units_of
from thrifty.pipeline import steps
from thrifty.pipeline.slopes import check_loss
from thrifty.pipeline.uneven import Counts, resize_unevenly
from thrifty.structure.base import BlockPruner, GradientPruner, Pruner, share_out
from thrifty.structure.narrow import Narrower
from thrifty.structure.rebuild import Rebuilder

Step = Pruner | BlockPruner | Rebuilder | Narrower


@dataclass(frozen=True)
class Shaping:
    """A structural step and what comes out of it.

    units: what is cut, by path of the original's block. kept: how many of them stay in a block, by their shared name, on average where
    that differs; by_block: how many, where it does. resized: the result before its
    blocks exist; where that depends on values, a stand-in of the same size until it is known. removed: how many those are.
    changes: (before, after) of every width, for people. scores: of each unit, by path of the block and name of the space, where a pass
    over the whole model has found them.
    """

    step: Step
    resized: Resized
    units: Mapping[str, tuple[Units, ...]] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    by_block: Counts = field(default_factory=dict)
    removed: int = 0
    changes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    scores: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether the step looks at calibration rows."""
        return isinstance(self.step, BlockPruner) or self.step.calibrated

    @property
    def uneven(self) -> bool:
        """Whether blocks may keep different numbers of units, which all of them together decide."""
        return isinstance(self.step, Pruner) and self.step.uneven and bool(self.kept)

    @property
    def follows(self) -> int:
        """Calibration rows whose loss is followed back through the whole model first, at most."""
        return self.step.rows if isinstance(self.step, GradientPruner) and self.kept else 0

    @property
    def undecided(self) -> bool:
        """Whether a pass over the whole model must come first."""
        return bool(self.removed) or self.uneven or bool(self.follows)

    @property
    def aside_bytes(self) -> int:
        """Bytes on disk, while it runs, of what that pass finds, rows apart."""
        return 0

    def product_bytes(self, block: Block) -> int:
        """Bytes of the products that are held while a loss is followed back through a block, beside its matrices."""
        return 0

    @property
    def operations_of_token(self) -> float:
        """Operations in single precision that these products take, beside the passes, for each token that is followed back."""
        return 0.0

    @property
    def operations(self) -> float:
        """About how many operations in double precision it takes to decide on what that pass finds."""
        return 0.0

    def count(self, block: Block, units: Units) -> int:
        """How many of these units stay in a block."""
        return self.by_block.get(block.path, self.kept)[units.alike]

    def outcome(self) -> dict[str, tuple[int, int]]:
        """`changes` with the parameters of what came out, which may have been foreseen a little off."""
        found = dict(self.changes)
        if "parameters" in found:
            found["parameters"] = (found["parameters"][0], self.resized.source.anatomy.parameters)
        return found

    def settings(self) -> dict[str, Any]:
        """The step as plain JSON values: part of the content keys."""
        return {self.step.name: self.step.settings()}


def shape(source: Source, step: Pruner | BlockPruner) -> Shaping:
    """What the step will make of this model. Raises InputError where the architecture cannot have it."""
    if isinstance(step, BlockPruner):
        shaping = _fewer_blocks(source, step)
    else:
        if isinstance(step, GradientPruner):
            check_loss(source, step.name)
        shaping = _unevenly_fewer(source, step) if step.uneven else _fewer_units(source, step)
    before, after = source.anatomy.parameters, shaping.resized.source.anatomy.parameters
    return replace(shaping, changes={"parameters": (before, after), **shaping.changes})


def _fewer_units(source: Source, step: Pruner) -> Shaping:
    found = {block.path: units_of(source, block) for block in source.anatomy.blocks}
    wanted = {path: [units for units in item.units if units.kind in step.cut] for path, item in found.items()}
    resizer = Resizer(source, wanted)
    kept: dict[str, int] = {}
    changes: dict[str, tuple[int, int]] = {}
    warnings = list(dict.fromkeys(sentence for item in found.values() for sentence in item.missing))
    for alike, units in {units.alike: units for items in wanted.values() for units in items}.items():
        try:
            count = resizer.keep(alike, step.kept(units)) if step.kept(units) < units.count else units.count
        except InputError as error:
            warnings.append(f"{error}; they are left as they are")
            continue
        changes[f"{alike} ({units.kind})"] = (units.count, count)
        if count < units.count:
            kept[alike] = count
    if not changes:
        what = ", ".join(step.cut)
        said = f": {'; '.join(warnings)}" if warnings else ""
        raise InputError(f"{source.anatomy.architecture} has none of the {what} that {step.name} would remove{said}")
    units_cut = {path: tuple(units for units in items if units.alike in kept) for path, items in wanted.items()}
    if step.adds_bias:
        warnings += _with_biases(source, resizer, units_cut)
    resized = resizer.result()
    return Shaping(step, resized, units_cut, kept, {}, 0, changes, (*warnings, *resized.warnings))


def _unevenly_fewer(source: Source, step: Pruner) -> Shaping:
    """As `_fewer_units`, for numbers that may differ: with the same number in each block as a stand-in."""
    found = {block.path: units_of(source, block) for block in source.anatomy.blocks}
    units = {path: tuple(item for item in one.units if item.kind in step.cut) for path, one in found.items()}
    kept = {item.alike: step.kept(item) for items in units.values() for item in items if step.kept(item) < item.count}
    units = {path: tuple(item for item in items if item.alike in kept) for path, items in units.items()}
    if not kept:
        raise InputError(f"{source.anatomy.architecture} has no {', '.join(step.cut)} of which {step.name} would remove any at this ratio")
    changes = {f"{item.alike} ({item.kind})": (item.count, kept[item.alike]) for items in units.values() for item in items}
    warnings = tuple(dict.fromkeys(sentence for one in found.values() for sentence in one.missing))
    by_block = {path: {item.alike: kept[item.alike] for item in items} for path, items in units.items()}
    resized = resize_unevenly(source, units, by_block, _biased(source, step, units))
    return Shaping(step, resized, units, kept, by_block, 0, changes, warnings)


def _biased(source: Source, step: Pruner, units: Mapping[str, Sequence[Units]]) -> set[str]:
    """The linears that get a bias where every layer says for itself what it has; experts have none."""
    if not step.adds_bias:
        return set()
    paths = {member.linear for items in units.values() for item in items for member in item.members if member.side == "columns"}
    return {
        linear.path for linear in source.anatomy.linears if linear.path in paths and linear.expert is None and linear.bias_source is None
    }


def shared_out(source: Source, shaping: Shaping, scores: Mapping[str, Mapping[str, list[float]]]) -> Shaping:
    """The shaping with the numbers of each block decided. scores: of each unit, by path of the block and name of the space."""
    step = shaping.step
    assert isinstance(step, Pruner)
    by_block: dict[str, dict[str, int]] = {path: {} for path in shaping.units}
    for alike, kept in shaping.kept.items():
        holders = {path: [item for item in items if item.alike == alike] for path, items in shaping.units.items()}
        holders = {path: items for path, items in holders.items() if items}
        one = next(iter(holders.values()))[0]
        ranked = [[torch.tensor(scores[path][item.space.name]) for item in items] for path, items in holders.items()]
        for path, count in zip(holders, share_out(ranked, kept, step.step_of(one), one.least), strict=True):
            by_block[path][alike] = count
    resized = resize_unevenly(source, shaping.units, by_block, _biased(source, step, shaping.units))
    return replace(shaping, resized=resized, by_block=by_block)


def _with_biases(source: Source, resizer: Resizer, units: Mapping[str, Sequence[Units]]) -> list[str]:
    """Ask for biases of what reads removed units; one sentence for those that the architecture has no place for."""
    linears = {linear.path: linear for linear in source.anatomy.linears}
    members = [member for items in units.values() for each in items for member in each.members if member.side == "columns"]
    readers = {member.linear for member in members if member.linear is not None and linears[member.linear].expert is None}
    lacking = resizer.add_biases(readers)
    lacking |= {member.linear for member in members if member.linear is not None and linears[member.linear].expert is not None}
    roles = sorted({linears[path].role for path in lacking})
    if not roles:
        return []
    name = source.anatomy.architecture
    return [f"{name} has no bias at its {', '.join(roles)} matrices: what removed units put out on average is not given back there"]


def _fewer_blocks(source: Source, step: BlockPruner) -> Shaping:
    chain = _chain(source)
    blocks = [block for block in source.anatomy.blocks if block.chain == chain]
    removed = max(1, round(step.ratio * len(blocks)))
    removable = len(blocks) - step.first - step.last
    if removed > removable or removed >= len(blocks):
        raise InputError(
            f"{step.name} would remove {removed} of {len(blocks)} blocks, but {step.first} at the beginning and {step.last} at the end are "
            f"to stay and one must; take a smaller ratio, or smaller first and last"
        )
    gone = [block.path for block in blocks[step.first : step.first + removed]]
    return replace(_without(source, step, gone), removed=removed)


def without_blocks(source: Source, shaping: Shaping, influence: Mapping[str, float]) -> Shaping:
    """The shaping with the blocks chosen: those of least influence (of equals the later ones) go, the protected ones apart."""
    step, chain = shaping.step, _chain(source)
    assert isinstance(step, BlockPruner)
    blocks = [block for block in source.anatomy.blocks if block.chain == chain]
    free = blocks[step.first : len(blocks) - step.last]
    order = sorted(free, key=lambda block: (influence[block.path], -block.index))
    chosen = _without(source, step, [block.path for block in order[: shaping.removed]])
    return replace(chosen, removed=shaping.removed, changes=shaping.changes)


def _without(source: Source, step: BlockPruner, gone: Sequence[str]) -> Shaping:
    chain = _chain(source)
    blocks = [block for block in source.anatomy.blocks if block.chain == chain]
    resizer = Resizer(source, {block.path: () for block in source.anatomy.blocks})
    stay = [block.index for block in blocks if block.path not in gone]
    resizer.keep_blocks(chain, stay)
    return Shaping(step, resizer.result(), changes={f"{chain} (blocks)": (len(blocks), len(stay))})


def _chain(source: Source) -> str:
    """The chain whose blocks are removed: the language model of a model that has one."""
    return "text" if "text" in source.anatomy.chains else source.anatomy.chains[-1]


def structural(part: Sequence[steps.Step]) -> Step | None:
    """The structural step that a part of a recipe is (see `recipe.chain`); None where it is of other steps.

    Raises InputError where it is to act on some matrices only.
    """
    step, method = part[0], next(iter(part[0].methods.values()))
    if not isinstance(method, Step):
        return None
    if not step.whole:
        own = "its setting cut" if isinstance(method, Pruner) else "its own settings"
        advice = "choose by " + ("first and last" if isinstance(method, BlockPruner) else own)
        raise InputError(f"{step.name} cuts every block alike, so it takes no only, skip or override; {advice}")
    return method


def originals(shaping: Shaping) -> dict[str, Block]:
    """Blocks of the result, by path of the original's block that each comes from."""
    new = {block.path: block for block in shaping.resized.source.anatomy.blocks}
    return {old.path: new[path] for path, old in shaping.resized.blocks.items()}
