"""Results in our own container: every matrix that a recipe treats is stored as what its target holds, whatever that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Linear
from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.reading import Reading
from thrifty.export.container import LAYOUTS, METHOD, Held, Inputs, Layout, Parts, container_config, estimate, layout_of, layouts, names_of
from thrifty.export.container.folder import Matrix
from thrifty.export.container.layout import WEIGHTS_PER_BYTE, layout_from_json, name_of_part
from thrifty.models import Source
from thrifty.pipeline.packing import Packing, outline_of, said_of
from thrifty.pipeline.steps import Work
from thrifty.runtime.container import MOST_BITS

INPUTS = "inputs"
"""Where the form of a linear says what is done to its inputs."""

VALUES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of sparse values."""


@dataclass(frozen=True)
class Outlook:
    """What is known of a matrix before it is solved. sparse: whether zeros are left out. nbytes: about; dtype: the model's own."""

    sparse: bool
    nbytes: int
    dtype: torch.dtype


@dataclass(frozen=True)
class ContainerPacking(Packing):
    """How the result will be stored in our container; readers decode to float32, experts too.

    reading: the linears that may turn and round their inputs, by path.
    """

    format: ClassVar[str] = METHOD

    reading: frozenset[str] = frozenset()

    @classmethod
    def decide(cls, source: Source, work: Work) -> ContainerPacking:
        return container_packing(source, work)

    def accept(self, linear: Linear, encoded: Encoded, values: Float[Tensor, "out in"]) -> tuple[Encoded, Tensor]:
        if encoded.layout != "dense":
            return encoded, values
        rounded = values.to(self.schemes[linear.path].dtype)
        return replace(encoded, tensors={"values": rounded}, bits=8.0 * rounded.itemsize), rounded.to(torch.float32)

    def rounds(self, path: str) -> bool:
        return path in self.reading

    def turns(self, path: str) -> bool:
        return path in self.reading

    def write(self, linear: Linear, encoded: Encoded, reading: Reading) -> tuple[dict[str, Tensor], dict[str, Any]]:
        layout = layout_of(encoded, sparse=self.schemes[linear.path].sparse, transposed=linear.storage == "conv1d")
        parts = {name_of_part(key_of(linear), part): tensor.contiguous() for part, tensor in layout.encode(encoded).items()}
        return parts, {**layout.to_json(), **({INPUTS: Inputs.of(reading).to_json()} if reading else {})}

    def read_back(
        self, linear: Linear, form: Mapping[str, Any], keys: Collection[str], get: Callable[[str], Tensor]
    ) -> Float[Tensor, "out in"]:
        layout = _layout(form, linear)
        stored = {name: Held(get(name)) for name in names_of(key_of(linear), layout) if name in keys}
        return layout.decode(Parts(key_of(linear), stored), (linear.out_features, linear.in_features)).decode()

    def stored_bytes(self, linear: Linear) -> int:
        return int(self.schemes[linear.path].nbytes)

    def config(self, source: Source, forms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        linears = [linear for linear in source.anatomy.linears if linear.path in forms]
        matrices = {
            key_of(linear): Matrix(_layout(forms[linear.path], linear), (linear.out_features, linear.in_features)) for linear in linears
        }
        inputs = {key_of(linear): Inputs(**forms[linear.path][INPUTS]) for linear in linears if INPUTS in forms[linear.path]}
        return container_config(matrices, {linear.source: source.tensors[linear.source].shape for linear in linears if linear.part}, inputs)


def _layout(form: Mapping[str, Any], linear: Linear) -> Layout:
    return layout_from_json({name: value for name, value in form.items() if name != INPUTS}, linear.path)


def key_of(linear: Linear) -> str:
    """The key of a matrix in the container: that of its tensor, and its place there where the tensor holds many."""
    return linear.source if linear.part is None else f"{linear.source}.{linear.part.expert}.{linear.part.start}"


def container_packing(source: Source, work: Work) -> ContainerPacking:
    """Decide for a whole model which matrices are stored as codes, or without their zeros. Raises InputError for what it cannot hold."""
    if source.library != "transformers":
        raise InputError(f"{source.library} does not read the container, which holds models of transformers; leave --format out")
    schemes: dict[str, Outlook] = {}
    reasons: dict[str, str] = {}
    for linear in source.anatomy.linears:
        outline = outline_of(linear, work)
        if outline is None:
            continue
        kept = min(treatment.target.density(linear.in_features) for treatment in work.treatments[linear.path])
        found = _scheme(outline, kept, source.tensors[linear.source].dtype)
        if isinstance(found, Outlook):
            schemes[linear.path] = found
        elif found:
            reasons[linear.path] = found
    reasons |= _torn(source, schemes)
    schemes = {path: scheme for path, scheme in schemes.items() if path not in reasons}
    reading, left = _readers(source, work, schemes)
    said = [*said_of(reasons, "quantized, but stored dense at full size"), *said_of(left, "its inputs stay as they are")]
    return ContainerPacking(schemes, source.dtype, False, tuple(said), reading=reading)


def _readers(source: Source, work: Work, schemes: Mapping[str, Outlook]) -> tuple[frozenset[str], dict[str, str]]:
    """(the linears that may do something to their inputs, why others to which a step asks it do not, by path).

    Raises InputError where steps ask for it and no reader would do any of it.
    """
    turned = work.turned_while_running(source.anatomy)
    asked = {*turned, *(path for path in work.treatments if work.activation(path) is not None)}
    found = {linear.path: _unread(linear, work, schemes, source.plain_linears) for linear in source.anatomy.linears}
    reasons = {path: reason for path, reason in found.items() if path in asked and reason is not None}
    for what, paths, method in (("turn", set(turned), "`online`"), ("round", asked - set(turned), "`activation`")):
        if paths and paths <= reasons.keys():
            path = next(path for path in found if path in paths)
            raise InputError(f"no reader would {what} the inputs of this model ({path}: {reasons[path]}); leave {method} out")
    return frozenset(path for path, reason in found.items() if reason is None), reasons


def _unread(linear: Linear, work: Work, schemes: Mapping[str, Outlook], plain: Container[str]) -> str | None:
    """Why nothing can be done to the inputs of a linear; None where it can."""
    outline = outline_of(linear, work)
    if outline is None or linear.path not in schemes:
        return "its weights are stored dense"
    activation = work.activation(linear.path)
    if activation is not None and activation.by_channel:
        return "no reader rounds inputs by channel, which is simulated without --format thrifty"
    if linear.expert is not None:
        return "experts are called together, with no room for it"
    if linear.storage == "conv1d":
        return "it is a Conv1D, whose codes are decoded while it is loaded"
    if linear.path not in plain:
        return "transformers builds it as a layer of its own kind"
    if outline.layout not in LAYOUTS or outline.bits > MOST_BITS:
        return "its codes are decoded while it is loaded"
    size = activation.outline.group_size if activation is not None else 0
    if size and linear.in_features % size:
        return f"groups of {size} do not divide its {linear.in_features} inputs"
    return None


def _scheme(outline: Encoded, kept: float, dtype: torch.dtype) -> Outlook | str:
    """How a matrix is held, or why it is not: empty where it is dense as a whole."""
    if outline.layout not in layouts():
        return f"the container has no layout {outline.layout!r}"
    plain = outline.shape[0] * outline.shape[1] * dtype.itemsize
    if outline.layout == "dense":
        if kept == 1 or dtype not in VALUES:
            return ""
        nbytes = estimate(replace(outline, tensors={"values": torch.empty(outline.shape, dtype=dtype, device="meta")}), kept)
        return Outlook(True, nbytes, dtype) if nbytes < plain else ""
    whole, masked = estimate(outline), estimate(outline, kept)
    if outline.shape[0] * outline.shape[1] > WEIGHTS_PER_BYTE * min(whole, masked):
        return f"the container has no matrices of less than {8 / WEIGHTS_PER_BYTE} bits a weight"
    return Outlook(masked < whole, min(whole, masked), dtype)


def _torn(source: Source, schemes: Mapping[str, Outlook]) -> dict[str, str]:
    """Matrices that lie in one tensor with others that are not held."""
    parts = [linear for linear in source.anatomy.linears if linear.part is not None]
    missing = Counter(linear.source for linear in parts if linear.path not in schemes)
    torn = [linear.path for linear in parts if linear.path in schemes and missing[linear.source]]
    return dict.fromkeys(torn, "it lies in one tensor with matrices that are not compressed")
