"""A whole model in which some units say nothing, whatever the dependency model says of them: the values that they pass on are zeroed.

This knows where the values of a unit flow in plain modules (what a projection reads, what a convolution puts out), and not which entries of
which tensors a unit owns. Everything is computed in float64, also what transformers computes in float32 whatever it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.base.anatomy import Block
from thrifty.base.records import Cut
from thrifty.core.cut import staying
from thrifty.models import Source
from thrifty.models.shell import main_output
from thrifty.models.skeleton import build_skeleton


class _Exactly(TorchFunctionMode):
    """Leaves float64 as it is where it would be rounded, and lets no token choose some outputs of some matrices."""

    def __init__(self, unwanted: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.unwanted = unwanted

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wide = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if wide and function is Tensor.float:
            return args[0]
        if wide:
            args = tuple(torch.float64 if item is torch.float32 else item for item in args)
            kwargs = {name: torch.float64 if item is torch.float32 else item for name, item in kwargs.items()}
        out = function(*args, **kwargs)
        if function is nn.functional.linear and id(args[1]) in self.unwanted:
            return out.masked_fill(self.unwanted[id(args[1])], -torch.inf)
        return out


def whole(source: Source, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The model in float64. tensors: other values, by disk key."""
    model, read, others = build_skeleton(source.config, torch.float64), source.read, tensors or {}
    with patch.object(source, "read", lambda key: others[key] if key in others else read(key)):
        source.fill(model, torch.float64)
    if any(block.experts for block in source.anatomy.blocks):
        model.set_experts_implementation("eager")  # the other one takes neither float64 nor widths like these
    return model


def outputs(model: nn.Module, rows: Mapping[str, Tensor], unwanted: Mapping[int, Tensor] | None = None) -> Tensor:
    """What a model in float64 makes of rows."""
    exact = {name: row.double() if row.is_floating_point() else row for name, row in rows.items()}
    with torch.no_grad(), _Exactly(unwanted or {}):
        return main_output(model(**exact))


def silenced(
    source: Source,
    cuts: Mapping[str, Sequence[Cut]],
    rows: Mapping[str, Tensor],
    skipped: Sequence[str] = (),
    tensors: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """What the dense model puts out without the values of the units that do not stay.

    skipped: paths of blocks that do nothing. tensors: as in `whole`.
    """
    model, unwanted = whole(source, tensors), {}
    for block in source.anatomy.blocks:
        for item in cuts.get(block.path, ()):
            if item.units.kind == "experts":
                router = model.get_submodule(f"{block.experts.router}")
                unwanted[id(router.weight)] = ~staying(item.units, item.keep)
            else:
                _SILENCE[item.units.kind](model, block, item)
    for path in skipped:
        model.get_submodule(path).register_forward_hook(_passes_on, with_kwargs=True)
    return outputs(model, rows, unwanted)


def held_to(source: Source, matrix: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """What the dense model puts out when whatever is written into its hidden states is first multiplied by `matrix`, a projection.

    So are biases of norms, which a reader adds to them, gains apart. Norms of heads add to a mean square what the others do in the model
    with fewer channels, for a config has one number for both.
    """
    model, matrix = whole(source), matrix.double()
    first = model.get_submodule(source.anatomy.blocks[0].path)
    first.register_forward_pre_hook(lambda module, args: (args[0] @ matrix, *args[1:]))
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name in _WRITERS:
            module.register_forward_hook(lambda module, args, out: out @ matrix)
        elif name in _NORMS_OF_HEADS:
            epsilon = "eps" if isinstance(module, nn.LayerNorm) else "variance_epsilon"
            setattr(module, epsilon, getattr(module, epsilon) * len(matrix) / float(matrix.trace()))
        elif isinstance(module, nn.LayerNorm) and module.normalized_shape == (len(matrix),):
            module.bias.data = module.weight * (module.bias / module.weight @ matrix)
    return outputs(model, rows)


_WRITERS = ("o_proj", "dense", "down_proj", "experts", "fc2", "out_proj")
_NORMS_OF_HEADS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")


def _passes_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden


def _reads_nothing_of_them(model: nn.Module, path: str, item: Cut) -> None:
    """Zero what the module at `path` reads of the units, which are equally wide and lie one after the other there."""
    keep = staying(item.units, item.keep)

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * keep.repeat_interleave(args[0].shape[-1] // len(keep))

    model.get_submodule(path).register_forward_pre_hook(before)


def _of_one_reader(model: nn.Module, block: Block, item: Cut) -> None:
    """Neurons and heads have one reader each, which for an expert's neurons is a part of a parameter."""
    (path,) = item.units.space.consumers
    experts = block.experts.path if block.experts else path
    if path.startswith(f"{experts}."):
        number = int(path.removeprefix(f"{experts}.").partition(".")[0])
        model.get_submodule(experts).down_proj[number] *= staying(item.units, item.keep)
    else:
        _reads_nothing_of_them(model, path, item)


def _channels(model: nn.Module, block: Block, item: Cut) -> None:
    """A channel of a Mamba mixer tells the others something through the scan's inputs, and is itself projected out."""
    for name in ("x_proj", "out_proj"):
        _reads_nothing_of_them(model, f"{block.path}.mixer.{name}", item)


def _states(model: nn.Module, block: Block, item: Cut) -> None:
    """C of a state, with which it is read, is what comes last out of x_proj, or out of the convolution once for each group."""
    mixer = model.get_submodule(f"{block.path}.mixer")
    last, groups = (mixer.x_proj, 1) if hasattr(mixer, "x_proj") else (mixer.conv1d, mixer.n_groups)
    keep = staying(item.units, item.keep).repeat(groups)
    for values in last.parameters():
        values[-len(keep) :] *= keep.view(-1, *[1] * (values.ndim - 1))


_SILENCE: dict[str, Callable[[nn.Module, Block, Cut], None]] = {
    "neurons": _of_one_reader,
    "heads": _of_one_reader,
    "channels": _channels,
    "states": _states,
}
