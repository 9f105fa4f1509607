"""Networks whose layers differ in width, for transformers.

This file lies beside the weights of such a network and needs torch and transformers, nothing else. It holds no architecture of its own:
`UnevenLlamaForCausalLM` is transformers' `LlamaForCausalLM` whose layers are built one by one, each from the model's config with that
layer's sizes in it. Attention, masks, caches and `generate` are those of transformers. The same file serves every architecture.

config.json says under `uneven`, with paths inside a layer (`self_attn.q_proj`) and layers counted from 0:

    version       1
    model_type    the model type of transformers that it was made from
    blocks        where the layers are in the base model; block: the name of their class
    sizes         config attribute -> its value in each layer, e.g. {"intermediate_size": [96, 64], "num_attention_heads": [4, 2]}
    attributes    a size that the class keeps as attributes: {"num_attention_heads": {"attn.num_heads": 1, "attn.split_size": 16}}
                  sets each of these to that many times the size
    linears       [{path: {...}}, ...], one entry a layer: `out_features`, `in_features`, `bias` where they are not what the class makes;
                  `rank`: two matrices in place of one, `down` and then `up`; `take` and `pad`, both [kept, width]: of every `width`
                  inputs only the first `kept` are read, or of every `width` outputs only the first `kept` are made, the others are 0
    widths        [{path: width}, ...]: norms of another width
    branches      [{path: [in, rank, out]}, ...]: what the module puts out is added to `up(down(its input))`
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

VERSION = 1
PREFIX = "Uneven"
TYPE = "uneven_"


def __getattr__(name: str) -> Any:
    """`Uneven` before the name of a config class or a model class of transformers."""
    base = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    # The second class is asked for only where it must be: configs are made while transformers is still being imported.
    if not isinstance(base, type) or not (issubclass(base, PreTrainedConfig) or issubclass(base, transformers.PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = _config_class(name, base) if issubclass(base, PreTrainedConfig) else _model_class(name, base)
    globals()[name] = made
    return made


def _own(name: str) -> Any:
    return getattr(sys.modules[__name__], name)


# -- configs -----------------------------------------------------------------------------------------------------------


class LayerConfig:
    """The config of one layer: that of the model, with other values for some attributes."""

    def __init__(self, config: PreTrainedConfig, sizes: dict[str, Any]) -> None:
        names = config.attribute_map  # other names of attributes
        self.__dict__.update({names.get(name, name): value for name, value in sizes.items()}, _shared=config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_shared":  # while it is copied
            raise AttributeError(name)
        own = self._shared.attribute_map.get(name)
        return self.__dict__[own] if own in self.__dict__ else getattr(self._shared, name)


class _UnevenConfig:
    """What is added to a config class of transformers."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        for auto, reference in (getattr(self, "auto_map", None) or {}).items():
            if auto.startswith("AutoModel"):
                getattr(transformers, auto).register(type(self), _own(reference.rpartition(".")[2]), exist_ok=True)

    def of_layer(self, index: int, without: Any = ()) -> LayerConfig:
        """The config of layer number `index`, its sizes except `without` in place of the model's."""
        sizes = self.uneven["sizes"].items()  # type: ignore[attr-defined]
        return LayerConfig(self, {name: values[index] for name, values in sizes if name not in without})  # type: ignore[arg-type]


def _config_class(name: str, base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    body = {"__module__": __name__, "__doc__": f"{base.__name__} with sizes for each layer.", "model_type": TYPE + base.model_type}
    return type(name, (_UnevenConfig, base), body | {"_auto_class": "AutoConfig"})


# -- models ------------------------------------------------------------------------------------------------------------


class _UnevenModel:
    """What is added to a model class of transformers."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.uneven.get("version") != VERSION:
            raise ValueError(f"`uneven` has version {config.uneven.get('version')!r}, and this code reads version {VERSION}")
        count, config.num_hidden_layers = config.num_hidden_layers, 0  # transformers builds all but the layers
        try:
            super().__init__(config, *args, **kwargs)
        finally:
            config.num_hidden_layers = count
        core = getattr(self, self.base_model_prefix, self)  # type: ignore[attr-defined]
        kind = _layer_class(type(core), config.uneven["block"])
        core.get_submodule(config.uneven["blocks"]).extend(_layer(kind, config, index) for index in range(count))
        self.post_init()  # type: ignore[attr-defined]  # gives first values to what has none yet


def _model_class(name: str, base: type[transformers.PreTrainedModel]) -> type[transformers.PreTrainedModel]:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

    config_class = _own(PREFIX + base.config_class.__name__)
    for known, own in ((base.__name__, name), (base.config_class.model_type, config_class.model_type)):
        conversions = get_checkpoint_conversion_mapping(known)  # names on disk are those of the architecture
        if conversions is not None:
            register_checkpoint_conversion_mapping(own, conversions, overwrite=True)
    body = {"__module__": __name__, "__doc__": f"{base.__name__} whose layers differ in width.", "config_class": config_class}
    return type(name, (_UnevenModel, base), body)


def _layer_class(core: type[transformers.PreTrainedModel], name: str) -> Any:
    """The class of that name beside the class of transformers that `core` is, or is made from."""
    home = next(kind.__module__ for kind in core.__mro__ if kind.__module__ != __name__)
    kind = getattr(sys.modules[home], name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{name} is no layer of {home}")
    return kind


def _layer(kind: Any, config: Any, index: int) -> nn.Module:
    """One layer: built by its own class from its own sizes, then with what no config can say."""
    outline = config.uneven
    held = outline.get("attributes", {})
    own = config.of_layer(index, without=held)
    layer = kind(own, layer_idx=index) if "layer_idx" in inspect.signature(kind).parameters else kind(own)
    for size, places in held.items():
        for place, factor in places.items():
            path, _, attribute = place.rpartition(".")
            setattr(layer.get_submodule(path), attribute, factor * outline["sizes"][size][index])
    for path, spec in _entry(outline, "linears", index).items():
        layer.set_submodule(path, _linear(layer.get_submodule(path), **spec))
    for path, width in _entry(outline, "widths", index).items():
        _resize(layer.get_submodule(path), width)
    for path, (into, rank, out) in _entry(outline, "branches", index).items():
        module = layer.get_submodule(path)
        module.branch = _factors(into, rank, out, bias=False)
        module.__class__ = _branched(type(module))
    return layer


def _entry(outline: dict[str, Any], key: str, index: int) -> dict[str, Any]:
    return outline[key][index] if key in outline else {}


class Take(nn.Module):
    """Reads the first `kept` of every `width` values."""

    def __init__(self, kept: int, width: int) -> None:
        super().__init__()
        self.kept, self.width = kept, width

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (-1, self.width))[..., : self.kept].flatten(-2)


class Pad(nn.Module):
    """Puts zeros after every `kept` values, so that there are `width`."""

    def __init__(self, kept: int, width: int) -> None:
        super().__init__()
        self.kept, self.width = kept, width

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(values.unflatten(-1, (-1, self.kept)), (0, self.width - self.kept)).flatten(-2)


def _factors(into: int, rank: int, out: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(OrderedDict(down=nn.Linear(into, rank, bias=False), up=nn.Linear(rank, out, bias=bias)))


def _linear(
    module: nn.Module,
    out_features: int | None = None,
    in_features: int | None = None,
    bias: bool | None = None,
    rank: int | None = None,
    take: tuple[int, int] | None = None,
    pad: tuple[int, int] | None = None,
) -> nn.Module:
    """What stands in place of a linear that the class has made."""
    transposed = isinstance(module, Conv1D)
    out, into = module.weight.shape[::-1] if transposed else module.weight.shape
    out, into = out_features or out, in_features or into
    bias = module.bias is not None if bias is None else bias
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if take is not None:
        parts["take"] = Take(*take)
    if rank is not None:
        parts |= dict(_factors(into, rank, out, bias).named_children())
    elif take is None and pad is None:
        return Conv1D(out, into) if transposed else nn.Linear(into, out, bias=bias)
    else:
        parts["kept"] = nn.Linear(into, out, bias=bias)
    if pad is not None:
        parts["pad"] = Pad(*pad)
    return nn.Sequential(parts)


def _resize(norm: nn.Module, width: int) -> None:
    for name, parameter in list(norm.named_parameters(recurse=False)):
        setattr(norm, name, nn.Parameter(torch.empty(width, dtype=parameter.dtype, device=parameter.device)))
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (width,)


@cache
def _branched(kind: type[nn.Module]) -> type[nn.Module]:
    """The class `kind` with a branch of low rank beside it. Its name stays, for transformers gives first values by name."""

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = kind.forward(self, hidden_states, *args, **kwargs)
        added = self.branch(hidden_states)
        return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "forward": forward})
