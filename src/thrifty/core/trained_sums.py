"""A matrix of sums of codewords that is trained: codebooks and scales by their gradients, and a few codes at a time after a dense copy.

    V_ij = s_i (C_1[k_ij1] + .. + C_M[k_ijM]),   C_m = C_m0 + c_m r_m,   s_i = a_i s_i0,   r_m the root mean square of C_m0

c and a are what is trained, in parts of what there was, so that one rate does for every matrix; C and s are those that 16 bits hold, and
gradients pass through that rounding as if it were not there. Where codes are to move, a dense copy W of the start is trained, too, by
dL/dV: the gradient passes straight through the codes. After each step the share `moves` of the groups is looked at whose |W_j - V_j| has
grown most since they were last, and a group takes the codes nearest to its part of W, the farthest first, until |V' - V| is TRUST |V| or
more. Of a group that moved, Adam's moments start again, for they belong to another point. (Published is to take those with the largest
|W_j - V_j|; the same ones, with no nearer codes to go to, would come up again and again.)
Sources: Malinovskii et al. (2024), PV-Tuning, arXiv 2405.14852; of forgetting the moments, AQUATIC-Diff (2025), arXiv 2506.05960.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from thrifty.base.records import Encoded
from thrifty.core.codebooks.additive import beam_search, sum_codewords
from thrifty.core.codebooks.gram import held_codebooks, held_scale
from thrifty.core.codebooks.learning import straight_through
from thrifty.core.trainable import NARROWEST, WIDEST, Trained

TRUST = 0.01
"""How far the matrix may move in a step by changing codes, as a share of its norm."""

BEAM = 4
"""Sums that are kept while codes are chosen anew."""


class SumsWeight(Trained):
    """One matrix on its way. change [m, entries, size] and stretch [out, 1] are what is trained; with moves > 0 offset [out, in], too, that
    of the dense copy in parts of the root mean square of a row of V."""

    def __init__(self, start: Encoded, moves: float = 0.0) -> None:
        self.start, self.moves = start, moves
        self.codebooks, self.scale = start.tensors["codebooks"], start.tensors["scale"]
        self.codes = start.tensors["codes"].to(torch.int64)
        self.spread = self.codebooks.square().mean((1, 2), keepdim=True).sqrt()
        self.change = torch.zeros_like(self.codebooks).requires_grad_()
        self.stretch = torch.ones_like(self.scale).requires_grad_()
        first = start.decode()
        self.dense, self.row = first, first.square().mean(1, keepdim=True).sqrt()
        self.offset = torch.zeros_like(first).requires_grad_()
        # how far from the dense copy each group was when it was last looked at
        self.looked = torch.zeros_like(self.codes[..., 0], dtype=first.dtype)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"change": self.change, "stretch": self.stretch} | ({"offset": self.offset} if self.moves else {})

    @property
    def state(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "looked": self.looked} if self.moves else {}

    def values(self) -> Float[Tensor, "out in"]:
        codebooks, scale = self._held()
        found = sum_of(codebooks, self.codes).flatten(1) * scale
        return found + (self.offset - self.offset.detach()) * self.row if self.moves else found

    def _held(self) -> tuple[Float[Tensor, "m k g"], Float[Tensor, "out one"]]:
        """(codebooks, scales) that 16 bits hold, differentiable in what is trained."""
        codebooks, scale = self.codebooks + self.change * self.spread, self.scale * self.stretch
        return straight_through(codebooks, held_codebooks(codebooks.detach())), straight_through(scale, held_scale(scale.detach()))

    def settle(self) -> dict[str, Bool[Tensor, "*shape"]]:
        """Scales stay positive, and a few groups follow the dense copy."""
        self.stretch.clamp_(NARROWEST, WIDEST)
        return {"offset": self._moved()} if self.moves else {}

    def _moved(self) -> Bool[Tensor, "out in"]:
        """Change the codes of a few groups; returns the entries of those."""
        codebooks, scale = self._held()
        size = codebooks.shape[2]
        wanted = (self.dense + self.offset * self.row).view(-1, size)
        codes, looked = self.codes.view(-1, codebooks.shape[0]), self.looked.view(-1)
        scales = scale.expand(-1, self.codes.shape[1]).reshape(-1, 1)
        values = sum_codewords(codebooks, codes) * scales
        groups = ((wanted - values).norm(dim=1) - looked).topk(max(1, round(self.moves * len(codes)))).indices
        found = beam_search(wanted[groups] / scales[groups], codebooks, BEAM, codes[groups])
        after = sum_codewords(codebooks, found) * scales[groups]
        step = (after - values[groups]).square().sum(1)
        trusted = step.cumsum(0) - step < TRUST**2 * values.square().sum()
        groups, found, after = groups[trusted], found[trusted], after[trusted]
        moved = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        moved[groups] = (found != codes[groups]).any(1)
        codes[groups] = found
        looked[groups] = (wanted[groups] - after).norm(dim=1)
        return moved[:, None].expand(-1, size).reshape(self.dense.shape)

    def encoded(self) -> Encoded:
        codebooks, scale = (tensor.detach() for tensor in self._held())
        codes = self.codes.to(self.start.tensors["codes"].dtype)
        return replace(self.start, tensors={"codes": codes, "codebooks": codebooks, "scale": scale})


def sum_of(codebooks: Float[Tensor, "m k g"], codes: Tensor) -> Float[Tensor, "out groups g"]:
    """`sum_codewords` with a gradient that adds up fast."""
    total = functional.embedding(codes[..., 0], codebooks[0])
    for number in range(1, codebooks.shape[0]):
        total = total + functional.embedding(codes[..., number], codebooks[number])
    return total
