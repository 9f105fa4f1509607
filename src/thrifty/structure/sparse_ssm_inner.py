"""Prune the short convolution of a state-space mixer and the projection of its time step: what SparseSSM prunes beside the projections.

    min over v, zero outside the mask, of  (w - v) H (w - v)^T  for each row w,     H = mean of x x^T over what the row reads, damped
    the mask keeps the entries of the whole tensor with the largest
        obs        w_j^2 / [H^-1]_jj, as SparseGPT does, and what stays is then the solution of least squares
        wanda      w_j^2 H_jj, and what stays is as it was
        magnitude  w_j^2, and what stays is as it was

A channel of the convolution reads its own last values alone, so each has an H of its own; the public code takes one over all channels,
which never add up. The time step is judged behind the pruned convolution. Mamba-2 has no projection of the time step. Shapes and config
stay as they are; the large projections are for `sparsegpt` and its kin, which cannot see what these two read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from thrifty.base.anatomy import Anatomy
from thrifty.base.errors import InputError
from thrifty.base.method import Need, Paper
from thrifty.core.least_loss import costs, damped, refitted
from thrifty.core.masks import keep_per_row
from thrifty.models.scans import convolution_reads, time_step_reads
from thrifty.structure.base import Seen, View
from thrifty.structure.rebuild import Plan, Rebuilder, Rebuilt
from thrifty.structure.sparse_ssm import PAPER, mixer_in


@dataclass(frozen=True)
class SparseSSMInner(Rebuilder):
    """sparsity: share of the entries of either tensor that become zero. by: above. damping: share of the mean diagonal of H."""

    name: ClassVar[str] = "sparse_ssm_inner"
    paper: ClassVar[Paper | None] = PAPER
    needs: ClassVar[frozenset[Need]] = frozenset()

    sparsity: Annotated[float, Field(ge=0, le=1)] = 0.5
    by: Literal["obs", "wanda", "magnitude"] = "obs"
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    def plan(self, anatomy: Anatomy) -> Plan:
        if not any(block.state_space for block in anatomy.blocks):
            raise InputError(f"{anatomy.architecture} has no state-space mixers, whose convolutions sparse_ssm_inner prunes")
        return Plan()

    def rebuild(self, view: View, seen: Seen, plan: Plan) -> Rebuilt:
        space = view.block.state_space
        if space is None or not seen.rows.numel():
            return Rebuilt()
        mixer, hidden = mixer_in(view, seen)
        key = view.key(f"{space.path}.conv1d.weight")
        kernel = view.tensor(key)
        taps = self.pruned(kernel[:, 0], tap_grams(convolution_reads(mixer, hidden).float(), kernel.shape[2]))
        tensors = {key: taps[:, None]}
        if hasattr(mixer, "dt_proj"):
            with torch.no_grad():
                mixer.conv1d.weight.copy_(taps[:, None])  # the view is this block's alone
            read = time_step_reads(mixer, hidden).float().flatten(0, 1)
            key = view.key(f"{space.path}.dt_proj.weight")
            tensors[key] = self.pruned(view.tensor(key), (read.T @ read / len(read))[None])
        return Rebuilt(tensors=tensors)

    def pruned(self, weight: Float[Tensor, "rows n"], gram: Float[Tensor, "grams n n"]) -> Float[Tensor, "rows n"]:
        """The matrix with its share of zeros. gram: mean of x x^T of what each row reads, or a single one for all."""
        hessian = damped(gram.cpu(), self.damping)
        size = weight.double().square()
        worth = {
            "obs": lambda: costs(weight, hessian),
            "wanda": lambda: size * gram.cpu().diagonal(dim1=1, dim2=2),
            "magnitude": lambda: size,
        }[self.by]()
        keep = keep_per_row(worth.reshape(1, -1), weight.numel() - round(self.sparsity * weight.numel())).reshape(weight.shape)
        return refitted(weight, hessian, keep) if self.by == "obs" else weight.masked_fill(~keep, 0.0)


def tap_grams(read: Float[Tensor, "rows time channels"], taps: int) -> Float[Tensor, "channels taps taps"]:
    """Mean over rows and steps of x x^T for each channel, x its last `taps` values, zeros before the first step; the newest comes last."""
    length = read.shape[1]
    late = functional.pad(read.mT, (taps - 1, 0))
    shifted = [late[..., tap : tap + length] for tap in range(taps)]
    entries = [torch.stack([(one * other).mean((0, 2)) for other in shifted], 1) for one in shifted]
    return torch.stack(entries, 1)
