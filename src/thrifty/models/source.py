"""A model folder, opened: what it is made of, and its weights, one tensor or one block at a time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.base import events
from thrifty.base.anatomy import STEMS, Anatomy, Block, Library, Part
from thrifty.base.errors import InputError, RunError
from thrifty.core.finite import all_finite
from thrifty.models.anatomy import describe_model
from thrifty.models.blocks import hollow_block
from thrifty.models.disk import TensorInfo, read_tensor
from thrifty.models.folder import find_folder, read_config, scan_folder
from thrifty.models.names import NameMap, map_names
from thrifty.models.shell import Shell
from thrifty.models.skeleton import build_skeleton, fills_linears

HASHERS = 4
"""Tensors that are read and hashed at a time, at most: each is in memory whole."""

_CHUNK = 1 << 24
_SIDE_FOLDERS = ("additional_chat_templates",)
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json", ".ot", ".tflite")


def open_model(source: str | Path, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> Source:
    """Open a model: a local folder, or the id of a model on the Hugging Face hub (downloaded once, then from the cache).

    Nothing but headers is read. Raises InputError for whatever is not a plain model with safetensors weights: a missing folder, an
    adapter, a quantized model, pickled weights (unless `allow_pickle`), code of its own (unless `trust_remote_code`), an architecture
    that transformers does not know, broken or missing shards, missing tensors.
    """
    folder = find_folder(source, allow_pickle)
    config = read_config(folder, trust_remote_code)
    tensors, pickled = scan_folder(folder, allow_pickle)
    return Source(folder, config, tensors, pickled, str(folder) if trust_remote_code else None)


class Source:
    """A model on disk.

    folder: where it is. config: its transformers config. anatomy: what it is made of. dtype: the commonest float type of its weights.
    tensors: disk key -> where the tensor lies. remote_code: the folder whose own code is trusted, or None.
    """

    def __init__(
        self, folder: Path, config: Any, tensors: dict[str, TensorInfo], pickled: Mapping[str, Tensor], remote_code: str | None
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self._pickled = pickled
        self._stamps = {file: _stamp(file) for file in {info.file for info in tensors.values()}}
        self.remote_code = remote_code
        self._skeletons: dict[torch.dtype, Any] = {}
        self.dtype = _common_dtype(tensors)
        model = self._skeleton(torch.float32)
        self.names: NameMap = map_names(tensors, model)
        _check_complete(folder, model, self.names, tensors)
        self.anatomy: Anatomy = describe_model(model, self.names)

    @property
    def revision(self) -> str | None:
        """The commit of a model that came from the hub, by the cache's layout `.../snapshots/<commit>`; None for other folders."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @property
    def original(self) -> Source:
        """The model as it lies on disk: this one, unless it is one that changes what it reads."""
        return self

    @cached_property
    def raw(self) -> dict[str, Any]:
        """What its config.json says; of a model that does not exist yet, what it will say."""
        return json.loads((self.folder / "config.json").read_text())

    @property
    def config_changes(self) -> dict[str, object]:
        """What stands in the config of a result otherwise than in the folder's."""
        return {}

    @property
    def lies_in_files(self) -> bool:
        """Whether the bytes of every tensor lie in files one after the other, as they are read."""
        return not self.pickled

    @property
    def pickled(self) -> bool:
        """Whether the weights came out of pickles, so that their bytes do not lie in files one after the other."""
        return bool(self._pickled)

    def check_unchanged(self) -> None:
        """Raise RunError when a weight file is not the one that was opened."""
        for file, stamp in self._stamps.items():
            if _stamp(file) != stamp:
                raise RunError(
                    f"{file} changed while it was being read; put the original back, remove --out and run the same command again"
                )

    @cached_property
    def linear_modules(self) -> tuple[str, ...]:
        """Paths of every linear layer that transformers builds, of whatever kind, the head included."""
        return tuple(path for path, module in self._skeleton(torch.float32).named_modules() if isinstance(module, nn.Linear))

    @cached_property
    def plain_linears(self) -> frozenset[str]:
        """Paths of those that are plain linear layers and nothing more: in their place it reads packed ones."""
        return frozenset(path for path, module in self._skeleton(torch.float32).named_modules() if type(module) is nn.Linear)

    @cached_property
    def fills_linears(self) -> bool:
        """Whether transformers, while it loads the model, reaches for weights inside its plain linear layers: see `skeleton`."""
        return fills_linears(build_skeleton(self.config, torch.float32, self.remote_code), self.plain_linears)

    def read(self, key: str) -> Tensor:
        """One tensor by its disk key, on the CPU, in the type it has on disk."""
        if key in self._pickled:
            return self._pickled[key]
        return read_tensor(key, self.tensors[key])

    def read_part(self, key: str, part: Part) -> Tensor:
        """The rows of one expert out of a tensor [experts, rows, width] that holds all."""
        info = self.tensors[key]
        if key in self._pickled:
            return self._pickled[key][part.expert, part.start : part.stop].clone()
        _, rows, width = info.shape
        row = width * info.dtype.itemsize
        count = part.stop - part.start
        start = info.start + (part.expert * rows + part.start) * row
        return read_tensor(key, TensorInfo(info.file, info.dtype, (count, width), start, count * row))

    def disk_name(self, memory_name: str) -> str | None:
        """The disk key of a parameter or buffer of the model; None when it does not lie on disk as one tensor of its own."""
        return self.names.disk_name(memory_name)

    @cached_property
    def _block_keys(self) -> dict[str, tuple[str, ...]]:
        paths = {block.path for block in self.anatomy.blocks}
        depths = {path.count(".") + 1 for path in paths}
        found: dict[str, dict[str, None]] = {path: {} for path in paths}
        for name in (*self.names.direct, *self.names.pieces):
            parts = name.split(".")
            owner = next((path for depth in depths if (path := ".".join(parts[:depth])) in paths), None)
            if owner is not None:
                found[owner].update(dict.fromkeys(self.names.keys(name)))
        return {path: tuple(keys) for path, keys in found.items()}

    def block_keys(self, block: Block) -> tuple[str, ...]:
        """The disk keys of everything in a block."""
        return self._block_keys[block.path]

    def shell_keys(self) -> tuple[str, ...]:
        """The disk keys that belong to no block, those that the model does not use included."""
        inside = {key for keys in self._block_keys.values() for key in keys}
        return tuple(key for key in self.tensors if key not in inside)

    def block_bytes(self, block: Block) -> int:
        """Bytes of a block on disk."""
        return sum(self.tensors[key].bytes for key in self.block_keys(block))

    def shell_bytes(self) -> int:
        """Bytes on disk of everything outside the blocks."""
        return sum(self.tensors[key].bytes for key in self.shell_keys())

    def block_parameters(self, block: Block) -> int:
        """Values in a block."""
        return sum(self.tensors[key].numel for key in self.block_keys(block))

    def shell_parameters(self) -> int:
        """Values outside the blocks."""
        return sum(self.tensors[key].numel for key in self.shell_keys())

    @property
    def vocabulary(self) -> int:
        """How many tokens the head tells apart; 0 for a model without one."""
        return int(getattr(self.config.get_text_config(), "vocab_size", 0) or 0) if self.anatomy.head or self.anatomy.tied else 0

    def digest(self) -> dict[str, str]:
        """sha256 of every tensor's bytes, type and shape, by disk key; one pass over all tensors.

        Raises InputError for a tensor that holds NaN or Inf, and for a file that ends early.
        """
        digests: dict[str, str] = {}
        total = sum(info.bytes for info in self.tensors.values())
        with events.task("hashing", total, "bytes") as advance, ThreadPoolExecutor(min(HASHERS, torch.get_num_threads())) as pool:
            done = 0
            for key, found in zip(self.tensors, pool.map(self._digest_of, self.tensors), strict=True):
                digests[key] = found
                done += self.tensors[key].bytes
                advance(done, key)
        return digests

    def _digest_of(self, key: str) -> str:
        tensor = self.read(key)
        _check_finite(key, self.tensors[key], tensor)
        hasher = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        hasher.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
        return hasher.hexdigest()

    def side_files(self) -> list[Path]:
        """Everything in the folder that is neither weights nor config.json: tokenizer, templates, processors, license, model card.

        Of sub-folders only those that transformers reads with a tokenizer.
        """
        folders = [self.folder, *(self.folder / name for name in _SIDE_FOLDERS if (self.folder / name).is_dir())]
        return sorted(
            path
            for folder in folders
            for path in folder.iterdir()
            if path.is_file() and path.name != "config.json" and not path.name.startswith(".") and not path.name.endswith(_NOT_COPIED)
        )

    @property
    def library(self) -> Library:
        """Whose class the model is."""
        return self.anatomy.library

    @property
    def stem(self) -> str:
        """What its library calls files of weights."""
        return STEMS[self.library]

    def _outside(self, model: nn.Module) -> list[str]:
        """Names of what is outside the blocks, or used there, too."""
        blocks = tuple(block.path + "." for block in self.anatomy.blocks)
        shared = tuple(path + "." for path in self.anatomy.shared)
        return [name for name in _names(model) if not name.startswith(blocks) or name.startswith(shared)]

    def shell(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Shell:
        """The model without its blocks, its weights read from disk in `dtype`."""
        model = build_skeleton(self.config, dtype, self.remote_code)
        self._materialise(model, {name: name for name in self._outside(model)}, dtype, device, {})
        return Shell(model, self.anatomy, lambda block: self.block(block, dtype, device), device)

    def hollow_shell(self) -> Shell:
        """The model without its blocks and without its weights: memory that nothing was written to stands in their place.

        What blocks are called with (masks, positions) does not depend on weights.
        """
        model = build_skeleton(self.config, torch.float32, self.remote_code)
        for name in self._outside(model):
            if model.get_parameter_or_buffer(name).is_meta:
                value = model.get_parameter_or_buffer(name)
                _place(model, name, torch.empty(value.shape, dtype=value.dtype), torch.float32, "cpu")
        return Shell(model, self.anatomy, lambda block: self.hollow_block(block, torch.float32), "cpu")

    def hollow_block(self, block: Block, dtype: torch.dtype) -> nn.Module:
        """One block on the meta device."""
        return hollow_block(self._skeleton(dtype).get_submodule(block.path)).to("meta")

    def random_block(self, block: Block, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
        """One block with small random weights, to see how long it takes."""
        module = hollow_block(self._skeleton(dtype).get_submodule(block.path))
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_meta:
                _place(module, name, torch.randn(value.shape) / max(1, value.shape[-1]) ** 0.5, dtype, device)
        return module.to(device)

    def fill(
        self, model: nn.Module, dtype: torch.dtype, device: torch.device | str = "cpu", *, within: str = "", leave: tuple[str, ...] = ()
    ) -> None:
        """Give a hollow model (see `skeleton.build_skeleton`) its weights, in `dtype`.

        Only those whose names begin with `within`, and with nothing of `leave`.
        """
        names = [name for name in _names(model) if name.startswith(within) and not name.startswith(leave)]
        self._materialise(model, {name: name for name in names}, dtype, device, {})

    def block(
        self, block: Block, dtype: torch.dtype, device: torch.device | str = "cpu", replace: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """One block with its weights in `dtype`; `replace` gives other values for disk keys, in the layout they have on disk."""
        skeleton = self._skeleton(dtype)
        module = hollow_block(skeleton.get_submodule(block.path))
        experts = self._expert_weights(module, block, dtype, device, replace or {})
        names = {name: f"{block.path}.{name}" for name in _names(module) if name not in experts}
        self._materialise(module, names, dtype, device, replace or {})
        hollow = next((name for name, parameter in module.named_parameters() if parameter.is_meta), None)
        if hollow is not None:
            raise InputError(
                f"{self.folder}: {block.path}.{hollow} is not found on disk as {self.anatomy.architecture} names it; not supported yet"
            )
        return module

    def _expert_weights(
        self, module: nn.Module, block: Block, dtype: torch.dtype, device: torch.device | str, replace: Mapping[str, Tensor]
    ) -> set[str]:
        """Fill the plain linears of a block's experts; returns their names inside the block."""
        done = set()
        whole: dict[str, Tensor] = {}
        for linear in block.linears:
            if linear.expert is None:
                continue
            if linear.part is None:
                values = self._values(linear.source, replace)
            else:
                # One fused parameter holds every expert: read it once.
                if linear.source not in whole:
                    whole = {linear.source: self._values(linear.source, replace)}
                values = whole[linear.source][linear.part.expert, linear.part.start : linear.part.stop]
            name = linear.path.removeprefix(block.path + ".") + ".weight"
            _place(module, name, values, dtype, device)
            done.add(name)
        return done

    def _materialise(
        self, module: nn.Module, names: Mapping[str, str], dtype: torch.dtype, device: torch.device | str, replace: Mapping[str, Tensor]
    ) -> None:
        """Fill the parameters and buffers of `module`; names: name inside it -> name in the model."""
        placed: dict[str, nn.Parameter] = {}
        for inside, name in names.items():
            keys = self.names.keys(name)
            shared = keys[0] if len(keys) == 1 else name
            if shared in placed:
                _attach(module, inside, placed[shared])
            elif keys:
                values = self.names.assemble(name, lambda key: self._values(key, replace), self._skeleton(dtype))
                made = _place(module, inside, values, dtype, device)
                if isinstance(made, nn.Parameter):
                    placed[shared] = made
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                if buffer.device.type != "meta":
                    owner._buffers[name] = buffer.to(device)

    def _values(self, key: str, replace: Mapping[str, Tensor]) -> Tensor:
        return replace[key] if key in replace else self.read(key)

    def _skeleton(self, dtype: torch.dtype) -> Any:
        if dtype not in self._skeletons:
            self._skeletons[dtype] = build_skeleton(self.config, dtype, self.remote_code)
        return self._skeletons[dtype]


def _stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None for a file that is gone."""
    return (found.st_size, found.st_mtime_ns) if file.exists() and (found := file.stat()) else None


def _names(module: nn.Module) -> list[str]:
    """Parameters and persistent buffers, shared ones under each of their names."""
    return list(module.state_dict(keep_vars=True))


def _place(module: nn.Module, name: str, values: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    values = values.to(device, dtype if values.is_floating_point() else values.dtype)
    owner, _, leaf = name.rpartition(".")
    if leaf in module.get_submodule(owner)._buffers:
        module.get_submodule(owner)._buffers[leaf] = values
        return values
    parameter = nn.Parameter(values, requires_grad=False)
    _attach(module, name, parameter)
    return parameter


def _attach(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner)._parameters[leaf] = parameter


def _common_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for info in tensors.values():
        if info.dtype.is_floating_point:
            counts[info.dtype] += info.numel
    return counts.most_common(1)[0][0] if counts else torch.float32


def _check_complete(folder: Path, model: Any, names: NameMap, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a checkpoint that lacks a tensor, or holds one of another shape than the config says."""
    absent = []
    for name, value in model.state_dict().items():
        key = names.disk_name(name)
        if key is not None:
            if tensors[key].shape != tuple(value.shape):
                raise InputError(
                    f"{folder}: tensor {key} has shape {list(tensors[key].shape)}, but config.json asks for {list(value.shape)}; "
                    "the weights and the config belong to different models."
                )
            if value.is_floating_point() and not tensors[key].dtype.is_floating_point:
                raise InputError(f"{folder}: tensor {key} holds whole numbers ({tensors[key].dtype}); give the original model's weights.")
        elif not names.complete(name, value.shape[0] if value.ndim else 1) and value.is_meta:
            absent.append(name)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(f"{folder}: the weights lack {absent[0]}{more}, which {type(model).__name__} needs; download the folder again.")


def _check_finite(key: str, info: TensorInfo, tensor: Tensor) -> None:
    if not all(map(all_finite, tensor.reshape(-1).split(_CHUNK))):
        raise InputError(f"{info.file}: tensor {key} holds NaN or infinite values; take weights without them.")
