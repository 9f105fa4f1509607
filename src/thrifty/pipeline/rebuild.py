"""The walk of a step that puts other tensors in place of a block's: planned before any weight is read, then rebuilt block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from thrifty.base import events
from thrifty.base.anatomy import Block, Linear
from thrifty.base.errors import InputError, RunError
from thrifty.base.records import Cut
from thrifty.base.store import write_atomic
from thrifty.core.finite import all_finite
from thrifty.core.linalg import row_forms
from thrifty.data import Rows
from thrifty.export.uneven.outline import uneven_config
from thrifty.models import Call, Source
from thrifty.models.resize import Resized, Resizer
from thrifty.models.skeleton import build_skeleton
from thrifty.pipeline.block import LayerReport
from thrifty.pipeline.following import followed
from thrifty.pipeline.reshape import CutView, ReshapeWalk
from thrifty.pipeline.shaping import Shaping, Step
from thrifty.pipeline.shaping import shape as shape_plainly
from thrifty.pipeline.slicing import slicing
from thrifty.pipeline.slopes import check_loss, products
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.streams import Streams
from thrifty.pipeline.uneven import opened
from thrifty.structure.base import Seen
from thrifty.structure.narrow import Narrower
from thrifty.structure.rebuild import Form, LossRebuilder, Plan, Rebuilder, Rebuilt, gram_of

BRANCH = ".branch"


@dataclass(frozen=True)
class Rebuilding(Shaping):
    """A shaping of this kind, with what its step has planned. seen: the file of each block's products of slopes, by its path, where the
    step plans by them and has."""

    plan: Plan = field(default_factory=Plan)
    seen: Mapping[str, Path] = field(default_factory=dict)

    @property
    def follows(self) -> int:
        return self.step.rows if isinstance(self.step, LossRebuilder) else 0

    @property
    def undecided(self) -> bool:
        return isinstance(self.step, LossRebuilder) and not self.seen

    @property
    def _weighed(self) -> Mapping[str, Form]:
        """The forms that what the loss changes with decides on."""
        return self.plan.forms if isinstance(self.step, LossRebuilder) else {}

    @property
    def aside_bytes(self) -> int:
        return sum(4 * form.out_features**2 for form in self._weighed.values())

    def product_bytes(self, block: Block) -> int:
        outputs = [linear.out_features**2 for linear in block.linears if linear.path in self._weighed]
        if not outputs:
            return 0
        # all are summed in float32; one is factored in float64
        return sum(4 * size for size in outputs) + 24 * max(outputs) + sum(8 * stage.reads.width**2 for stage in block.stages)

    @property
    def operations_of_token(self) -> float:
        return sum(2.0 * form.out_features**2 for form in self._weighed.values())

    @property
    def operations(self) -> float:
        return sum(self._operations(form) for form in self._weighed.values())

    def _operations(self, form: Form) -> float:
        assert isinstance(self.step, LossRebuilder)
        return self.step.operations(form.out_features, form.in_features)


def shaped(source: Source, step: Step) -> Shaping:
    """What a structural step will make of this model. Raises InputError where the architecture cannot have it."""
    if source.library != "transformers":
        raise InputError(
            f"{step.name} changes what a config of transformers says, and {source.anatomy.architecture} is of {source.library}"
        )
    if isinstance(step, Narrower):
        return slicing(source, step)
    return rebuilding(source, step) if isinstance(step, Rebuilder) else shape_plainly(source, step)


def rebuilding(source: Source, step: Rebuilder) -> Rebuilding:
    """What the step will make of this model. Raises InputError where the architecture cannot have it."""
    if isinstance(step, LossRebuilder):
        check_loss(source, step.name)
    return planned(source, step, step.plan(source.anatomy))


def planned(source: Source, step: Rebuilder, plan: Plan) -> Rebuilding:
    """What comes out where a step does what it has planned."""
    changes: dict[str, tuple[int, int]] = {}
    if not (plan.forms or plan.branches):
        resized = Resizer(source, {block.path: () for block in source.anatomy.blocks}).result()
    else:
        resized = _resized(source, plan)
        changes["parameters"] = (source.anatomy.parameters, resized.source.anatomy.parameters)
    return Rebuilding(step, resized, changes=changes, warnings=plan.warnings, plan=plan)


def _resized(source: Source, plan: Plan) -> Resized:
    """The model with these forms, before its blocks exist."""
    shapes = {name: tuple(value.shape) for name, value in build_skeleton(source.config).state_dict().items()}
    infos = dict(source.tensors)
    linears = {linear.path: linear for linear in source.anatomy.linears}
    for path, form in plan.forms.items():
        linear = linears[path]
        like = infos[linear.source]
        for key, name in ((linear.source, ".weight"), (linear.bias_source, ".bias")):
            infos.pop(key or "", None)
            shapes.pop(path + name, None)
        for name, shape in form.tensors(linear).items():
            shapes[path + name] = shape
            infos[_key(linear, name)] = like.of_shape(shape)
    for path, (into, rank, out) in plan.branches.items():  # no tensor of the original names these, so they are called on disk as in memory
        like = next(source.tensors[linear.source] for linear in source.anatomy.linears if linear.path.startswith(path))
        for name, shape in ((f"{path}{BRANCH}.down.weight", (rank, into)), (f"{path}{BRANCH}.up.weight", (out, rank))):
            shapes[name] = shape
            infos[name] = like.of_shape(shape)
    raw = uneven_config(_raw(source), {name: list(values) for name, values in plan.sizes.items()}, shapes)
    made, blocks = opened(source, raw, infos)
    return Resized(made, raw, blocks)


def _raw(source: Source) -> dict[str, Any]:
    return Resizer(source, {block.path: () for block in source.anatomy.blocks}).raw


def _key(linear: Linear, name: str) -> str:
    """The disk key of a tensor of a linear's form; names in memory and on disk end alike."""
    return linear.source.removesuffix(".weight") + name


@dataclass
class RebuildWalk(ReshapeWalk):
    """The walk of such a step."""

    title: str = "blocks rebuilt"

    @property
    def plan(self) -> Plan:
        """What the step has planned."""
        assert isinstance(self.shaping, Rebuilding)
        return self.shaping.plan

    def _decided(self) -> object:
        return [super()._decided(), {path: [form.rank, form.parameters] for path, form in self.plan.forms.items()}]

    def _look(self, view: CutView, streams: Streams, watch: Stopwatch) -> Seen:
        rows = streams.now.get("calibration")
        if rows is None or not self.shaping.calibrated:
            return Seen(torch.empty(0) if rows is None else rows, seed=self.setting.seed)
        seen = self.observed(view, rows, watch)
        assert isinstance(self.shaping, Rebuilding)
        file = self.shaping.seen.get(view.block.path)
        return seen if file is None else replace(seen, slope_products=load_file(file))

    def _cut(self, view: CutView, seen: Seen) -> tuple[dict[str, Tensor], list[Cut], list[str]]:
        step = self.shaping.step
        assert isinstance(step, Rebuilder)
        made = step.rebuild(view, seen, self.plan)
        changed = dict(made.tensors)
        gone: set[str] = set()
        for linear in view.block.linears:
            form = self.plan.forms.get(linear.path)
            if form is not None:
                gone |= {key for key in (linear.source, linear.bias_source) if key is not None}
                changed |= {_key(linear, name): values for name, values in _named(view, linear, form, made)}
        for path, (up, down) in made.branches.items():
            changed[f"{path}{BRANCH}.down.weight"] = down
            changed[f"{path}{BRANCH}.up.weight"] = up
        tensors = {key: self.source.read(key) for key in self.source.block_keys(view.block) if key not in gone}
        infos = self.shaping.resized.source.tensors
        tensors |= {key: values.to(infos[key].dtype).contiguous() for key, values in changed.items()}
        for key, values in changed.items():
            if tuple(values.shape) != infos[key].shape or not all_finite(values):
                raise RunError(f"{key}: {step.name} made values for it that are not finite, or of another shape than it had planned")
        self.rebuilt = made
        return tensors, [], []

    def _check(self, view: CutView, cuts: Any, calls: dict[str, Call], streams: Streams) -> None:
        """Nothing is switched off here: there is no model of the same shape to compare with."""

    def _reports(self, view: CutView, cuts: Any, seen: Seen) -> tuple[LayerReport, ...]:
        return tuple(self._rows(view, seen))

    def _rows(self, view: CutView, seen: Seen) -> Iterator[LayerReport]:
        """A row for each matrix in another form: the share of it that is gone, and what is lost of its outputs where they stay the same."""
        tokens = 0 if self.calibration is None else self.calibration.tokens
        for linear in view.block.linears:
            form = self.plan.forms.get(linear.path)
            if form is not None:
                before = linear.out_features * linear.in_features
                error = self._errors(view, linear, seen)
                yield LayerReport(
                    name=linear.path,
                    method=self.shaping.step.name,
                    bits=8.0 * self.source.tensors[linear.source].dtype.itemsize,
                    sparsity=1 - form.parameters / before,
                    error=error[0],
                    relative_error=error[1],
                    tokens=tokens,
                    details={"rank": float(form.rank)} if form.rank else {},
                )

    def _errors(self, view: CutView, linear: Linear, seen: Seen) -> tuple[float, float]:
        """(error, as a share of the output's energy); inputs count alike where none were seen."""
        made = self.rebuilt.matrices[linear.path]
        if isinstance(made, tuple):
            gram = gram_of(view.block, linear.path, seen)
            gram = torch.eye(linear.in_features) if gram is None else gram
            weight = view.read(linear.path)
            size = float(row_forms(weight, gram).sum())
            error = float(row_forms(weight - made[0] @ made[1], gram).clamp_min(0).sum())
        else:
            error, size = self.rebuilt.lost[linear.path]
        return error, error / size if size > 0 else 0.0


def _named(view: CutView, linear: Linear, form: Form, made: Rebuilt) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a form, named as it names them."""
    values = made.matrices[linear.path]
    if isinstance(values, tuple):
        yield ".up.weight", values[0]
        yield ".down.weight", values[1]
    else:
        name = next(iter(form.tensors(linear)))
        yield name, values.T if linear.storage == "conv1d" and name == ".weight" else values
    if linear.bias_source is not None:
        yield form.bias_name, made.biases[linear.path] if linear.path in made.biases else view.bias(linear.path)


def surveyed(walk: RebuildWalk) -> tuple[RebuildWalk, float]:
    """(the walk with what the step plans when it has seen what the loss of the whole model changes with; the seconds it took)."""
    step, place = walk.shaping.step, walk.folder.path / "slopes"
    assert isinstance(step, LossRebuilder)

    def judge(block: Block, seen: Seen) -> tuple[dict[str, Any], list[str]]:
        view, tensors = CutView(walk, block, None), dict(seen.slope_products)
        write_atomic(place / f"{block.path}.safetensors", partial(save_file, tensors))
        unreached = [path for path, product in tensors.items() if not bool(product.any())]
        return {path: values.tolist() for path, values in step.survey(view, seen).items()}, unreached

    def follow(rows: Rows) -> Iterator[tuple[Block, Seen]]:
        return products(walk.source, rows, walk.setting, walk.plan.forms)

    told = followed(walk, walk.shaping.follows, place / "survey.json", "blocks surveyed", follow, judge)
    for path in told["unreached"]:
        events.warn(f"{path}: the loss of no row changes with what it puts out, so it is given the least; raise rows")
    plan = step.settle(walk.source.anatomy, {path: torch.tensor(values, dtype=torch.float64) for path, values in told["found"].items()})
    seen = {block.path: place / f"{block.path}.safetensors" for block in walk.source.anatomy.blocks}
    return replace(walk, shaping=replace(planned(walk.source, step, plan), seen=seen)), told["seconds"]
