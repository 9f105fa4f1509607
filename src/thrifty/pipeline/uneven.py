"""The model that comes out where blocks keep different numbers of units: its config says so for each layer (`export.uneven`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from thrifty.base.anatomy import Block, Units
from thrifty.base.errors import InputError
from thrifty.export.uneven import modeling_uneven
from thrifty.export.uneven.known import ARCHITECTURES
from thrifty.export.uneven.outline import floats, uneven_config
from thrifty.models import Source
from thrifty.models.disk import TensorInfo
from thrifty.models.names import map_names
from thrifty.models.resize import Resized, Resizer, assembled, bias_key
from thrifty.models.skeleton import build_skeleton

Counts = Mapping[str, Mapping[str, int]]
"""How many units stay: by path of the block, then by their shared name."""


def resize_unevenly(source: Source, units: Mapping[str, Sequence[Units]], counts: Counts, biased: Collection[str]) -> Resized:
    """The model with these units in each block, before its blocks exist. biased: linears that get a bias.

    Raises InputError for an architecture whose layers cannot differ, and for one that has no number for these units.
    """
    kind = source.anatomy.model_type
    if kind not in ARCHITECTURES:
        raise InputError(f"layers of {kind} cannot differ in width; it can be done for {', '.join(sorted(ARCHITECTURES))}")
    resizer = Resizer(source, units)
    resizer.by_block = dict(counts)
    disk = resizer.shapes_of_result()
    linears = {linear.path: linear for linear in source.anatomy.linears}
    added = {bias_key(linears[path].source): (linears[path].out_features,) for path in biased if linears[path].bias_source is None}
    raw = uneven_config(resizer.raw, _sizes(source, units, counts), _in_memory(source, disk, biased))
    made, blocks = opened(source, raw, resizer.infos_of_result({**disk, **added}))
    biases = {path: bias_key(linears[path].source) for path in biased if linears[path].bias_source is None}
    return Resized(made, raw, blocks, added, biases)


def opened(source: Source, raw: dict[str, Any], infos: dict[str, TensorInfo]) -> tuple[Source, dict[str, Block]]:
    """(the model that such a config.json describes, before its blocks exist; the original's block of each of its blocks, by path)."""
    config = getattr(modeling_uneven, raw["architectures"][0]).config_class.from_dict(floats(raw))
    config._name_or_path = str(source.folder)
    made = Source(source.folder, config, infos, source._pickled, None)
    made.raw = raw
    return made, {new.path: old for new, old in zip(made.anatomy.blocks, source.anatomy.blocks, strict=True)}


def _sizes(source: Source, units: Mapping[str, Sequence[Units]], counts: Counts) -> dict[str, list[int]]:
    """Attributes of the config and their value in each layer."""
    found: dict[str, list[int]] = {}
    for alike, kind in {item.alike: item.kind for items in units.values() for item in items}.items():
        for key, times in _attributes(source, units, alike, kind).items():
            present = getattr(source.config, key)
            found[key] = [counts[block.path][alike] * times if alike in counts[block.path] else present for block in source.anatomy.blocks]
    return found


def _attributes(source: Source, units: Mapping[str, Sequence[Units]], alike: str, kind: str) -> dict[str, int]:
    """Which attributes say how many units of this name a layer has, and how many times that number each of them is."""
    attention = next((block.attention for block in source.anatomy.blocks if block.attention is not None), None)
    if kind == "heads" and attention is not None:
        repeat = attention.num_heads // attention.num_key_value_heads
        shared = {"num_key_value_heads": 1} if hasattr(source.config, "num_key_value_heads") else {}
        return {"num_attention_heads": repeat, **shared}
    probe = Resizer(source, units)
    first = next(item for items in units.values() for item in items if item.alike == alike)
    probe.keep(alike, first.count - 1)
    keys = probe.keys.get(alike, [])
    if not keys or any(part for part, _ in keys):
        raise InputError(f"{source.anatomy.architecture} has no number for the {kind} of {first.space.name} that could differ by layer")
    return {key: 1 for _, key in keys}


def _in_memory(source: Source, disk: Mapping[str, tuple[int, ...]], biased: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by the names that tensors have in the model."""
    model = build_skeleton(source.config, torch.float32)
    names = map_names(disk, model)
    found: dict[str, tuple[int, ...]] = {}
    for name in model.state_dict():
        shape = assembled(names, name, disk, model) if names.keys(name) else None
        if shape is not None:
            found[name] = shape
    linears = {linear.path: linear for linear in source.anatomy.linears}
    return found | {f"{path}.bias": (linears[path].out_features,) for path in biased}
