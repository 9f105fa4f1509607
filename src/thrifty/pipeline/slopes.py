"""Gradients of the loss of a whole model, block after block from its end: one block of weights is in memory at a time.

Some rows go through all blocks, and what enters each is kept. Then the blocks are run again, the last one first, and what the loss changes
with is taken through each of them, row by row:

    dL/dx = J_x^T dL/dy,   dL/dW = J_W^T dL/dy,   dL/dz = J_z^T dL/dy where a matrix puts out z

The loss of a row is the mean over all that it predicts: the next tokens of a causal language model, the class of an image. Where it is not
known what a model should have said, labels are drawn from what it predicts, under the seed: the squares of its gradients are then those of
Fisher's information.
"""

from __future__ import annotations

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
from thrifty.pipeline.block import passed, watching
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.readings import gather
from thrifty.pipeline.streams import Streams, enter
from thrifty.structure.base import Seen, Slopes

Found = TypeVar("Found")

PREDICTS = ("causal_lm", "masked_lm", "vision")
"""Kinds of models whose loss is known."""


def check_loss(source: Source, name: str) -> None:
    """Raise InputError where a model has no loss that can be followed back through its blocks."""
    anatomy = source.anatomy
    if anatomy.kind not in PREDICTS or anatomy.head is None or len(anatomy.chains) != 1:
        raise InputError(
            f"{name} follows the loss of what a model predicts back through its blocks: it needs one chain of them and a head behind it, "
            f"which {anatomy.architecture} does not have"
        )


def descent(source: Source, rows: Rows, setting: Setting) -> Iterator[tuple[Block, dict[str, Slopes]]]:
    """Every block, the last one first, with the slopes of its matrices by path; of what no row reached they are zero."""
    return _descent(source, rows, setting, _slopes)


def products(source: Source, rows: Rows, setting: Setting, paths: Collection[str]) -> Iterator[tuple[Block, Seen]]:
    """Every block, the last one first, with the products of what its stages read, and of the slopes where these linears put out."""
    return _descent(source, rows, setting, partial(_products, paths))


def _descent(source: Source, rows: Rows, setting: Setting, look: Callable[[Here], tuple[Found, Tensor]]) -> Iterator[tuple[Block, Found]]:
    chain, device = source.anatomy.chains[0], torch.device(setting.device)
    blocks, shell, inputs = source.anatomy.blocks, source.shell(torch.float32), dict(rows.inputs)
    calls = shell.calls({name: tensor[:1] for name, tensor in inputs.items()}, {})
    entering = [enter(shell, inputs, chain, Streams(), "calibration", setting.batch, torch.float32)]
    for block in blocks:
        module = source.block(block, torch.float32, device)
        entering.append(passed(module, entering[-1], calls[block.path], setting.batch, device))
    slope = _of_loss(shell, rows, entering.pop(), setting.seed)
    del shell
    for block in reversed(blocks):
        module = source.block(block, torch.float32, device)
        here = Here(module, block, calls[block.path], entering.pop(), slope, device)
        found, slope = look(here)
        yield block, found


def _of_loss(shell: Shell, rows: Rows, leaving: Tensor, seed: int) -> Tensor:
    """What the loss of each row changes with where it leaves the last block."""
    chain, drawn, found = shell.anatomy.chains[0], torch.Generator().manual_seed(seed), []
    for row in range(rows.rows):
        one = rows.select(row, row + 1)
        with torch.enable_grad():
            hidden = leaving[row : row + 1].clone().requires_grad_()
            logits = shell.outputs(dict(one.inputs), {chain: hidden}).flatten(0, -2).cpu()
            labels = _known(one, shell.anatomy.kind)
            if labels is None:
                labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=drawn)
            found += torch.autograd.grad(nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED), hidden)
    return torch.cat(found)


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
