"""One block's weights while it is being worked on: read, rewritten, solved, and handed over for writing.

Matrices are [out, in] float32 whatever the disk holds. What a reader of the result will get is what the block computes with from then on:
anything stored in a narrower type is rounded here, once, before its effect is seen by later stages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from thrifty.base.anatomy import Block, Linear, Modulation, Norm
from thrifty.base.records import Encoded
from thrifty.core import fold
from thrifty.core.activations import Rounding
from thrifty.core.rewrite import Rewrite
from thrifty.models import Source
from thrifty.pipeline.packing import Packing


@dataclass
class BlockView:
    """The block's matrices and norms, lazily read from disk and changed in memory.

    packing: which matrices the result stores as codes. weights: matrices read or changed so far, by path. vectors: norms and biases
    changed so far, by disk key, float32. touched: paths of matrices that differ from the original. packed: codes found so far. roundings:
    what is done to inputs from now on, by the path of the linear that reads them.
    """

    source: Source
    block: Block
    packing: Packing
    weights: dict[str, Tensor] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    packed: dict[str, Encoded] = field(default_factory=dict)
    roundings: dict[str, Rounding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.linears: dict[str, Linear] = {linear.path: linear for linear in (*self.block.linears, *self.block.routers)}
        self.norms: dict[str, Norm] = {norm.path: norm for norm in self.block.norms}

    def read(self, path: str) -> Tensor:
        """The matrix of a linear as it stands now, [out, in] float32."""
        if path not in self.weights:
            self.weights[path] = read_matrix(self.source, self.linears[path]).to(torch.float32)
        return self.weights[path]

    def write(self, path: str, values: Tensor, encoded: Encoded) -> Tensor:
        """Put a result in place; returns what a reader of the stored form gets: dense storage rounds to the model's type."""
        self.touched.add(path)
        if path in self.packing.schemes:
            self.packed[path], self.weights[path] = self.packing.accept(self.linears[path], encoded, values)
        else:
            self.weights[path] = self._rounded(self.linears[path].source, values)
        return self.weights[path]

    def dense_bits(self, linear: Linear) -> float:
        """Bits of a value of a matrix that is stored as it is."""
        return 8.0 * self.source.tensors[linear.source].dtype.itemsize

    def apply(self, rewrite: Rewrite) -> Rewrite:
        """Fold a rewrite into its producers and consumers; returns what was really applied.

        Norms and biases are stored in the model's type: what rounding leaves of them decides the exact scale and shift, which the consumers
        then undo, so that rounding them costs nothing.
        """
        for path in rewrite.space.producers:
            rewrite = self._norm(self.norms[path], rewrite) if path in self.norms else self._rows(path, rewrite)
        for path in rewrite.space.consumers:
            weight = self.read(path)
            bias_key = self.linears[path].bias_source
            if rewrite.shift is not None:
                if bias_key is None:
                    raise ValueError(f"{path} has no bias to give a constant back with")
                self._keep(bias_key, self._vector(bias_key) + rewrite.correction(weight))
            self.weights[path] = rewrite.consumer(weight)
            self.touched.add(path)
        return rewrite

    def _norm(self, norm: Norm, rewrite: Rewrite) -> Rewrite:
        if rewrite.turn is not None:
            raise ValueError(f"{norm.path} multiplies channel by channel; no rotation can be folded into it")
        if norm.modulation is not None:
            return self._modulated(norm, norm.modulation, rewrite)
        key = self.source.disk_name(f"{norm.path}.weight")
        before = self._vector(key)
        self._keep(key, fold.divide_norm(before, rewrite.scale, norm.plus_one))
        after = self.vectors[key]
        one = 1.0 if norm.plus_one else 0.0
        exact = replace(rewrite, scale=_quotient(before + one, after + one))
        if norm.bias:
            exact = self._bias(self.source.disk_name(f"{norm.path}.bias"), exact)
        elif rewrite.shift is not None:
            raise ValueError(f"{norm.path} has no bias to take a constant off with")
        return exact

    def _modulated(self, norm: Norm, by: Modulation, rewrite: Rewrite) -> Rewrite:
        """Divide the outputs that are the norm's gain and shift, row by row of the matrix that makes them.

        (1 + W c + b) / s = 1 + (W / s) c + (b + 1) / s - 1
        """
        key = self.linears[by.linear].bias_source
        assert key is not None
        gain, shift = (slice(start, start + norm.width) for start in (by.gain, by.shift))
        before = self._vector(key)
        after = before.clone()
        after[gain] = fold.divide_norm(before[gain], rewrite.scale, plus_one=True)
        exact = replace(rewrite, scale=_quotient(before[gain] + 1, self._rounded(key, after)[gain] + 1))
        after[shift] = exact.producer_bias(before[shift])
        self._keep(key, after)
        weight = self.read(by.linear).clone()
        for rows in (gain, shift):
            weight[rows] = fold.divide_rows(weight[rows], exact.scale)
        self.weights[by.linear] = weight
        self.touched.add(by.linear)
        if rewrite.shift is None:
            return exact
        return replace(exact, shift=before[shift] - self.vectors[key][shift] * exact.scale)

    def _rows(self, path: str, rewrite: Rewrite) -> Rewrite:
        self.weights[path] = rewrite.producer(self.read(path))
        self.touched.add(path)
        bias_key = self.linears[path].bias_source
        if bias_key is not None:
            return self._bias(bias_key, rewrite)
        if rewrite.shift is not None:
            raise ValueError(f"{path} has no bias to take a constant off with")
        return rewrite

    def _bias(self, key: str, rewrite: Rewrite) -> Rewrite:
        """Rewrite what a producer adds; returns the rewrite with the shift that the rounded bias stands for."""
        before = self._vector(key)
        self._keep(key, rewrite.producer_bias(before))
        if rewrite.shift is None:
            return rewrite
        repeat, size = rewrite.space.repeat, rewrite.space.unit_size
        after = self.vectors[key]
        after = after if rewrite.turn is None else rewrite.turn.producer(repeat, size).back(after)
        kept = before - after * fold.untie(rewrite.scale, repeat, size)
        return replace(rewrite, shift=fold.copied(kept, repeat, size))

    def settle(self, paths: set[str]) -> None:
        """Round rewritten matrices that no solver will touch to the type they are stored in."""
        for path in sorted(paths & self.touched - set(self.packed)):
            self.weights[path] = self._rounded(self.linears[path].source, self.weights[path])

    def _keep(self, key: str, vector: Tensor) -> None:
        self.vectors[key] = self._rounded(key, vector)

    def _rounded(self, key: str, values: Tensor) -> Tensor:
        return values.to(self.source.tensors[key].dtype).to(torch.float32)

    def _vector(self, key: str) -> Tensor:
        if key not in self.vectors:
            self.vectors[key] = self.source.read(key).to(torch.float32)
        return self.vectors[key]

    def resume(self, changed: Mapping[str, Tensor], solved: Collection[str]) -> None:
        """Take over what an earlier walk changed (`replacements`), but for the matrices that it solved."""
        held = {linear.source for linear in self.linears.values()}
        self.vectors |= {key: tensor for key, tensor in changed.items() if key not in held}
        for path, linear in self.linears.items():
            if linear.source in changed and path not in solved:
                self.weights[path] = taken(changed[linear.source], linear)
                self.touched.add(path)

    def replacements(self) -> dict[str, Tensor]:
        """What the block computes with now, by disk key and in disk layout: every tensor that differs from the original."""
        changed = dict(self.vectors)
        for path in sorted(self.touched):
            linear = self.linears[path]
            place(changed, self.source, linear, self.weights[path])
        return changed


def _quotient(before: Tensor, after: Tensor) -> Tensor:
    """What gains were really divided by; 1 where that is no positive number."""
    scale = before / after
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))


def read_matrix(source: Source, linear: Linear) -> Tensor:
    """The matrix of a linear as it lies on disk, [out, in]; of a tensor that holds many, no more is read."""
    if linear.part is not None:
        return source.read_part(linear.source, linear.part)
    return taken(source.read(linear.source), linear)


def taken(stored: Tensor, linear: Linear) -> Tensor:
    """The matrix [out, in] of a linear from its tensor in disk layout: what `place` put there."""
    if linear.part is not None:
        return stored[linear.part.expert, linear.part.start : linear.part.stop]
    return stored.T if linear.storage == "conv1d" else stored


def place(changed: dict[str, Tensor], source: Source, linear: Linear, matrix: Tensor) -> None:
    """Put [out, in] values where the disk layout has them."""
    if linear.part is not None:
        whole = changed.get(linear.source)
        if whole is None:
            whole = source.read(linear.source).to(torch.float32)
        whole[linear.part.expert, linear.part.start : linear.part.stop] = matrix
        changed[linear.source] = whole
    else:
        changed[linear.source] = matrix.T.contiguous() if linear.storage == "conv1d" else matrix
