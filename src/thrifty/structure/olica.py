"""Fewer values a head, queries and keys of low rank, fewer neurons, and a low-rank patch beside the MLP, without training: Olica.

    V and O   heads keep e' < e value channels:  min over D [e', e], O'  of  E || O z - O' D z ||^2,  z the attended values of a head
    Q and K   W ~ B A of rank r, each on its own, since a rotation by position stands between them
    neurons   score = ||W_up[n] x|| + ||W_gate[n] x|| + ||W_down[:, n] h_n||, by the mean squares of their inputs
    patch     MLP(x) + B A x,  min over B, A of rank r of  E || r - B A x ||^2 + lam ||B A||^2,  r what removed neurons put out

Query heads that share a value head share D, which is found for all of them together, and keep their own O'. `decomposition: fast` is the
published one: D is orthonormal, from the SVD of O alone, then channels go by their norms; inputs are whitened by their sizes only.
`decomposition: product` (ours) takes the best D for O and the values together and fits O' over all heads: less is lost on the calibration
rows, which must be many for that to hold elsewhere. `patch: published` truncates the
ridge fit by a plain SVD with channel weights; `patch: regression` (ours) is the best patch of its rank. The paper patches the few MLPs that
are most linear; here every block but the last gets one. The budget counts every parameter of the model, the patches too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from thrifty.base.anatomy import Anatomy, Block, Linear
from thrifty.base.errors import InputError
from thrifty.base.method import Paper
from thrifty.core.low_rank import Factors, fast_basis, rank_for, reduced_rank, refit, ridge, shared_basis, truncate, weighted_patch
from thrifty.models import linear_modules
from thrifty.structure.base import Seen, View, choose
from thrifty.structure.rebuild import Form, Plan, Rebuilder, Rebuilt, gram_of

TOKENS = 128 * 128
"""Calibration tokens at which `damp` is what it says; with more of them the ridge is that much smaller."""


@dataclass(frozen=True)
class Olica(Rebuilder):
    """ratio: share of all parameters that goes. qk_to_vo: how much more goes of queries and keys than of values and outputs. patch_share:
    rank of a patch as a share of the hidden size. damp: the ridge, as a share of the mean energy of the inputs, at 16384 tokens.
    multiple_of: how many neurons stay is a multiple of this."""

    name: ClassVar[str] = "olica"
    paper: ClassVar[Paper | None] = Paper(
        "He, Lin", 2025, "Olica: Efficient Structured Pruning of Large Language Models without Retraining", "2506.08436"
    )

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    qk_to_vo: Annotated[float, Field(gt=0)] = 3.0
    decomposition: Literal["fast", "product"] = "fast"
    patch: Literal["published", "regression", "none"] = "published"
    patch_share: Annotated[float, Field(gt=0, le=0.5)] = 0.03
    damp: Annotated[float, Field(gt=0)] = 0.5
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 8

    # -- what will stand there -----------------------------------------------------------------------------------------

    def plan(self, anatomy: Anatomy) -> Plan:
        blocks = [_Parts.of(block) for block in anatomy.blocks]
        budget = self.ratio * anatomy.parameters / len(blocks)
        forms: dict[str, Form] = {}
        branches: dict[str, tuple[int, int, int]] = {}
        sizes: dict[str, list[int]] = {"v_head_dim": [], "intermediate_size": []}
        for place, parts in enumerate(blocks):
            attention = self._attention(parts)
            rank = int(self.patch_share * parts.width) if self.patch != "none" and place + 1 < len(blocks) else 0
            saved = sum(parts.size(path) - form.parameters for path, form in attention.items())
            neurons = self._neurons(parts, budget - saved + 2 * rank * parts.width)
            forms |= attention
            for linear in (*parts.writers, parts.reader):
                out, into = (linear.out_features, neurons) if linear is parts.reader else (neurons, linear.in_features)
                forms[linear.path] = Form(out, into)
            if rank:
                branches[parts.module] = (parts.width, rank, parts.reader.out_features)
            sizes["v_head_dim"].append(self._values(parts))
            sizes["intermediate_size"].append(neurons)
        return Plan(forms, branches, sizes)

    def _attention(self, parts: _Parts) -> dict[str, Form]:
        shares = self._share(2.0 if self.ratio <= 0.4 else 2 * self.qk_to_vo / (1 + self.qk_to_vo))
        forms = {}
        for linear in (parts.q, parts.k):
            out, into = linear.out_features, linear.in_features
            forms[linear.path] = Form(out, into, rank_for(out, into, 1 - shares))
        values = self._values(parts)
        forms[parts.v.path] = Form(parts.groups * values, parts.v.in_features, narrow=values < parts.size_of_head)
        forms[parts.o.path] = Form(parts.o.out_features, parts.heads * values, narrow=values < parts.size_of_head)
        return forms

    def _values(self, parts: _Parts) -> int:
        return parts.size_of_head - int(self._share(2 / (1 + self.qk_to_vo)) * parts.size_of_head)

    def _share(self, factor: float) -> float:
        share = factor * self.ratio
        if share >= 0.95:
            raise InputError(
                f"olica: a ratio of {self.ratio} leaves hardly anything of queries and keys; take a smaller one, or qk_to_vo 1"
            )
        return share

    def _neurons(self, parts: _Parts, wanted: float) -> int:
        """How many neurons stay, so that about `wanted` weights go."""
        each = sum(linear.in_features for linear in parts.writers) + parts.reader.out_features
        share = max(0.0, wanted / (each * parts.neurons))
        if share > 0.95:
            raise InputError(f"olica: {self.ratio} of all parameters cannot go when embeddings stay whole; take a smaller ratio")
        step = self.multiple_of
        return min(parts.neurons, max(step, math.floor(parts.neurons * (1 - share) / step + 0.5) * step))

    # -- values --------------------------------------------------------------------------------------------------------

    def rebuild(self, view: View, seen: Seen, plan: Plan) -> Rebuilt:
        parts = _Parts.of(view.block)
        made = _Made()
        for linear in (parts.q, parts.k):
            made.matrices[linear.path] = self._factors(view.read(linear.path), plan.forms[linear.path].rank, _gram(view, linear, seen))
        self._cut_values(parts, view, seen, plan, made)
        keep = self._cut_neurons(parts, view, seen, plan, made)
        if parts.module in plan.branches:
            made.branches[parts.module] = self._patch(parts, view, seen, keep, plan.branches[parts.module][1])
        return Rebuilt(made.matrices, made.biases, made.branches, lost=made.lost)

    def _factors(self, weight: Float[Tensor, "out in"], rank: int, gram: Float[Tensor, "in in"]) -> Factors:
        if self.decomposition == "product":
            return truncate(weight, rank, gram)
        size = gram.diagonal().clamp_min(1e-6 * float(gram.diagonal().mean())).sqrt()
        up, down = truncate(weight * size, rank)
        return up, down / size

    def _cut_values(self, parts: _Parts, view: View, seen: Seen, plan: Plan, made: _Made) -> None:
        value, output, gram = view.read(parts.v.path), view.read(parts.o.path), _gram(view, parts.o, seen)
        size, shared = parts.size_of_head, parts.heads // parts.groups
        kept = plan.forms[parts.v.path].out_features // parts.groups
        energy = (output @ gram * output).sum(1)
        narrow, wide = [], []
        for group in range(parts.groups):
            heads = [slice(head * size, (head + 1) * size) for head in range(group * shared, (group + 1) * shared)]
            stacked = torch.cat([output[:, head] for head in heads])
            attended = torch.stack([gram[head, head] for head in heads]).mean(0)
            mixing = self._mixing(stacked, attended, energy.repeat(shared), kept)
            narrow.append(mixing)
            wide += [mixing] * shared
        values = torch.block_diag(*narrow)
        made.matrices[parts.v.path] = values @ value
        if parts.v.bias_source is not None:
            made.biases[parts.v.path] = values @ view.bias(parts.v.path)
        reduction = torch.block_diag(*wide)
        fitted = refit(output, gram, reduction) if self.decomposition == "product" else output @ reduction.T
        made.matrices[parts.o.path] = fitted
        # Narrower values have no outputs to compare: what both lose is seen behind the second.
        gone = output - fitted @ reduction
        made.lost[parts.v.path] = made.lost[parts.o.path] = (float((gone @ gram * gone).sum().clamp_min(0)), float(energy.sum()))

    def _mixing(
        self, stacked: Float[Tensor, "out width"], attended: Float[Tensor, "width width"], energy: Float[Tensor, "out"], kept: int
    ) -> Float[Tensor, "kept width"]:
        """What the values of a head are multiplied by; stacked: what all heads that share them read them with."""
        if self.decomposition == "product":
            return shared_basis(stacked, attended, kept)[1]
        read, rotation = fast_basis(stacked, stacked.shape[1], energy)
        reaching = ((rotation @ attended) * rotation).sum(1).clamp_min(0).sqrt()
        return rotation[choose(read.norm(dim=0) * reaching, kept)]

    def _cut_neurons(self, parts: _Parts, view: View, seen: Seen, plan: Plan, made: _Made) -> Int[Tensor, "kept"]:
        score = view.read(parts.reader.path).norm(dim=0) * _gram(view, parts.reader, seen).diagonal().sqrt()
        for linear in parts.writers:
            score = score + (view.read(linear.path) * _gram(view, linear, seen).diagonal().sqrt()).norm(dim=1)
        keep = choose(score, plan.forms[parts.reader.path].in_features)
        gone = torch.ones(parts.neurons, dtype=torch.bool)
        gone[keep] = False
        matrix, gram = view.read(parts.reader.path), _gram(view, parts.reader, seen)
        made.matrices[parts.reader.path] = matrix[:, keep]
        pairs = ((matrix[:, gone], gram[gone][:, gone]), (matrix, gram))
        made.lost[parts.reader.path] = tuple(float((part @ within * part).sum()) for part, within in pairs)
        for linear in parts.writers:
            matrix = view.read(linear.path)
            energy = (matrix @ _gram(view, linear, seen) * matrix).sum(1)
            made.matrices[linear.path] = matrix[keep]
            made.lost[linear.path] = (float(energy[gone].sum()), float(energy.sum()))
            if linear.bias_source is not None:
                made.biases[linear.path] = view.bias(linear.path)[keep]
        return keep

    def _patch(self, parts: _Parts, view: View, seen: Seen, keep: Int[Tensor, "kept"], rank: int) -> Factors:
        gone = torch.ones(parts.neurons, dtype=torch.bool)
        gone[keep] = False
        lost = view.read(parts.reader.path)[:, gone]
        gram, tokens = _gram(view, parts.writers[0], seen), seen.grams[_space(view.block, parts.writers[0])].tokens
        cross = lost @ _together(parts, view, seen)[gone]
        damp = self.damp * TOKENS / max(tokens, 1)
        if self.patch == "regression":
            return reduced_rank(gram, cross, rank, damp)
        hidden = _gram(view, parts.reader, seen)[gone][:, gone]
        fit = ridge(gram, cross, damp)
        mean, base = _mean(view, parts.writers[0], seen), lost @ _mean(view, parts.reader, seen)[gone]
        spread = ((fit @ gram) * fit).sum(1) - (fit @ mean).square()
        wanted = ((lost @ hidden) * lost).sum(1) - base.square()
        agreement = ((fit * cross).sum(1) - (fit @ mean) * base) / (spread.clamp_min(0) * wanted.clamp_min(0)).sqrt().clamp_min(1e-12)
        return weighted_patch(gram, cross, torch.sigmoid((agreement - agreement.mean()) / 0.05).clamp_min(1e-3), rank, damp)


@dataclass
class _Made:
    matrices: dict[str, Tensor | Factors] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    branches: dict[str, Factors] = field(default_factory=dict)
    lost: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Parts:
    """The matrices of a block by what they do."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    writers: tuple[Linear, ...]
    reader: Linear
    heads: int
    groups: int
    size_of_head: int
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, block: Block) -> _Parts:
        """Raises InputError for a block that is not made of one attention and one MLP with matrices of their own."""
        by_role = {linear.role: linear for linear in block.linears if linear.expert is None}
        writers = tuple(by_role[role] for role in ("gate", "up", "fc1") if role in by_role)
        reader = by_role.get("down", by_role.get("fc2"))
        attention = block.attention
        if attention is None or not {"q", "k", "v", "o"} <= by_role.keys() or reader is None or not writers:
            found = ", ".join(sorted(by_role)) or "none"
            raise InputError(f"olica takes blocks of separate q, k, v and o and an MLP; {block.path} has {found}")
        heads, groups, size = attention.num_heads, attention.num_key_value_heads, attention.head_dim
        sizes = {linear.path: linear.out_features * linear.in_features for linear in block.linears}
        return cls(*(by_role[role] for role in "qkvo"), writers, reader, heads, groups, size, sizes)

    @property
    def width(self) -> int:
        """What the MLP reads."""
        return self.writers[0].in_features

    @property
    def neurons(self) -> int:
        """How many it has."""
        return self.reader.in_features

    @property
    def module(self) -> str:
        """Its path."""
        return self.reader.path.rpartition(".")[0]

    def size(self, path: str) -> int:
        """Weights of a matrix."""
        return self.sizes[path]


def _space(block: Block, linear: Linear) -> str:
    return next(stage.reads.name for stage in block.stages if linear in stage.linears)


def _gram(view: View, linear: Linear, seen: Seen) -> Float[Tensor, "in in"]:
    found = gram_of(view.block, linear.path, seen)
    return torch.eye(linear.in_features) if found is None else found


def _mean(view: View, linear: Linear, seen: Seen) -> Float[Tensor, "in"]:
    return seen.inputs[_space(view.block, linear)].mean


@torch.no_grad()
def _together(parts: _Parts, view: View, seen: Seen) -> Float[Tensor, "neurons width"]:
    """Mean of h x^T over calibration tokens: h the neurons, x what the MLP reads."""
    modules = linear_modules(view.module, view.block)
    total, reads, tokens = torch.zeros(parts.neurons, parts.width, dtype=torch.float64), [], 0

    def remember(_: object, inputs: tuple[Tensor, ...]) -> None:
        reads[:] = [inputs[0].reshape(-1, parts.width)]

    def meet(_: object, inputs: tuple[Tensor, ...]) -> None:
        nonlocal tokens
        hidden = inputs[0].reshape(-1, parts.neurons)
        total.add_((hidden.float().T @ reads[0].float()).to("cpu", torch.float64))
        tokens += len(hidden)

    hooks = [
        modules[parts.writers[0].path].register_forward_pre_hook(remember),
        modules[parts.reader.path].register_forward_pre_hook(meet),
    ]
    try:
        view.forward(seen.rows)
    finally:
        for hook in hooks:
            hook.remove()
    return (total / max(tokens, 1)).to(torch.float32)
