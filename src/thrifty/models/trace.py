"""What a block does, watched on random weights: which linears get the same input, in which order, and what each norm is.

A copy of the block is filled with random values and run on random hidden states; nothing is read from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from thrifty.models.blocks import Call, hollow_block, run_block
from thrifty.models.experts import Experts

Key = tuple[int, int, int]


@dataclass
class Watched:
    """One run of a block.

    reads: module path -> key of the tensor it got, in the order of the calls. writes: key of a norm's output -> the norm's path.
    alive: every tensor seen, so that no key is used twice.
    """

    reads: dict[str, Key] = field(default_factory=dict)
    writes: dict[Key, str] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def key(self, tensor: Tensor) -> Key:
        """The same for two tensors that are views of the same values: where they start and how wide they are."""
        self.alive.append(tensor)
        return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape[-1])


@dataclass
class Specimen:
    """A block with random weights, and what to call it with."""

    module: nn.Module
    hidden: Tensor
    call: Call

    def run(self) -> Tensor:
        """The hidden states that leave the block."""
        return run_block(self.module, self.hidden, self.call)

    @contextmanager
    def changed(self, *paths: str) -> Iterator[None]:
        """Undo whatever happens to the parameters of these modules within the `with` block."""
        modules = [self.module.get_submodule(path) for path in paths]
        kept = [(parameter, parameter.detach().clone()) for module in modules for parameter in module.parameters(recurse=False)]
        try:
            yield
        finally:
            for parameter, values in kept:
                parameter.data.copy_(values)


def random_block(block: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of a block, whose parameters may be on the meta device, with random values."""
    generator = torch.Generator().manual_seed(seed)
    module = hollow_block(block)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            owner._parameters[name] = nn.Parameter(_random(parameter, generator), requires_grad=False)
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_meta:
                owner._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return module


def specimen(block: nn.Module, call: Call, hidden: Tensor, seed: int = 0) -> Specimen:
    """A random copy of a block, and random hidden states of the shape of `hidden`."""
    generator = torch.Generator().manual_seed(seed + 1)
    return Specimen(random_block(block, seed), torch.randn(hidden.shape, generator=generator), call)


def _random(parameter: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim < 2:
        return 1 + 0.1 * values
    # Large enough that activations leave their linear range: a product that only almost commutes must not pass for one that does.
    return values * (1.5 / parameter.shape[-1] ** 0.5)


def watch(subject: Specimen) -> Watched:
    """Run a specimen and note what each of its linears, routers, norms and mixtures of experts reads and writes."""
    watched = Watched()
    handles = []
    experts = [path for path, module in subject.module.named_modules() if isinstance(module, Experts)]
    for path, module in subject.module.named_modules():
        if any(path.startswith(inside + ".") for inside in experts):
            continue
        if is_linear(module) or isinstance(module, Experts):
            handles.append(module.register_forward_pre_hook(_reader(watched, path), with_kwargs=True))
        elif is_norm(module):
            handles.append(module.register_forward_hook(_writer(watched, path)))
    try:
        subject.run()
    finally:
        for handle in handles:
            handle.remove()
    return watched


def _reader(watched: Watched, path: str) -> Callable[..., None]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
        watched.reads.setdefault(path, watched.key(tensor))

    return before


def _writer(watched: Watched, path: str) -> Callable[..., None]:
    def after(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            watched.writes[watched.key(output)] = path

    return after


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix of its own: a linear, GPT-2's transposed one, or a router."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    weight = getattr(module, "weight", None)
    leaf = next(module.children(), None) is None and isinstance(weight, nn.Parameter) and weight.ndim == 2
    return leaf and not isinstance(module, nn.Embedding)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization with a weight."""
    weight = getattr(module, "weight", None)
    named = "norm" in type(module).__name__.lower() and next(module.children(), None) is None
    return named and isinstance(weight, nn.Parameter) and weight.ndim == 1


@torch.no_grad()
def norm_traits(module: nn.Module) -> tuple[str, bool] | None:
    """(kind, plus_one) of a norm, by what it does; None where it does neither.

    A layer norm does not notice a constant added to its input. A norm that multiplies by one plus its weight puts something out at weight
    zero.
    """
    module = module.float()
    width = module.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    bias = getattr(module, "bias", None)
    if bias is not None:
        bias.zero_()
    inputs = torch.randn(1, 4, width, generator=generator)
    module.weight.fill_(1.0)
    plain = module(inputs)
    kind = "layer" if torch.allclose(plain, module(inputs + 3.0), atol=1e-3) else "rms"
    if not torch.allclose(plain, module(inputs * 7.0), atol=1e-3):
        return None
    module.weight.zero_()
    return kind, bool(module(inputs).abs().max() > 1e-6)
