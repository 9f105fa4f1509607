"""Networks whose layers differ in width as model types of transformers: `import thrifty`, then `from_pretrained`, trusting no remote code.

The classes are those of the file that lies beside such weights (`thrifty.export.uneven.modeling_uneven`), as it is in this package: the
file in the folder is not run. A config makes its model classes known once one is read. This module is imported while transformers is, when
the configs of transformers itself cannot be yet: each class stands in for one that is made when it is used.
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from thrifty.export.uneven import modeling_uneven
from thrifty.export.uneven.known import ARCHITECTURES


class _Later(type):
    """The config class of its own name in the modeling file."""

    def __getattr__(cls, name: str) -> Any:
        return getattr(getattr(modeling_uneven, cls.__name__), name)

    def __call__(cls, *arguments: Any, **settings: Any) -> Any:
        return getattr(modeling_uneven, cls.__name__)(*arguments, **settings)


for _kind in ARCHITECTURES.keys() & CONFIG_MAPPING_NAMES.keys():
    _config_class = _Later(modeling_uneven.PREFIX + CONFIG_MAPPING_NAMES[_kind], (), {"__module__": modeling_uneven.__name__})
    CONFIG_MAPPING.register(modeling_uneven.TYPE + _kind, _config_class, exist_ok=True)  # type: ignore[arg-type]
