"""Results in our own container: every matrix that a recipe treats is stored as what its target holds, whatever that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Linear
from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.activations import Rounding
from thrifty.export.container import METHOD, Held, Parts, container_config, estimate, layout_of, layouts, names_of
from thrifty.export.container.folder import Matrix
from thrifty.export.container.layout import WEIGHTS_PER_BYTE, layout_from_json, name_of_part
from thrifty.models import Source
from thrifty.pipeline.packing import Packing, outline_of, said_of
from thrifty.pipeline.steps import Work

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
    """How the result will be stored in our container; readers decode to float32, experts too."""

    format: ClassVar[str] = METHOD

    @classmethod
    def decide(cls, source: Source, work: Work) -> ContainerPacking:
        return container_packing(source, work)

    def accept(self, linear: Linear, encoded: Encoded, values: Float[Tensor, "out in"]) -> tuple[Encoded, Tensor]:
        if encoded.layout != "dense":
            return encoded, values
        rounded = values.to(self.schemes[linear.path].dtype)
        return replace(encoded, tensors={"values": rounded}, bits=8.0 * rounded.itemsize), rounded.to(torch.float32)

    def rounds(self, path: str) -> bool:
        return False

    def write(self, linear: Linear, encoded: Encoded, rounding: Rounding | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        layout = layout_of(encoded, sparse=self.schemes[linear.path].sparse, transposed=linear.storage == "conv1d")
        parts = {name_of_part(key_of(linear), part): tensor.contiguous() for part, tensor in layout.encode(encoded).items()}
        return parts, layout.to_json()

    def read_back(
        self, linear: Linear, form: Mapping[str, Any], keys: Collection[str], get: Callable[[str], Tensor]
    ) -> Float[Tensor, "out in"]:
        layout = layout_from_json(form, linear.path)
        stored = {name: Held(get(name)) for name in names_of(key_of(linear), layout) if name in keys}
        return layout.decode(Parts(key_of(linear), stored), (linear.out_features, linear.in_features)).decode()

    def stored_bytes(self, linear: Linear) -> int:
        return int(self.schemes[linear.path].nbytes)

    def config(self, source: Source, forms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        linears = [linear for linear in source.anatomy.linears if linear.path in forms]
        matrices = {
            key_of(linear): Matrix(layout_from_json(forms[linear.path], linear.path), (linear.out_features, linear.in_features))
            for linear in linears
        }
        return container_config(matrices, {linear.source: source.tensors[linear.source].shape for linear in linears if linear.part})


def key_of(linear: Linear) -> str:
    """The key of a matrix in the container: that of its tensor, and its place there where the tensor holds many."""
    return linear.source if linear.part is None else f"{linear.source}.{linear.part.expert}.{linear.part.start}"


def container_packing(source: Source, work: Work) -> ContainerPacking:
    """Decide for a whole model which matrices are stored as codes, or without their zeros. Raises InputError for what it cannot hold."""
    if source.library != "transformers":
        raise InputError(f"{source.library} does not read the container, which holds models of transformers; leave --format out")
    rounded = next((path for path in work.treatments if work.activation(path) is not None), None)
    if rounded is not None:
        raise InputError(f"the recipe rounds the inputs of {rounded}, which the container does not hold; leave --format out")
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
    return ContainerPacking(schemes, source.dtype, False, tuple(said_of(reasons, "quantized, but stored dense at full size")))


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
