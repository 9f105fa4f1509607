"""The model without its blocks: what turns inputs into hidden states, and final hidden states into outputs.

Embeddings, position encodings, final norms, projectors and heads are real. Each block is a stand-in that notes what it is called with and
passes the hidden states through. Blocks of one chain are run outside, one at a time, and the chain's final hidden states are handed back
through its last stand-in.
"""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.base.anatomy import Anatomy, Block
from thrifty.base.errors import RunError
from thrifty.models.blocks import Call, hollow_block
from thrifty.models.carried import Carried

_HEADS = ("logits", "logits_per_image", "prediction_logits", "last_hidden_state")


class _Reached(Exception):
    """Ends a forward pass once the hidden states that were asked for are there."""


class Shell:
    """The model around its blocks.

    model: the whole model, its blocks hollow and everything else materialised. real_block: gives a block with its weights, used once for
    each chain whose blocks cannot be run without them to learn whether they return a tensor or a tuple.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, real_block: Callable[[Block], nn.Module], device: torch.device | str) -> None:
        self.model = model
        self.anatomy = anatomy
        self.device = torch.device(device)
        self._real_block = real_block
        self._tuples: dict[str, bool] = {}
        self._noted: dict[str, Call] = {}
        self._times: Counter[str] = Counter()
        self._leaving = False
        self.entering: dict[str, torch.Size] = {}
        self._entering: str | None = None
        self._entered: Tensor | None = None
        self._done: Mapping[str, Tensor] = {}
        for chain in anatomy.chains:
            blocks = [block for block in anatomy.blocks if block.chain == chain]
            for block in blocks:
                self._stand_in(block, block is blocks[0], block is blocks[-1])

    @torch.no_grad()
    def enter(self, inputs: dict[str, Tensor], chain: str, done: Mapping[str, Tensor]) -> Tensor:
        """The hidden states [rows, length, width] that reach the first block of `chain`.

        done: final hidden states of the chains before it, for the same rows.
        """
        with self._passing(done, chain):
            with suppress(_Reached):
                self._forward(inputs)
            entered, self._entered = self._entered, None
        if entered is None:
            raise ValueError(f"these inputs do not reach the chain {chain!r}; inputs: {', '.join(inputs)}")
        return entered

    @torch.no_grad()
    def calls(self, inputs: dict[str, Tensor], done: Mapping[str, Tensor], rows: int = 1, *, to_the_end: bool = True) -> dict[str, Call]:
        """What each block gets besides the hidden states, by block path; afterwards `entering` has the shapes of these.

        Only the first row of the inputs is used (or the first `rows`): rows must be alike (equal length, no padding), as calibration
        windows are. to_the_end: False leaves the pass once every block was reached, before any head. Raises RunError for a block that a
        pass reaches more or less than once.
        """
        with self._passing({chain: hidden[:rows] for chain, hidden in done.items()}, None):
            self._noted, self._times, self._leaving = {}, Counter(), not to_the_end
            try:
                with suppress(_Reached):
                    self._forward({name: tensor[:rows] for name, tensor in inputs.items()})
            finally:
                self._leaving = False
            noted, self._noted = self._noted, {}
        for block in self.anatomy.blocks:
            if self._times[block.path] != 1:
                times = f"{block.path} is passed {self._times[block.path]} times, not once"
                raise RunError(f"{times}; models whose layers share weights or are left out are not supported yet")
        return noted

    @torch.no_grad()
    def finish(self, inputs: dict[str, Tensor], done: Mapping[str, Tensor]) -> Tensor:
        """`outputs` without gradients."""
        return self.outputs(inputs, done)

    def outputs(self, inputs: dict[str, Tensor], done: Mapping[str, Tensor]) -> Tensor:
        """What the model makes of the final hidden states of all chains, differentiable in these.

        Logits [rows, length, vocabulary] of language models, logits [rows, classes] of classifiers, the image-text similarities
        [images, texts] of dual encoders, the prediction of diffusion transformers, else the last hidden state.
        """
        with self._passing(done, None):
            return main_output(self._forward(inputs))

    def _forward(self, inputs: dict[str, Tensor]) -> Any:
        return self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})

    @contextmanager
    def _passing(self, done: Mapping[str, Tensor], entering: str | None) -> Iterator[None]:
        self._done, self._entering, self._entered = done, entering, None
        try:
            yield
        finally:
            self._done, self._entering = {}, None

    def _stand_in(self, block: Block, first: bool, last: bool) -> None:
        module = self.model.get_submodule(block.path)
        names = list(inspect.signature(module.forward).parameters)
        shell = weakref.proxy(self)  # the module must not keep its shell alive: what holds each other in a ring is freed late

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, call = _split(args, kwargs, names)
            if block.carries:
                hidden, call = _packed(hidden, call, names, block)
            if first and shell._entering == block.chain:
                shell._entered = hidden
                raise _Reached
            shell._noted[block.path] = call
            shell._times[block.path] += 1
            shell.entering[block.path] = hidden.shape
            if shell._leaving and len(shell._noted) == len(shell.anatomy.blocks):
                raise _Reached
            if call.carried is None and block.chain not in shell._tuples:
                shell._tuples[block.chain] = shell._returns_tuple(block, hidden, call)
            if last and block.chain in shell._done:
                hidden = shell._done[block.chain].to(hidden.device)
            if call.carried is not None:
                return call.carried.put_out(hidden)
            return (hidden,) if shell._tuples[block.chain] else hidden

        # An attribute of this one instance: its class, its other attributes and its hooks stay what the model expects of a block.
        module.forward = forward

    def _returns_tuple(self, block: Block, hidden: Tensor, call: Call) -> bool:
        """Whether a block returns a tuple: tried on the meta device, or with its weights where that does not work."""
        try:
            hollow = hollow_block(self.model.get_submodule(block.path)).to("meta")
            out = _apply(hollow, hidden.to("meta"), call.to("meta"))
        except (RuntimeError, NotImplementedError, ValueError):
            out = _apply(self._real_block(block), hidden, call)
        return isinstance(out, tuple | list)


def _split(args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]) -> tuple[Tensor, Call]:
    if args:
        return args[0], Call(args[1:], dict(kwargs))
    return kwargs[names[0]], Call((), {name: value for name, value in kwargs.items() if name != names[0]}, names[0])


def _packed(hidden: Tensor, call: Call, names: list[str], block: Block) -> tuple[Tensor, Call]:
    """What the block carries behind its hidden states instead of in the call."""
    position = call.hidden is None
    given = {**dict(zip(names[1:], call.args, strict=False)), **call.kwargs} if position else dict(call.kwargs)
    values = {name: given.pop(name) for name in block.carries if isinstance(given.get(name), Tensor)}
    carried = Carried.of(hidden, values, block.returns, names[0])
    return carried.pack(hidden, values), Call((), given, names[0], carried)


def _apply(forward: Callable[..., Any], hidden: Tensor, call: Call) -> Any:
    if call.hidden is None:
        return forward(hidden, *call.args, **call.kwargs)
    return forward(*call.args, **{call.hidden: hidden}, **call.kwargs)


def main_output(outputs: Any) -> Tensor:
    """The tensor that a model is judged by."""
    for name in _HEADS:
        value = getattr(outputs, name, None)
        if isinstance(value, Tensor):
            return value
    return outputs[0]
