"""Names on disk and names in memory.

A checkpoint keeps the names (and the pieces) of the day it was published; the model classes of transformers have moved on. The map
between both is taken from transformers' own conversion tables: prefixes, renamed modules, and experts that lie on disk one by one but are
one 3-D parameter in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming, rename_source_key

from thrifty.models.diffusion import DiffusionConfig

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Piece:
    """One tensor on disk that becomes a part of a larger parameter: `position` among the patterns that are joined, and the expert."""

    key: str
    position: int
    expert: int | None


@dataclass
class NameMap:
    """Which disk keys make which parameter or buffer of the model.

    direct: memory name -> disk key, one to one. pieces: memory name -> the tensors it is joined from. converters: how they are joined.
    first: the name that the converter's table knows, for parameters that are cut from one tensor.
    tied: memory name -> the name whose values it shares. unused: disk keys that the model has no place for.
    """

    direct: dict[str, str] = field(default_factory=dict)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    converters: dict[str, WeightConverter] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def disk_name(self, name: str) -> str | None:
        """The one disk key that holds the values of `name`; None when there is none, or when it is joined from several."""
        found = self.direct.get(name)
        if found is None and name in self.tied:
            found = self.direct.get(self.tied[name])
        return found

    def keys(self, name: str) -> tuple[str, ...]:
        """Every disk key that the values of `name` come from."""
        single = self.disk_name(name)
        if single is not None:
            return (single,)
        return tuple(piece.key for piece in self.pieces.get(name, ()))

    def expert_key(self, name: str, expert: int, position: int) -> str | None:
        """The disk key of one expert's own matrix inside the fused parameter `name`, where experts lie on disk one by one."""
        for piece in self.pieces.get(name, ()):
            if piece.expert == expert and piece.position == position:
                return piece.key
        return None

    def complete(self, name: str, experts: int) -> bool:
        """Whether everything that `name` is joined from is there; experts: how many its first dimension counts."""
        pieces = self.pieces.get(name, [])
        if not pieces or pieces[0].expert is None:
            return bool(pieces)
        wanted = {(expert, position) for expert in range(experts) for position in range(len(self.converters[name].source_patterns))}
        return wanted <= {(piece.expert, piece.position) for piece in pieces}

    def assemble(self, name: str, read: Read, model: nn.Module) -> Tensor:
        """The values of `name` in the model's own layout, read from disk and joined as transformers joins them."""
        single = self.disk_name(name)
        if single is not None:
            return read(single)
        converter = copy.deepcopy(self.converters[name])
        first = self.first[name]
        for piece in self.pieces[name]:
            converter.add_tensor(first, piece.key, converter.source_patterns[piece.position], _reader(read, piece.key))
        made = converter.convert(first, model=model, config=model.config)
        value = made[name]
        return value[0] if isinstance(value, list) else value


def _reader(read: Read, key: str) -> Callable[[], Tensor]:
    return lambda: read(key)


def map_names(keys: Iterable[str], model: Any) -> NameMap:
    """The map for a checkpoint with these disk keys and this model (its parameters may be on the meta device)."""
    if isinstance(model.config, DiffusionConfig):  # diffusers has no such tables: names in memory are those on disk
        state = model.state_dict()
        return NameMap({key: key for key in keys if key in state}, tied=_tied(model), unused=[key for key in keys if key not in state])
    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    state = model.state_dict()
    names = NameMap(tied=_tied(model))
    for key in sorted(keys, key=_natural):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if name not in state:
            # The table's renaming may not fit the head or the lack of one; the plain name with or without the prefix may.
            name, pattern = *rename_source_key(key, [], [], model.base_model_prefix, state)[:1], None
        if name not in state:
            names.unused.append(key)
        elif pattern is None:
            names.direct[name] = key
        else:
            _add_piece(names, name, key, pattern, converters)
    return names


def _add_piece(names: NameMap, name: str, key: str, pattern: str, converters: list[WeightConverter]) -> None:
    converter = next(item for item in converters if pattern in item.source_patterns)
    expert = None
    if any(isinstance(operation, MergeModulelist) for operation in converter.operations):
        numbers = [part for part in key.split(".") if part.isdigit()]
        expert = int(numbers[-1]) if numbers else None
    piece = Piece(key, converter.source_patterns.index(pattern), expert)
    # One tensor may also be cut into several parameters; the table names the first, the others follow from its patterns.
    for target in converter.target_patterns:
        made = name.replace(converter.target_patterns[0], target)
        names.pieces.setdefault(made, []).append(piece)
        names.converters[made] = converter
        names.first[made] = name


def _tied(model: Any) -> dict[str, str]:
    """Names that share one parameter, each mapped to the others' first name that appears; both directions, since either may be on disk."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    tied = {}
    for members in groups.values():
        for position, member in enumerate(members):
            if len(members) > 1:
                tied[member] = members[0] if position else members[1]
    return tied


def _natural(key: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]
