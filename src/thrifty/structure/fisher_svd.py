"""Put two matrices of low rank in place of each one, so that the loss of the whole model changes least, and give rank to those it needs.

    min over B [out, k], A [k, in] of  tr(F (W - B A) G (W - B A)^T),    G = mean of x x^T,    F = mean of g g^T

x is what a matrix reads and g what the loss of the whole model changes with where it puts out: F and G are the Kronecker factors of
Fisher's information of the matrix, so that this is about twice what the loss goes up by. With R^T R = F and S S^T = G, the truncated SVD of
R W S gives the least that any two matrices of this rank can have. The paper takes its factors from Lanczos steps on the observed
information, and the same share of every matrix; here the factors are those of Martens and Grosse (2015), arXiv 1503.05671, and ranks are
ours: the ones with which all matrices together lose least, a matrix staying whole where two would not be smaller. The result needs the
modeling file that lies beside it: no architecture of transformers has such matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Anatomy, Linear
from thrifty.base.method import Paper
from thrifty.core.budget import choose
from thrifty.core.low_rank import rank_for, truncate, truncation_losses
from thrifty.structure.base import Seen, View
from thrifty.structure.rebuild import Form, LossRebuilder, Plan, Rebuilt, gram_of, separable


@dataclass(frozen=True)
class FisherSVD(LossRebuilder):
    """ratio: the share of the weights of all these matrices together that goes. multiple_of: ranks are a multiple of this, where a matrix
    is no smaller. damp: added to the diagonal of F, as a share of its mean."""

    name: ClassVar[str] = "fisher_svd"
    paper: ClassVar[Paper | None] = Paper(
        "Chekalina, Moskovskiy, Cherniuk, Kurkin, Kuznetsov, Frolov",
        2025,
        "Generalized Fisher-Weighted SVD: Scalable Kronecker-Factored Fisher Approximation for Compressing Large Language Models",
        "2505.17974",
    )

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 8
    damp: Annotated[float, Field(gt=0)] = 0.01

    def plan(self, anatomy: Anatomy) -> Plan:
        found, said = separable(anatomy, self.name)
        forms = {}
        for linear in found:
            out, into = linear.out_features, linear.in_features
            rank = rank_for(out, into, 1 - self.ratio)
            forms[linear.path] = Form(out, into, max(round(rank / self.multiple_of) * self.multiple_of, min(rank, self.multiple_of)))
        return Plan(forms, warnings=said)

    def survey(self, view: View, seen: Seen) -> Mapping[str, Float[Tensor, "options"]]:
        """What every rank loses, 0 and the full one included."""
        return {path: self._losses(view, seen, path) for path in seen.slope_products}

    def _losses(self, view: View, seen: Seen, path: str) -> Float[Tensor, "options"]:
        weight, slopes = view.read(path), seen.slope_products[path]
        gram = gram_of(view.block, path, seen)
        if gram is None or not bool(slopes.any()):  # no token reached it, or no loss changes with what it puts out
            return torch.zeros(min(weight.shape) + 1, dtype=torch.float64)
        return truncation_losses(weight, gram, self._weigher(slopes))

    def _weigher(self, slopes: Float[Tensor, "out out"]) -> Float[Tensor, "out out"]:
        """R of R^T R = F."""
        wide = slopes.to(torch.float64)
        size = self.damp * float(wide.diagonal().mean()) or 1.0  # where nothing was seen, all outputs count the same
        return torch.linalg.cholesky(wide + size * torch.eye(len(wide), dtype=torch.float64)).T

    def settle(self, anatomy: Anatomy, found: Mapping[str, Float[Tensor, "options"]]) -> Plan:
        alike = self.plan(anatomy)
        linears = [linear for linear in anatomy.linears if linear.path in alike.forms]
        options = [self._options(linear, alike.forms[linear.path]) for linear in linears]
        most = max(len(forms) for forms in options)
        losses, costs = (torch.full((len(linears), most), fill, dtype=torch.float64) for fill in (math.inf, 0.0))
        for place, (linear, forms) in enumerate(zip(linears, options, strict=True)):
            lost = found[linear.path]
            losses[place, : len(forms)] = torch.stack([lost[form.rank] if form.rank else lost.new_zeros(()) for form in forms])
            costs[place, : len(forms)] = torch.tensor([float(form.parameters) for form in forms])
        weights = sum(linear.out_features * linear.in_features for linear in linears)
        taken = choose(losses, costs, (1 - self.ratio) * weights).options.tolist()
        chosen = {linear.path: forms[option] for linear, forms, option in zip(linears, options, taken, strict=True)}
        return replace(alike, forms={path: form for path, form in chosen.items() if form.rank})

    def _options(self, linear: Linear, alike: Form) -> list[Form]:
        """What may stand in place of a matrix: two of some rank, or itself."""
        out, into = linear.out_features, linear.in_features
        ranks = range(self.multiple_of, min(out, into), self.multiple_of)
        smallest = [alike.rank] if alike.rank < self.multiple_of else []  # the least that fits whatever the others are
        return [Form(out, into, rank) for rank in (*smallest, *ranks) if rank * (out + into) < out * into] + [Form(out, into)]

    def rebuild(self, view: View, seen: Seen, plan: Plan) -> Rebuilt:
        found = {}
        for linear in view.block.linears:
            if linear.path in plan.forms:
                weigher = self._weigher(seen.slope_products[linear.path])
                gram = gram_of(view.block, linear.path, seen)
                found[linear.path] = truncate(view.read(linear.path), plan.forms[linear.path].rank, gram, weigher)
        return Rebuilt(found)

    def operations(self, out_features: int, in_features: int) -> float:
        least, most = sorted((out_features, in_features))
        return 4.0 * out_features**2 * in_features + 4.0 * in_features**2 * out_features + 60.0 * most * least**2
