"""Gradients of the loss of a whole model, block after block from its end: one block of weights is in memory at a time.

Some rows go through all blocks, and what enters each is kept. Then the blocks are run again, the last one first, and what the loss changes
with is taken through each of them, row by row:

    dL/dx = J_x^T dL/dy,   dL/dW = J_W^T dL/dy,   dL/dz = J_z^T dL/dy where a matrix puts out z

The loss of a row is the mean over all that it predicts: the next tokens of a causal language model, the class of an image. Where it is not
known what a model should have said, labels are drawn from what it predicts, under the seed: the squares of its gradients are then those of
Fisher's information.

Instead of a loss, a random direction of all logits z can be followed back, drawn so that its products have a known mean:

    v = (D^(1/2) - p p^(1/2)^T) e,   D = diag(p),   e normal,   E v v^T = D - p p^T,   p = softmax(z)

(v . dz)^2 / 2 is then the second order of KL(p || softmax(z + dz)) on average, and dz = J d for a small change d of the rows that leave a
block, so that g = J^T v tells from one pass back what any such change costs: (g . d)^2 / 2. Labels drawn from p have the same mean, but
hardly ever tell anything where the model is sure of them. The products are squared token by token: what changes of two tokens do to one
prediction together is left out, which is 0 in the mean where they have nothing to do with each other, and would be mostly noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.base.anatomy import Block, Kind, Stage
from thrifty.base.errors import InputError
from thrifty.core.statistics import Statistics
from thrifty.data import Rows
from thrifty.measure.language import IGNORED, causal_targets
from thrifty.models import Call, Shell, Source, get_weight, linear_modules, run_with_weights
from thrifty.pipeline.block import passed
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.readings import gather
from thrifty.pipeline.streams import Streams, enter
from thrifty.pipeline.watching import watching
from thrifty.structure.base import Seen, Slopes

Found = TypeVar("Found")

PREDICTS = ("causal_lm", "masked_lm", "vision")
"""Kinds of models whose loss is known."""


def check_loss(source: Source, name: str) -> None:
    """Raise InputError where a model has no loss that can be followed back through its blocks."""
    if not has_loss(source):
        raise InputError(
            f"{name} follows the loss of what a model predicts back through its blocks: it needs one chain of them and a head behind it, "
            f"which {source.anatomy.architecture} does not have"
        )


def has_loss(source: Source) -> bool:
    """Whether what a model predicts can be followed back through its blocks."""
    anatomy = source.anatomy
    return anatomy.kind in PREDICTS and anatomy.head is not None and len(anatomy.chains) == 1


def descent(source: Source, rows: Rows, setting: Setting) -> Iterator[tuple[Block, dict[str, Slopes]]]:
    """Every block, the last one first, with the slopes of its matrices by path; of what no row reached they are zero."""
    return _descent(source, rows, setting, _loss, _slopes)


def products(source: Source, rows: Rows, setting: Setting, paths: Collection[str]) -> Iterator[tuple[Block, Seen]]:
    """Every block, the last one first, with the products of what its stages read, and of the slopes where these linears put out."""
    return _descent(source, rows, setting, _loss, partial(_products, paths))


def directions(source: Source, rows: Rows, setting: Setting) -> Iterator[tuple[Block, Float[Tensor, "rows *length width"]]]:
    """Every block, the last one first, with g where rows leave it: the sum of (g . d)^2 over the tokens of a row is about the divergence of
    a prediction, on average over those of the row, when what leaves the block changes by d."""
    return _descent(source, rows, setting, _direction, _leaving)


Start = Callable[[torch.Generator, Tensor, Tensor | None], Tensor]
"""start(generator, logits of a row [predictions, classes], what it should say or None): the number whose gradients are followed back."""


def _descent(
    source: Source, rows: Rows, setting: Setting, start: Start, look: Callable[[Here], tuple[Found, Tensor]]
) -> Iterator[tuple[Block, Found]]:
    chain, device = source.anatomy.chains[0], torch.device(setting.device)
    blocks, shell, inputs = source.anatomy.blocks, source.shell(torch.float32), dict(rows.inputs)
    calls = shell.calls({name: tensor[:1] for name, tensor in inputs.items()}, {})
    entering = [enter(shell, inputs, chain, Streams(), "calibration", setting.batch, torch.float32)]
    for block in blocks:
        module = source.block(block, torch.float32, device)
        entering.append(passed(module, entering[-1], calls[block.path], setting.batch, device))
    slope = _at_the_end(shell, rows, entering.pop(), partial(start, torch.Generator().manual_seed(setting.seed)))
    del shell
    for block in reversed(blocks):
        module = source.block(block, torch.float32, device)
        here = Here(module, block, calls[block.path], entering.pop(), slope, device)
        found, slope = look(here)
        yield block, found


def _at_the_end(shell: Shell, rows: Rows, leaving: Tensor, start: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """What the number that `start` makes of each row's logits changes with where the row leaves the last block."""
    chain, found = shell.anatomy.chains[0], []
    for row in range(rows.rows):
        one = rows.select(row, row + 1)
        with torch.enable_grad():
            hidden = leaving[row : row + 1].clone().requires_grad_()
            logits = shell.outputs(dict(one.inputs), {chain: hidden}).flatten(0, -2).cpu()
            known = _known(one, shell.anatomy.kind)
            found += torch.autograd.grad(start(logits, None if known is None else known.flatten()), hidden)
    return torch.cat(found)


def _loss(drawn: torch.Generator, logits: Tensor, known: Tensor | None) -> Tensor:
    """The mean loss of what a row predicts."""
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=drawn).flatten() if known is None else known
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)


def _direction(drawn: torch.Generator, logits: Tensor, known: Tensor | None) -> Tensor:
    """Logits along the random direction of the page's head, where a row predicts something."""
    chances = logits.detach().softmax(-1)
    noise = chances.sqrt() * torch.randn(chances.shape, generator=drawn)
    direction = noise - chances * noise.sum(-1, keepdim=True)
    counted = torch.ones(len(logits), dtype=torch.bool) if known is None else known != IGNORED
    return (logits * direction)[counted].sum() / math.sqrt(2 * max(int(counted.sum()), 1))


def _known(rows: Rows, kind: Kind) -> Int[Tensor, "rows *length"] | None:
    """What the model should say; None where that is not known."""
    if rows.targets is not None:
        return rows.targets
    return causal_targets(rows.inputs["input_ids"]) if kind == "causal_lm" else rows.labels


@dataclass
class Here:
    """A block that a loss is followed back through: what it is called with, the rows that enter it, and the slopes where they leave it."""

    module: nn.Module
    block: Block
    call: Call
    entering: Float[Tensor, "rows *length width"]
    leaving: Float[Tensor, "rows *length width"]
    device: torch.device

    def each(self, weights: Mapping[nn.Module, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(a row as it enters, the same as it leaves, the slope there), differentiable in the row and in these weights."""
        for row, slope in zip(self.entering.split(1), self.leaving.split(1), strict=True):
            with torch.enable_grad():
                hidden = row.to(self.device).requires_grad_()
                out = run_with_weights(self.module, hidden, self.call, weights)
            yield hidden, out, slope.to(self.device)


def _slopes(here: Here) -> tuple[dict[str, Slopes], Tensor]:
    """(the slopes of a block's matrices, and where rows enter it)."""
    inner = linear_modules(here.module, here.block)
    weights = {linear.path: get_weight(inner[linear.path]).requires_grad_() for linear in here.block.linears}
    found = {path: Slopes(torch.zeros_like(weight), torch.zeros_like(weight)) for path, weight in weights.items()}
    below: list[Tensor] = []
    for hidden, out, slope in here.each({inner[path]: weight for path, weight in weights.items()}):
        mine, *grads = torch.autograd.grad(out, [hidden, *weights.values()], slope, allow_unused=True)
        below.append(mine.cpu())
        for slopes, grad in zip(found.values(), grads, strict=True):
            if grad is not None:  # an expert that the row did not choose
                slopes.mean.add_(grad, alpha=1 / len(here.entering))
                slopes.square.addcmul_(grad, grad, value=1 / len(here.entering))
    return {path: Slopes(slopes.mean.cpu(), slopes.square.cpu()) for path, slopes in found.items()}, torch.cat(below)


def _leaving(here: Here) -> tuple[Tensor, Tensor]:
    """(the slopes where rows leave a block, and where they enter it)."""
    return here.leaving, torch.cat([torch.autograd.grad(out, hidden, slope)[0].cpu() for hidden, out, slope in here.each({})])


def _products(paths: Collection[str], here: Here) -> tuple[Seen, Tensor]:
    """(the products of what a block's stages read, and of the slopes where these linears put out; the slopes where rows enter it)."""
    inner = linear_modules(here.module, here.block)
    grams: dict[str, Statistics] = {}
    outputs: dict[str, Tensor] = {}
    sums = {linear.path: torch.zeros(linear.out_features, linear.out_features) for linear in here.block.linears if linear.path in paths}
    below: list[Tensor] = []
    tokens = dict.fromkeys(sums, 0)

    def read(stage: Stage, values: Tensor) -> None:
        product = gather(values.detach())
        grams[stage.reads.name] = grams[stage.reads.name].merge(product) if stage.reads.name in grams else product

    def put_out(path: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[path] = output

    handles = [inner[path].register_forward_hook(partial(put_out, path)) for path in sums]
    with watching(here.block, inner, here.module, read, lambda space, values: None):
        for hidden, out, slope in here.each({}):
            mine, *grads = torch.autograd.grad(out, [hidden, *outputs.values()], slope, allow_unused=True)
            below.append(mine.cpu())
            for path, grad in zip(outputs, grads, strict=True):
                if grad is not None:
                    each = grad.flatten(0, -2)
                    sums[path] += (each.T @ each).cpu()
                    tokens[path] += len(each)
            outputs.clear()
    for handle in handles:
        handle.remove()
    return Seen(
        torch.empty(0), grams=grams, slope_products={path: total / max(tokens[path], 1) for path, total in sums.items()}
    ), torch.cat(below)
