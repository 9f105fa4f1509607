"""What config.json says of a network whose layers differ in width: the sizes that are given, and what the tensors show.

`modeling_uneven.py` says what stands there. A size is a config attribute with a value for each layer; matrices in two pieces, biases, norms
and branches are read off the shapes of the tensors. Whatever no such network of transformers could hold is refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from thrifty.base.errors import InputError
from thrifty.export.uneven import modeling_uneven
from thrifty.export.uneven.known import ARCHITECTURES, Architecture

Shape = tuple[int, ...]
KEY = "uneven"
HEADS = "num_attention_heads"
VALUE_WIDTH = "v_head_dim"


def uneven_config(config: Mapping[str, Any], sizes: Mapping[str, Sequence[int]], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """config.json of a network with these sizes in each layer and these tensors.

    config: that of the network before its layers were cut, with its number of layers as it is now. sizes: config attribute -> its value in
    each layer, only those that differ from the config's in some layer; `v_head_dim`: the width of a head's values, where that is less than
    `head_dim`. shapes: the name that a parameter has in memory -> its shape. `<linear>.down.weight` and `<linear>.up.weight` stand for a
    matrix in two pieces, `<linear>.kept.weight` for one with narrower values on one side, `<module>.branch.down.weight` and `.up.weight`
    for what is added to a module's output; a bias may be there or not. Raises InputError for an architecture that is not known, for sizes
    that it does not have, and for tensors that do not fit them.
    """
    config, known_sizes = plain_config(config)
    kind = config.get("model_type", "an unnamed architecture")
    if kind not in ARCHITECTURES:
        raise InputError(f"layers of {kind} cannot differ in width; it can be done for {', '.join(sorted(ARCHITECTURES))}")
    name = next(iter(config.get("architectures") or ()), "")
    base = getattr(transformers, name, None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise InputError(f"config.json names no model class of transformers ({name or 'none'}), whose layers could differ in width")
    dense = _built(base, base.config_class.from_dict(floats(config)))
    core = getattr(dense, dense.base_model_prefix, dense)
    blocks, block = _blocks(core, dense.config.num_hidden_layers)
    outline: dict[str, Any] = {"version": modeling_uneven.VERSION, "model_type": kind, "blocks": blocks, "block": block}
    outline["sizes"] = _sizes(dense.config, ARCHITECTURES[kind], {**known_sizes, **sizes})
    if ARCHITECTURES[kind].heads and HEADS in outline["sizes"]:
        width = outline["sizes"]["head_dim"][0]
        outline["attributes"] = {HEADS: {path: width if wide else 1 for path, wide in ARCHITECTURES[kind].heads.items()}}
    prefix = "" if core is dense else dense.base_model_prefix + "."
    made = {**config, **_names(base, type(core), kind), KEY: outline}
    outline |= _Differences(_skeleton(made), made, f"{prefix}{blocks}", shapes).found()
    _check(_skeleton(made), shapes, name)
    return made


def plain_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """(the config that a network was made from before its layers differed, its sizes in each layer); the config as it is for any other."""
    if KEY not in config:
        return dict(config), {}
    plain = {name: value for name, value in config.items() if name not in (KEY, "auto_map")}
    architectures = [name.removeprefix(modeling_uneven.PREFIX) for name in config["architectures"]]
    return {**plain, "model_type": config[KEY]["model_type"], "architectures": architectures}, dict(config[KEY]["sizes"])


def _names(base: type[PreTrainedModel], core: type[PreTrainedModel], kind: str) -> dict[str, Any]:
    """Model type, architecture and `auto_map`: every class of the AutoModel kind that would load the original loads the result."""
    own = f"{modeling_uneven.__name__.rpartition('.')[2]}.{modeling_uneven.PREFIX}"
    autos = {"AutoConfig": base.config_class, "AutoModel": core}
    for name, auto in vars(modeling_auto).items():
        found = getattr(auto, "_model_mapping", None) if name.startswith("AutoModelFor") else None
        listed = found._model_mapping.get(kind, ()) if found is not None else ()
        if base.__name__ in ((listed,) if isinstance(listed, str) else listed):
            autos[name] = base
    return {
        "model_type": modeling_uneven.TYPE + kind,
        "architectures": [modeling_uneven.PREFIX + base.__name__],
        "auto_map": {name: own + made.__name__ for name, made in autos.items()},
    }


def floats(value: Any) -> Any:
    """What config.json says, its infinities as numbers: there they are mappings with the one key `__float__`."""
    if isinstance(value, Mapping):
        return float(value["__float__"]) if value.keys() == {"__float__"} else {name: floats(item) for name, item in value.items()}
    return [floats(item) for item in value] if isinstance(value, list | tuple) else value


def _built(model_class: Any, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"), no_init_weights():
        return model_class(config)


def _skeleton(made: Mapping[str, Any]) -> PreTrainedModel:
    name = made["architectures"][0]
    model_class = getattr(modeling_uneven, name)
    try:
        return _built(model_class, model_class.config_class.from_dict(floats(made)))
    except Exception as error:  # the classes check little, so whatever they stumble over is a size
        said = " ".join(str(error).split())
        raise InputError(f"no {name} has these sizes ({type(error).__name__}: {said}); check them against the architecture") from error


def _blocks(core: nn.Module, count: int) -> tuple[str, str]:
    """(where the layers are, the name of their class)."""
    lists = [(path, module) for path, module in core.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    found = [(path, type(module[0])) for path, module in lists if len({type(layer) for layer in module}) == 1]
    if not found:
        raise InputError(f"{type(core).__name__} has no list of {count} layers of one class, which could differ in width")
    return found[0][0], found[0][1].__name__


def _sizes(config: PreTrainedConfig, architecture: Architecture, given: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The sizes under the names that the architecture has for them, complete."""
    sizes = {architecture.sizes.get(name, name): list(values) for name, values in given.items()}
    for name, values in sizes.items():
        if not hasattr(config, name) and name not in ("head_dim", VALUE_WIDTH, "intermediate_size"):
            raise InputError(f"a {config.model_type} has no size {name}; see the fields of {type(config).__name__}")
        if len(values) != config.num_hidden_layers:
            raise InputError(f"{name} must have {config.num_hidden_layers} values, one a layer, got {len(values)}")
        wrong = [value for value in values if not (isinstance(value, int) and value > 0) and name != "expand"]
        if wrong:
            raise InputError(f"{name} must be a whole number above 0 in each layer, got {wrong[0]!r}; take a layer out whole instead")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads if hasattr(config, HEADS) else 0
    if HEADS in sizes or VALUE_WIDTH in sizes:
        sizes.setdefault("head_dim", [width] * config.num_hidden_layers)
    if "intermediate_size" in sizes and hasattr(config, "expand"):
        sizes["expand"] = [_expansion(size, config.hidden_size) for size in sizes["intermediate_size"]]  # type: ignore[misc]
    return sizes


def _expansion(inner: int, hidden: int) -> float:
    """The factor that a class multiplies `hidden` by, and rounds down, to get `inner`."""
    factor = inner / hidden
    return factor if int(factor * hidden) == inner else math.nextafter(factor, math.inf)


# -- what the tensors show ---------------------------------------------------------------------------------------------


class _Differences:
    """What differs between layers that were built from their sizes and the tensors they are to hold."""

    def __init__(self, model: PreTrainedModel, config: Mapping[str, Any], blocks: str, shapes: Mapping[str, Shape]) -> None:
        self.blocks, self.shapes, self.sizes = model.get_submodule(blocks), shapes, config[KEY]["sizes"]
        places = config[KEY].get("attributes", {}).get(HEADS, {})
        self.attention = tuple({place.partition(".")[0] + "." for place in places})
        self.dense = getattr(model.config, HEADS, 0)
        self.prefix = blocks

    def found(self) -> dict[str, list[dict[str, Any]]]:
        """`linears`, `widths` and `branches`, those that there are."""
        entries: dict[str, list[dict[str, Any]]] = {"linears": [], "widths": [], "branches": []}
        for index, block in enumerate(self.blocks):
            start = f"{self.prefix}.{index}."
            inside = {name.removeprefix(start): shape for name, shape in self.shapes.items() if name.startswith(start)}
            for key, found in zip(
                entries, (self._linears(block, index, inside), self._widths(block, index, inside), _branches(inside)), strict=True
            ):
                entries[key].append(found)
        return {key: found for key, found in entries.items() if any(found)}

    def _linears(self, block: nn.Module, index: int, inside: Mapping[str, Shape]) -> dict[str, dict[str, Any]]:
        found = {}
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                spec = self._linear(module, path, index, inside)
                if spec:
                    found[path] = spec
        return found

    def _linear(self, module: nn.Module, path: str, index: int, inside: Mapping[str, Shape]) -> dict[str, Any]:
        transposed = isinstance(module, Conv1D)
        out, into = module.weight.shape[::-1] if transposed else module.weight.shape
        spec: dict[str, Any] = {}
        last = path
        if f"{path}.down.weight" in inside and f"{path}.up.weight" in inside:
            rank, new_into = inside[f"{path}.down.weight"]
            new_out, last = inside[f"{path}.up.weight"][0], f"{path}.up"
            spec["rank"] = rank
        elif f"{path}.kept.weight" in inside:
            (new_out, new_into), last = inside[f"{path}.kept.weight"], f"{path}.kept"
        elif f"{path}.weight" in inside:
            new_out, new_into = inside[f"{path}.weight"][::-1] if transposed else inside[f"{path}.weight"]
        else:
            return {}  # told of when all names are compared
        bias = f"{last}.bias" in inside
        if bias != (module.bias is not None):
            spec["bias"] = bias
        spec |= self._side(path, index, "out_features", out, new_out, "pad")
        return spec | self._side(path, index, "in_features", into, new_into, "take")

    def _side(self, path: str, index: int, feature: str, made: int, given: int, narrow: str) -> dict[str, Any]:
        """How one side of a matrix comes to have `given` instead of `made` features."""
        if given == made:
            return {}
        width = self.sizes.get("head_dim", [0] * (index + 1))[index]
        values = self.sizes.get(VALUE_WIDTH, [width] * (index + 1))[index]
        if values < width and given * width == made * values:
            return {feature: given, narrow: [values, width]}
        heads = self.sizes.get(HEADS, [0] * (index + 1))[index]
        if path.startswith(self.attention) and given * self.dense == made * heads:
            return {feature: given}
        raise InputError(f"layer {index}: {path} has {given} {feature}, where its sizes ask for {made}")

    def _widths(self, block: nn.Module, index: int, inside: Mapping[str, Shape]) -> dict[str, int]:
        """Norms over all channels of all heads, whose width no config can say."""
        heads = {
            size: self.sizes[size][index] * self.sizes["head_dim"][index] for size in (HEADS, "num_key_value_heads") if size in self.sizes
        }
        found = {}
        for path, module in block.named_modules():
            weight, given = getattr(module, "weight", None), inside.get(f"{path}.weight")
            if (
                weight is not None
                and weight.ndim == 1
                and given is not None
                and given != tuple(weight.shape)
                and given[0] in heads.values()
            ):
                found[path] = given[0]
        return found


def _branches(inside: Collection[str] | Mapping[str, Shape]) -> dict[str, tuple[int, int, int]]:
    found = {}
    for name in inside:
        path, mark, end = name.rpartition(".branch.")
        if mark and end == "down.weight" and f"{path}.branch.up.weight" in inside:
            (rank, into), (out, _) = inside[name], inside[f"{path}.branch.up.weight"]  # type: ignore[index]
            found[path] = (into, rank, out)
    return found


def _check(model: PreTrainedModel, shapes: Mapping[str, Shape], name: str) -> None:
    """Refuse tensors that the network does not hold, and the lack of one."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys or ()) if getattr(model.config, "tie_word_embeddings", False) else set()
    for key, shape in shapes.items():
        if key not in expected:
            raise InputError(f"{key} has no place in a {name} with these sizes")
        if tuple(shape) != expected[key]:
            raise InputError(f"{key} has the shape {list(shape)}, where a {name} with these sizes has {list(expected[key])}")
    absent = next((key for key in expected if key not in shapes and key not in tied), None)
    if absent is not None:
        raise InputError(f"the tensors of a {name} lack {absent}")
