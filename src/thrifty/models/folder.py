"""Which folder a model lies in, and whether it is one that can be worked on. Everything is refused here, before any work starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from thrifty.base.anatomy import STEMS
from thrifty.base.errors import InputError
from thrifty.base.store import as_path
from thrifty.models.diffusion import CLASS, read_diffusion
from thrifty.models.disk import TensorInfo, scan

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*", "*.tiktoken", "*.py"]
_PICKLES = ["*pytorch_model*.bin", "*.pt", "*.pth"]


def find_folder(source: str | Path, allow_pickle: bool = False) -> Path:
    """The local folder of a model; an id of the hub is downloaded into the hub's cache, pickled weights only where they are allowed and
    there are no others.

    Raises InputError when there is neither such a folder nor such a model within reach.
    """
    if not str(source).strip():
        raise InputError("the model is named by nothing; give a model folder, or leave it out for the model inside the package.")
    path = as_path(source)
    try:
        folder, present = path.is_dir(), path.exists()
    except OSError as error:  # a name too long
        raise InputError(f"there is no folder {source} ({error.strerror}); give a model folder.") from None
    if folder:
        return path
    if present:
        raise InputError(f"{path} is a file; give the folder that holds config.json and the weights.")
    text = str(source)
    looks_local = isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    if looks_local:
        raise InputError(f"there is no folder {text}; give a model folder, or a hub id such as owner/name.")
    return _download(text, allow_pickle)


def _download(name: str, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_PATTERNS))
        if allow_pickle and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_PATTERNS, *_PICKLES]))
        return folder
    except (HFValidationError, RepositoryNotFoundError):
        raise InputError(f"there is no folder {name}, and no model of that name on the Hugging Face hub that you may read.") from None
    except (LocalEntryNotFoundError, OSError):
        raise InputError(f"there is no folder {name}, and the Hugging Face hub cannot be reached; check the name or go online.") from None


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The config of a folder that holds an ordinary model of transformers, or a transformer of diffusers.

    Raises InputError for an adapter, a quantized model, code of its own that is not trusted, or an unknown architecture.
    """
    file = folder / "config.json"
    _check_readable(folder, file)
    if (folder / "adapter_config.json").exists() and not file.exists():
        raise InputError(
            f"{folder} holds an adapter, not a model; merge it into its base model (peft's merge_and_unload) and give that folder."
        )
    if (folder / "model_index.json").exists() and not file.exists():
        raise InputError(f"{folder} holds a pipeline of diffusers; give the folder of its transformer ({folder / 'transformer'}).")
    if not file.exists():
        raise InputError(f"{folder} is not a model folder: it has no config.json.")
    try:
        raw = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid JSON ({error}); download it again.") from None
    if isinstance(raw, dict) and isinstance(raw.get(CLASS), str) and "model_type" not in raw:
        _refuse_quantized(folder, raw)
        return read_diffusion(file, raw)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise InputError(f"{file} names no model_type; it is not the config of a transformers model.")
    _refuse_quantized(folder, raw)
    _check_generation(folder / "generation_config.json")
    if raw.get("auto_map") and not trust_remote_code and not _registered(raw["model_type"]):
        raise InputError(f"{folder} brings its own Python code (auto_map in config.json); read it, then allow it with --trust-remote-code.")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (ValueError, KeyError) as error:
        if raw["model_type"] in str(error) and "auto_map" not in raw:
            known = f"transformers does not know the architecture {raw['model_type']!r}"
            raise InputError(f"{file}: {known}; update transformers, or check model_type.") from None
        raise InputError(f"{file}: {str(error).splitlines()[0]}") from None
    except Exception as error:
        # Config classes check their fields with errors of their own; whatever they say, it is the file that is wrong.
        raise InputError(f"{file} is not a valid {raw['model_type']} config: {' '.join(str(error).split())}; download it again.") from None


def _check_readable(folder: Path, file: Path) -> None:
    """Raise InputError where the system lets nobody look into the folder, or read its config."""
    try:
        any(folder.iterdir())
        if file.exists():
            file.open("rb").close()
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from None


def _registered(model_type: str) -> bool:
    """Whether this process has code for a model type that is not part of transformers: that runs, and what the folder brings does not."""
    return model_type in CONFIG_MAPPING and not CONFIG_MAPPING[model_type].__module__.startswith("transformers.")


def _check_generation(file: Path) -> None:
    try:
        fine = not file.exists() or isinstance(json.loads(file.read_text()), dict)
    except (OSError, ValueError):
        fine = False
    if not fine:
        raise InputError(f"{file} is not valid JSON; download it again, or remove it.")


def _refuse_quantized(folder: Path, raw: Mapping[str, Any]) -> None:
    inner = raw.get("text_config") or {}
    if not isinstance(inner, dict):
        raise InputError(f"{folder / 'config.json'}: text_config must be a mapping, got {inner!r}; download it again.")
    found = raw.get("quantization_config") or raw.get("compression_config") or inner.get("quantization_config")
    if found:
        method = found.get("quant_method", "an unnamed method") if isinstance(found, dict) else "an unnamed method"
        raise InputError(f"{folder} is already quantized ({method}); give the original model it was made from.")


def scan_folder(folder: Path, allow_pickle: bool) -> tuple[dict[str, TensorInfo], Mapping[str, Tensor]]:
    """Every tensor of a folder by disk key, and the values of those that had to be unpickled.

    Raises InputError for missing or broken files, for pickled weights that are not allowed, and for a folder without weights.
    """
    for stem in STEMS.values():
        index, weights = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if index.exists():
            return _scan_shards(folder, index), {}
        if weights.exists():
            return scan(weights), {}
    loose = sorted(folder.glob("*.safetensors"))
    if len(loose) == 1 and loose[0].name != "adapter_model.safetensors":
        return scan(loose[0]), {}
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles and allow_pickle:
        return _unpickle(pickles)
    if pickles:
        raise InputError(
            f"{folder} holds its weights as a pickle ({pickles[0].name}), which can run code when opened; "
            "convert it to safetensors, or allow it with --allow-pickle."
        )
    way_out = "" if allow_pickle else " Pickled weights of a hub id are fetched with --allow-pickle only."
    raise InputError(f"{folder} holds no weights: neither {_WEIGHTS} nor {_INDEX} is there.{way_out}")


def _scan_shards(folder: Path, file: Path) -> dict[str, TensorInfo]:
    """file: the index."""
    try:
        index = json.loads(file.read_text())["weight_map"]
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is not a valid index of shards; download it again.") from None
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(index.values())):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: the shard {name} is missing; download it.")
        tensors.update(scan(folder / name))
    for key, name in index.items():
        if key not in tensors:
            raise InputError(f"{folder}: tensor {key} is not in {name}, where the index says it is; download the shard again.")
    return {key: tensors[key] for key in index}


def _unpickle(files: list[Path]) -> tuple[dict[str, TensorInfo], dict[str, Tensor]]:
    values: dict[str, Tensor] = {}
    for file in files:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # what torch says of it are several lines with advice for programs
            raise InputError(f"{file} is broken, or holds more than tensors, which is not read; convert it to safetensors.") from None
        values.update({key: value for key, value in loaded.items() if isinstance(value, Tensor)})
    return {key: TensorInfo(files[0], value.dtype, tuple(value.shape), 0, value.nbytes) for key, value in values.items()}, values
