"""Gradients of the loss of a whole model, block after block from its end: one block of weights is in memory at a time.

Some rows go through all blocks, and what enters each is kept. Then the blocks are run again, the last one first, and what the loss changes
with is taken through each of them, row by row:

    dL/dx = J_x^T dL/dy,   dL/dW = J_W^T dL/dy

The loss of a row is the mean over all that it predicts: the next tokens of a causal language model, the class of an image. Where it is not
known what a model should have said, labels are drawn from what it predicts, under the seed: the squares of its gradients are then those of
Fisher's information.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.base.anatomy import Block, Kind
from thrifty.base.errors import InputError
from thrifty.data import Rows
from thrifty.measure.language import IGNORED, causal_targets
from thrifty.models import Call, Shell, Source, get_weight, linear_modules, run_with_weights
from thrifty.pipeline.block import passed
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.streams import Streams, enter
from thrifty.structure.base import Slopes

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
        slope, found = _through(module, block, entering.pop(), slope, calls[block.path], device)
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


def _through(
    module: nn.Module,
    block: Block,
    entering: Float[Tensor, "rows *length width"],
    leaving: Float[Tensor, "rows *length width"],
    call: Call,
    device: torch.device,
) -> tuple[Float[Tensor, "rows *length width"], dict[str, Slopes]]:
    """(the slopes where rows enter a block, and of its matrices), given those where they leave it."""
    inner = linear_modules(module, block)
    weights = {linear.path: get_weight(inner[linear.path]).requires_grad_() for linear in block.linears}
    found = {path: Slopes(torch.zeros_like(weight), torch.zeros_like(weight)) for path, weight in weights.items()}
    below: list[Tensor] = []
    for row, slope in zip(entering.split(1), leaving.split(1), strict=True):
        with torch.enable_grad():
            hidden = row.to(device).requires_grad_()
            out = run_with_weights(module, hidden, call, {inner[path]: weight for path, weight in weights.items()})
            here, *grads = torch.autograd.grad(out, [hidden, *weights.values()], slope.to(device), allow_unused=True)
        below.append(here.cpu())
        for slopes, grad in zip(found.values(), grads, strict=True):
            if grad is not None:  # an expert that the row did not choose
                slopes.mean.add_(grad, alpha=1 / len(entering))
                slopes.square.addcmul_(grad, grad, value=1 / len(entering))
    return torch.cat(below), {path: Slopes(slopes.mean.cpu(), slopes.square.cpu()) for path, slopes in found.items()}
