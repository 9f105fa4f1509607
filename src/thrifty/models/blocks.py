"""One block as a module: run it, find its linears and norms, read and set their matrices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from thrifty.base.anatomy import Block
from thrifty.base.errors import RunError, ThriftyError
from thrifty.models.carried import Carried
from thrifty.models.experts import is_fused, unfused


@dataclass(frozen=True)
class Call:
    """What a block's forward gets besides the hidden states, recorded with one row: masks and position embeddings broadcast over more.

    hidden: the keyword that the hidden states are passed by; None where they are the first positional argument. carried: what each row
    brings besides hidden states, which lies behind them.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    hidden: str | None = None
    carried: Carried | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Call:
        """The same call with its tensors on `device`, floating ones in `dtype`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if dtype is not None and tensor.is_floating_point() else tensor.to(device)

        return self.map(move)

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with every tensor in it changed."""
        return Call(_map(self.args, change), _map(self.kwargs, change), self.hidden, self.carried)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_map(item, change) for item in value)
    return value


def run_block(module: nn.Module, hidden: Float[Tensor, "rows *length width"], call: Call) -> Float[Tensor, "rows *length width"]:
    """The hidden states that leave a block. The call's tensors are moved to where, and into the type that, the hidden states are.

    Raises RunError where the block does not take them: what one row was called with does not fit every row of this architecture.
    """
    with torch.no_grad():
        return _run(module, hidden, call, {})


def run_with_weights(
    module: nn.Module, hidden: Float[Tensor, "rows *length width"], call: Call, weights: Mapping[nn.Module, Float[Tensor, "out in"]]
) -> Float[Tensor, "rows *length width"]:
    """`run_block` with other matrices in some of its linears, differentiable in them."""
    names = {inner: name for name, inner in module.named_modules()}
    stored = {
        f"{names[inner]}.weight": (weight.T if isinstance(inner, Conv1D) else weight).to(hidden.dtype) for inner, weight in weights.items()
    }
    return _run(module, hidden, call, stored)


def _run(module: nn.Module, hidden: Tensor, call: Call, weights: dict[str, Tensor]) -> Tensor:
    call, carried = call.to(hidden.device, hidden.dtype), {}
    if call.carried is not None:
        hidden, carried = call.carried.unpack(hidden)
    args, kwargs = (hidden, *call.args), {**call.kwargs, **carried}
    if call.hidden is not None:
        args, kwargs = call.args, {call.hidden: hidden, **kwargs}
    try:
        out = torch.func.functional_call(module, weights, args, kwargs) if weights else module(*args, **kwargs)
    except (ThriftyError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RunError(f"a {type(module).__name__} cannot be run on its own ({said}); this architecture is not supported yet") from error
    if call.carried is not None:
        return call.carried.after(out, carried)
    return out[0] if isinstance(out, tuple | list) else out


def change_inputs(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> None:
    """Let a linear read `change(inputs)` from now on; None leaves them as they are."""

    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        changed = change(arguments[0])
        return None if changed is None else (changed, *arguments[1:])

    module.register_forward_pre_hook(before)


def tensors_of(call: Call) -> list[Tensor]:
    """Every tensor that a call hands over, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    call.map(keep)
    return found


def hollow_block(module: nn.Module) -> nn.Module:
    """A copy of a block without weights, its fused experts replaced by plain linears."""
    module = copy.deepcopy(module)
    # The original may carry a stand-in's forward and hooks that record outputs; a block of its own carries neither.
    module.__dict__.pop("forward", None)
    for path, inner in list(module.named_modules()):
        inner._forward_hooks.clear()
        if path and is_fused(inner):
            module.set_submodule(path, unfused(inner))
    return module.eval()


def linear_modules(module: nn.Module, block: Block) -> dict[str, nn.Module]:
    """The modules of a block's linears and routers, by path in the model."""
    return {linear.path: _inside(module, block, linear.path) for linear in (*block.linears, *block.routers)}


def norm_modules(module: nn.Module, block: Block) -> dict[str, nn.Module]:
    """The modules of a block's norms that have a weight, by path in the model."""
    return {norm.path: _inside(module, block, norm.path) for norm in block.norms if norm.modulation is None}


def _inside(module: nn.Module, block: Block, path: str) -> nn.Module:
    return module.get_submodule(path.removeprefix(block.path + "."))


def get_weight(module: nn.Module) -> Float[Tensor, "out in"] | Float[Tensor, "width"]:
    """The matrix of a linear as [out, in] however the module stores it, or the weight [width] of a norm."""
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def set_weight(module: nn.Module, weight: Float[Tensor, "out in"] | Float[Tensor, "width"]) -> None:
    """Let a linear compute with this [out, in] matrix (a norm: with this [width] weight), rounded to the module's type."""
    stored = weight.T if isinstance(module, Conv1D) else weight
    with torch.no_grad():
        module.weight.copy_(stored)
