"""The same architecture with other widths: which numbers of its config to change, found by trying.

No table says which attribute of which config is the width of what. Every number of the config that equals the present width is changed in
turn, a model without weights is built, and its shapes are compared with those that the cut tensors have. What comes out loads in plain
transformers, or is refused here, before any weight is read.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from thrifty.base.anatomy import Block, Units
from thrifty.base.errors import InputError
from thrifty.base.records import Cut
from thrifty.core.cut import cut
from thrifty.models.disk import TensorInfo
from thrifty.models.names import map_names
from thrifty.models.skeleton import build_skeleton
from thrifty.models.source import Source

_UNSET_WIDTHS = ("n_inner", "ffn_dim", "intermediate_size", "inner_dim")
"""Attributes that are None where a width follows from others."""

_SHARES = ("expand", "mlp_ratio")
"""Attributes that give a width as a multiple of the hidden size."""


@dataclass(frozen=True)
class Resized:
    """A model of other widths, before its blocks exist.

    source: it, opened: its tensors outside the blocks are the original's, those inside have shapes and no values yet. raw: its config.json.
    blocks: the path of each of its blocks -> the original's block that it comes from. added: disk keys of biases that the original lacks,
    which are zero unless something else is said; biases: those of them that belong to a linear, by its path in the original.
    warnings: what could not be had as it was wanted.
    """

    source: Source
    raw: dict[str, Any]
    blocks: Mapping[str, Block]
    added: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def key(self, original: Source, block: Block, name: str) -> str:
        """What a tensor of an original's block is called in the result; block: the result's."""
        return _moved(name, original, self.blocks[block.path], block.index)


@dataclass
class Resizer:
    """Looks for the config of a model with fewer units or blocks.

    units: what can be cut, by block path. kept: how many stay, by their shared name; by_block: where that differs from block to block.
    keys: the attributes of the config that say so, by shared name.
    """

    source: Source
    units: Mapping[str, Sequence[Units]]

    def __post_init__(self) -> None:
        self.raw: dict[str, Any] = copy.deepcopy(self.source.raw)
        self.shapes = {key: info.shape for key, info in self.source.tensors.items()}
        self.kept: dict[str, int] = {}
        self.by_block: dict[str, Mapping[str, int]] = {}
        self.keys: dict[str, list[tuple[str, str]]] = {}
        self.blocks = list(self.source.anatomy.blocks)
        self.added: dict[str, tuple[int, ...]] = {}
        self.biases: dict[str, str] = {}
        self.warnings: list[str] = []

    # -- fewer units ---------------------------------------------------------------------------------------------------

    def keep(self, alike: str, count: int) -> int:
        """Let every block keep `count` of the units of this name, or the nearest number that the config takes; returns how many stay.

        Raises InputError where the architecture has no config for fewer of them.
        """
        first, units = next((block, item) for block in self.blocks for item in self.units[block.path] if item.alike == alike)
        refused = ""
        for wanted in sorted(range(units.least, units.count), key=lambda number: (abs(number - count), -number)):
            if wanted != count and abs(wanted - count) >= units.count - count:
                break
            for change in self._candidates(units, first, wanted):
                raw = _changed(self.raw, change)
                model, error = self._build(raw)
                refused = refused or error
                if model is not None and self._holds(model, first, units, wanted):
                    self.raw, self.kept[alike], self.keys[alike] = raw, wanted, list(change)
                    return self._say(units, count, wanted, refused)
                if model is not None:
                    refused = ""
            if not refused:
                break
        if not refused:
            name = self.source.anatomy.architecture
            raise InputError(f"no config of {name} has fewer {units.kind} of {units.space.name} with all else as it is")
        return self._say(units, count, units.count, refused)

    def _say(self, units: Units, wanted: int, kept: int, refused: str) -> int:
        if kept != wanted:
            self.warnings.append(f"{units.space.name}: {kept} of {units.count} {units.kind} stay, not {wanted}; its config says: {refused}")
        return kept

    def _candidates(self, units: Units, block: Block, count: int) -> Iterator[dict[tuple[str, str], Any]]:
        """Changes of the config that may mean this number of units, the likeliest first."""
        for part, config in _parts(self.source.config).items():
            values = {key: value for key, value in config.to_dict().items() if not isinstance(value, bool)}
            if units.kind == "heads":
                change = _heads(values, config, block, count)
                if change:
                    yield {(part, key): value for key, value in change.items()}
                continue
            for key, value in values.items():
                if value == units.count and isinstance(value, int):
                    yield {(part, key): count}
            for key in _UNSET_WIDTHS:
                if key in values and values[key] is None:
                    yield {(part, key): count}
            if units.kind == "channels":
                yield {(part, "intermediate_size"): count}
            hidden = values.get("hidden_size")
            for key in _SHARES:
                if isinstance(hidden, int) and isinstance(values.get(key), int) and count % hidden == 0:
                    yield {(part, key): count // hidden}

    def _build(self, raw: dict[str, Any]) -> tuple[Any, str]:
        """(a model without weights, "") or (None, why its config was refused)."""
        try:
            return build_skeleton(self.config(raw), torch.float32, self.source.remote_code), ""
        except Exception as error:  # config classes check their fields with errors of their own
            return None, " ".join(str(error).split()).rpartition("Error: ")[2]

    def config(self, raw: dict[str, Any]) -> Any:
        with tempfile.TemporaryDirectory() as folder:  # as a reader does it: some values are written in ways of their own
            (Path(folder) / "config.json").write_text(json.dumps(raw))
            config = type(self.source.config).from_pretrained(folder)
        config._name_or_path = str(self.source.folder)
        return config

    def _holds(self, model: Any, block: Block, units: Units, count: int) -> bool:
        """Whether all tensors have the right shapes in one block of the model, and those outside the blocks still theirs."""
        kept = {**self.kept, units.alike: count}
        cuts = [Cut(item, torch.arange(kept[item.alike])) for item in self.units[block.path] if item.alike in kept]
        before = {key: torch.empty(self.shapes[key], device="meta") for key in self.source.block_keys(block)}
        shapes = {key: self.shapes[key] for key in self.source.shell_keys()}
        shapes |= {key: tuple(tensor.shape) for key, tensor in cut(before, cuts).items()}
        return self._mismatch(model, shapes, shapes.keys()) is None

    def _mismatch(self, model: Any, shapes: Mapping[str, tuple[int, ...]], only: Collection[str]) -> str | None:
        """The first parameter, of those made of the keys `only`, whose shape is not that of what lies on disk."""
        names = map_names(shapes, model)
        state = model.state_dict()
        used: set[str] = set()
        for name, value in state.items():
            keys = names.keys(name)
            used.update(keys)
            if any(key in only for key in keys) and assembled(names, name, shapes, model) != tuple(value.shape):
                return name
        return next((key for key in only if key not in used and key not in self.source.names.unused), None)

    # -- fewer blocks --------------------------------------------------------------------------------------------------

    def keep_blocks(self, chain: str, indices: Sequence[int]) -> None:
        """Let only these blocks of a chain stay. Raises InputError where the config has no number for that."""
        mine = [block for block in self.blocks if block.chain == chain]
        keep = [block for block in mine if block.index in set(indices)]
        others = [block for block in self.blocks if block.chain != chain]
        chains = self.source.anatomy.chains
        self.blocks = sorted(others + keep, key=lambda block: (chains.index(block.chain), block.index))
        for part, config in _parts(self.source.config).items():
            values = config.to_dict()
            if getattr(config, "num_hidden_layers", None) != len(mine):
                continue
            change = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(keep)}
            others = _lists_of_any_model(config, len(mine))
            for key, value in values.items():
                if isinstance(value, list) and len(value) == len(mine) and key not in others:
                    change[key] = [value[block.index] for block in keep]
                elif isinstance(value, list) and value and "layers" in key and all(isinstance(item, int) for item in value):
                    change[key] = [place for place, block in enumerate(keep) if block.index in value]
            raw = _changed(self.raw, {(part, key): value for key, value in change.items()})
            model, _ = self._build(raw)
            shapes = self.shapes_of_result()
            if model is not None and self._mismatch(model, shapes, shapes.keys()) is None and self._absent(model, shapes) is None:
                self.raw = raw
                return
        raise InputError(f"no config of {self.source.anatomy.architecture} has {len(keep)} of its {len(mine)} {chain} blocks")

    # -- fewer channels ------------------------------------------------------------------------------------------------

    def channels(self, width: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Let the hidden states have `width` channels. shapes: those of all tensors then, by disk key.

        What norms add to a mean square grows as channels get fewer, so that they divide by the same. Raises InputError where no config
        has such hidden states.
        """
        config, anatomy = self.source.config, self.source.anatomy
        values = {key: value for key, value in config.to_dict().items() if not isinstance(value, bool)}
        attention = next((block.attention for block in self.blocks if block.attention is not None), None)
        beside: dict[str, Any] = {key: anatomy.hidden_size / width * value for key, value in values.items() if _is_epsilon(key, value)}
        if attention is not None:
            beside[config.attribute_map.get("head_dim", "head_dim")] = attention.head_dim
        known = [key for key, value in values.items() if value == anatomy.hidden_size and isinstance(value, int)]
        refused = ""
        for keys in (*([key] for key in known), known):
            raw = _changed(self.raw, {("", key): value for key, value in (beside | dict.fromkeys(keys, width)).items()})
            model, error = self._build(raw)
            wrong = None if model is None else self._mismatch(model, shapes, shapes.keys()) or self._absent(model, shapes)
            if model is not None and wrong is None:
                self.raw = raw
                return
            refused = error.rstrip(".") or f"{wrong} would change, too"
        raise InputError(f"no config of {anatomy.architecture} has hidden states of {width} channels with all else as it is ({refused})")

    # -- biases --------------------------------------------------------------------------------------------------------

    def add_biases(self, paths: Collection[str]) -> set[str]:
        """Let these linears have a bias, as far as the config has a switch for it; returns the paths of those that have none then."""
        linears = {linear.path: (linear, block) for block in self.blocks for linear in block.linears}
        lacking = {path for path in paths if linears[path][0].bias_source is None}
        for part, config in _parts(self.source.config).items():
            for key, value in config.to_dict().items():
                if value is not False or "bias" not in key or not lacking:
                    continue
                raw = _changed(self.raw, {(part, key): True})
                model, _ = self._build(raw)
                names = set(model.state_dict()) if model is not None else set()
                gained = {path for path in lacking if f"{self._new_path(path, linears[path][1])}.bias" in names}
                if gained:
                    self.raw = raw
                    self.biases |= {path: bias_key(linears[path][0].source) for path in gained}
                    lacking -= gained
        return lacking

    def _new_path(self, path: str, block: Block) -> str:
        place = [other for other in self.blocks if other.chain == block.chain].index(block)
        return f"{block.path.rpartition('.')[0]}.{place}{path.removeprefix(block.path)}"

    # -- the result ----------------------------------------------------------------------------------------------------

    def result(self) -> Resized:
        """The model that all of this makes. Raises InputError where its parts do not fit together."""
        model, error = self._build(self.raw)
        if model is None:
            raise InputError(f"{self.source.anatomy.architecture} cannot have these widths together: {error}")
        shapes = self.shapes_of_result()
        for name, shape in self._new_biases(model, shapes).items():
            self.added[name] = shape
        shapes |= self.added
        wrong = self._mismatch(model, shapes, shapes.keys()) or self._absent(model, shapes)
        if wrong is not None:
            raise InputError(f"{self.source.anatomy.architecture} cannot have these widths together: {wrong} would have another shape")
        source = Source(
            self.source.folder, self.config(self.raw), self.infos_of_result(shapes), self.source._pickled, self.source.remote_code
        )
        source.raw = self.raw
        blocks = {new.path: old for new, old in zip(source.anatomy.blocks, self.blocks, strict=True)}
        biases = {path: self._moved_key(key, path) for path, key in self.biases.items()}
        return Resized(source, self.raw, blocks, dict(self.added), biases, tuple(self.warnings))

    def _moved_key(self, key: str, path: str) -> str:
        block = next(block for block in self.blocks if path.startswith(block.path + "."))
        return _moved(key, self.source, block, self._place(block))

    def _place(self, block: Block) -> int:
        return [other for other in self.blocks if other.chain == block.chain].index(block)

    def shapes_of_result(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors of the result by disk key, new biases apart."""
        shapes = {key: self.shapes[key] for key in self.source.shell_keys()}
        for block in self.blocks:
            tensors = {key: torch.empty(self.shapes[key], device="meta") for key in self.source.block_keys(block)}
            kept = self.by_block.get(block.path, self.kept)
            cuts = [Cut(item, torch.arange(kept[item.alike])) for item in self.units[block.path] if item.alike in kept]
            place = self._place(block)
            shapes |= {_moved(key, self.source, block, place): tuple(tensor.shape) for key, tensor in cut(tensors, cuts).items()}
        return shapes

    def _new_biases(self, model: Any, shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        names = map_names(shapes, model)
        found = {}
        for name, value in model.state_dict().items():
            weight = names.disk_name(name.removesuffix(".bias") + ".weight")
            if name.endswith(".bias") and not names.keys(name) and weight is not None:
                found[bias_key(weight)] = tuple(value.shape)
        return found

    def _absent(self, model: Any, shapes: Mapping[str, Any]) -> str | None:
        names = map_names(shapes, model)
        return next(
            (
                name
                for name, value in model.state_dict().items()
                if not names.keys(name) and value.is_meta and not names.complete(name, value.shape[0] if value.ndim else 1)
            ),
            None,
        )

    def infos_of_result(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
        """Where the result's tensors are, or will be, by disk key."""
        shell = set(self.source.shell_keys())
        by_place = {
            _moved(key, self.source, block, self._place(block)): self.source.tensors[key]
            for block in self.blocks
            for key in self.source.block_keys(block)
        }
        found = {}
        for key, shape in shapes.items():
            if key in shell:
                found[key] = self.source.tensors[key]
                continue
            like = by_place.get(key) or by_place[key.removesuffix(".bias") + ".weight"]
            found[key] = like.of_shape(shape)
        return found


def _parts(config: Any) -> dict[str, Any]:
    """The config itself and those inside it, by the name of their attribute."""
    inner = {name: value for name, value in vars(config).items() if hasattr(value, "to_dict") and hasattr(value, "model_type")}
    return {"": config, **inner}


def _lists_of_any_model(config: Any, count: int) -> set[str]:
    """Attributes that hold as many values in a model with more blocks than `count`: they have none for each block, or are of tokens."""
    try:
        other = type(config)(num_hidden_layers=count + 1).to_dict()
    except Exception:  # config classes check their fields with errors of their own
        other = {}
    fixed = {key for key, value in other.items() if isinstance(value, list | tuple) and len(value) == count}
    return fixed | {key for key in config.to_dict() if "token" in key}


def _changed(raw: Mapping[str, Any], change: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    """A config.json with other values; what stood under another name of the same attribute is kept under its own."""
    found = copy.deepcopy(dict(raw))
    for (part, key), value in change.items():
        place = found if not part else found.setdefault(part, {})
        place[key] = value
    return found


def _heads(values: Mapping[str, Any], config: Any, block: Block, groups: int) -> dict[str, Any]:
    attention = block.attention
    if attention is None or getattr(config, "num_attention_heads", None) != attention.num_heads:
        return {}
    names = config.attribute_map
    change = {names.get("num_attention_heads", "num_attention_heads"): groups * attention.num_heads // attention.num_key_value_heads}
    if "num_key_value_heads" in values or attention.num_heads != attention.num_key_value_heads:
        change[names.get("num_key_value_heads", "num_key_value_heads")] = groups
    return {**change, names.get("head_dim", "head_dim"): attention.head_dim}


def _is_epsilon(key: str, value: Any) -> bool:
    return "eps" in key and isinstance(value, float)


def assembled(names: Any, name: str, shapes: Mapping[str, tuple[int, ...]], model: Any) -> tuple[int, ...] | None:
    """The shape of a parameter that is made of what lies on disk; None where its pieces do not fit together."""
    try:
        return tuple(names.assemble(name, lambda key: torch.empty(shapes[key], device="meta"), model).shape)
    except (RuntimeError, ValueError, IndexError):
        return None


def bias_key(weight: str) -> str:
    return weight.removesuffix(".weight") + ".bias"


def _moved(key: str, source: Source, block: Block, place: int) -> str:
    """The name of a block's tensor when the block stands at another place of its chain."""
    if place == block.index:
        return key
    prefix = _disk_prefix(source.block_keys(block), block.index)
    return ".".join([*prefix[:-1], str(place), *key.split(".")[len(prefix) :]])


def _disk_prefix(keys: Sequence[str], index: int) -> list[str]:
    """What all keys of a block begin with, up to its number."""
    parts = [key.split(".") for key in keys]
    common = [item[0] for item in zip(*parts, strict=False) if len(set(item)) == 1]
    last = max((place for place, item in enumerate(common) if item == str(index)), default=None)
    if last is None:
        raise InputError(f"the tensors of block {index} do not carry its number on disk ({keys[0]}), so blocks cannot be removed")
    return common[: last + 1]
