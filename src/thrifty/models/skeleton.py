"""A model without weights: every parameter on the meta device, every computed buffer real.

Rotary frequencies, position ids and embedding scales are computed by the constructors and are not on disk, so they are kept real; what
the constructors would only allocate or draw at random is never allocated.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from thrifty.base.errors import InputError
from thrifty.models.diffusion import DiffusionConfig, build_diffusion, diffusion_class

_ALLOCATORS = (torch.empty, torch.randn, torch.rand)


class _Hollow(TorchFunctionMode):
    """Sends what a constructor allocates for a parameter to the meta device and lets it compute everything else."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _ALLOCATORS:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def build_skeleton(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, remote_code: str | None = None) -> PreTrainedModel:
    """The model that `config` describes, in evaluation mode, without weights and without a key-value cache.

    remote_code: folder whose own modeling file is trusted, or None.
    Raises InputError when no class of transformers is meant, or the class cannot be built from the config.
    """
    config = copy.deepcopy(config)
    _switch_off_cache(config)
    meant = model_class(config, remote_code)
    try:
        with _default_dtype(dtype), _Hollow(), no_init_weights():
            model = build_diffusion(config) if isinstance(config, DiffusionConfig) else meant(config)
    except Exception as error:  # the constructors check nothing, so whatever they stumble over is the config's
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{config._name_or_path}: config.json describes no {meant.__name__} that can be built ({said}).") from error
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type != "meta":
                hollow = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
                module.register_parameter(name, hollow)
    model.requires_grad_(False)
    # Parameters that a constructor filled with values were replaced above, which undoes the sharing of tied ones.
    model.tie_weights()
    return model.eval()


def fills_linears(model: PreTrainedModel, paths: Collection[str]) -> bool:
    """Whether the model's class gives values to weights inside the linear layers at `paths` whenever it is loaded.

    Some classes start weights from the module around them (SigLIP's attention those of its projections), which is called even where the
    values come from a file, and fails once such a layer holds codes and no weight. model: a skeleton of its own, of no use afterwards.
    """
    for path in paths:
        del model.get_submodule(path)._parameters["weight"]
    return any(_fails_to_fill(owner, module) for owner, module in _fillers(model, model).values())


def _fillers(module: nn.Module, owner: PreTrainedModel) -> dict[tuple[type, type], tuple[PreTrainedModel, nn.Module]]:
    """One module of each class, with the model nearest above it: that one gives it its first values."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    found = {(type(owner), type(module)): (owner, module)}
    for child in module.children():
        found |= _fillers(child, owner)
    return found


def _fails_to_fill(owner: PreTrainedModel, module: nn.Module) -> bool:
    try:
        with torch.no_grad():
            owner._init_weights(module)
    except AttributeError:
        return True
    except (RuntimeError, NotImplementedError):  # it computes with values, of which there are none here
        return False
    return False


def model_class(config: PreTrainedConfig, remote_code: str | None) -> Any:
    """The class that `config` means; InputError where there is none.

    It is one of diffusers for a config of its, else one that stands beside the class of `config`, or one of the trusted folder
    `remote_code`, or one of transformers.
    """
    if isinstance(config, DiffusionConfig):
        return diffusion_class(config)
    names = config.architectures or []
    for name in names:
        beside = getattr(sys.modules[type(config).__module__], name, None)
        if isinstance(beside, type) and issubclass(beside, PreTrainedModel):
            return beside
        reference = next((value for value in (getattr(config, "auto_map", None) or {}).values() if _class_name(value) == name), None)
        if remote_code is not None and reference is not None:
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            return get_class_from_dynamic_module(reference, remote_code)
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    for auto in (AutoModelForCausalLM, AutoModel):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise InputError(f"transformers has no model class for the architecture {', '.join(names) or config.model_type}; update transformers.")


def _class_name(reference: Any) -> str:
    text = reference if isinstance(reference, str) else next(item for item in reference if item)
    return text.rsplit(".", 1)[-1]


def _switch_off_cache(config: PreTrainedConfig) -> None:
    for part in _parts(config).values():
        if hasattr(part, "use_cache"):
            part.use_cache = False


def restore_cache(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Let a model built from `config` keep keys and values again where `config` says so: for generating text."""
    for name, part in _parts(config).items():
        if hasattr(part, "use_cache"):
            _parts(model.config)[name].use_cache = part.use_cache


def _parts(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The config itself and those inside it."""
    return {"": config, **{name: value for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}}


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
