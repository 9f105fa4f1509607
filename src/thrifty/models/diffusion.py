"""Transformers of diffusers as models: their config, their class, and what the rest of the package asks of either.

A folder of diffusers names its class in config.json and calls its weights `diffusion_pytorch_model`. The class is taken as it is; a few
names that models of transformers have are added to it. The library is imported when such a folder is opened, and need not be there before.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.models.template import families

CLASS = "_class_name"

_RENAMED = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}
"""What diffusers calls classes today, by the name and the norms that older folders have."""


class DiffusionConfig(dict[str, Any]):
    """The settings of a transformer of diffusers, as items and as attributes, with the names that transformers has for some."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self:
            raise AttributeError(name)
        return self[name]

    @property
    def model_type(self) -> str:
        """The name of its class."""
        name = str(self.get(CLASS))
        return _RENAMED.get((name, str(self.get("norm_type"))), name)

    @property
    def architectures(self) -> list[str]:
        """The same as a list."""
        return [self.model_type]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return int(self["attention_head_dim"])

    @property
    def hidden_size(self) -> int:
        """Channels of all heads."""
        return int(self["num_attention_heads"]) * self.head_dim

    def get_text_config(self, **_: Any) -> DiffusionConfig:
        """Itself: there is no other."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """The settings alone."""
        return dict(self)


class _Model:
    """What is added to a class of diffusers."""

    base_model_prefix = ""
    main_input_name = "hidden_states"

    @property
    def config(self) -> DiffusionConfig:
        """The settings that it was built with."""
        if "_settings" not in self.__dict__:
            self.__dict__["_settings"] = DiffusionConfig({CLASS: type(self).__name__, **self._internal_dict})  # type: ignore[attr-defined]
        return self.__dict__["_settings"]

    def get_output_embeddings(self) -> None:
        """It has no vocabulary."""

    def tie_weights(self) -> None:
        """Nothing is tied."""

    def can_generate(self) -> bool:
        """It writes no tokens."""
        return False

    def get_parameter_or_buffer(self, name: str) -> Tensor:
        """One of them, by name."""
        owner, _, leaf = name.rpartition(".")
        return getattr(self.get_submodule(owner), leaf)  # type: ignore[attr-defined]


def read_diffusion(file: Path, raw: Mapping[str, Any]) -> DiffusionConfig:
    """The settings in a config.json of diffusers. Raises InputError for a class whose anatomy is not declared, and without diffusers."""
    config = DiffusionConfig(raw, _name_or_path=str(file.parent))
    known = sorted(name for name, family in families().items() if family.kind == "diffusion")
    if config.model_type not in known:
        raise InputError(f"{file} names the class {config.model_type} of diffusers; of those {', '.join(known)} can be worked on.")
    settings = inspect.signature(diffusion_class(config).__init__).parameters.values()
    defaults = {setting.name: setting.default for setting in settings if setting.default is not setting.empty}
    return DiffusionConfig({**defaults, **config})


def diffusion_class(config: DiffusionConfig) -> Any:
    """The class of diffusers that `config` means. Raises InputError where it cannot be imported."""
    try:
        import diffusers
    except ImportError as error:
        name = config.model_type
        raise InputError(f"{name} is a class of diffusers, which cannot be imported ({error}); pip install 'thrifty[diffusion]'.") from None
    found = getattr(diffusers, config.model_type, None)
    if found is None:
        raise InputError(f"diffusers {diffusers.__version__} has no class {config.model_type}; update diffusers.")
    return found


def build_diffusion(config: DiffusionConfig) -> Any:
    """The model that `config` describes."""
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return _described(diffusion_class(config)).from_config(settings)


@cache
def _described(plain: type) -> Any:
    return type(plain.__name__, (_Model, plain), {"__module__": plain.__module__})
