"""Networks whose layers differ in width as model types of transformers: `import thrifty`, then `from_pretrained`, trusting no remote code.

The classes are those of the file that lies beside such weights (`thrifty.export.uneven.modeling_uneven`), as it is in this package: the
file in the folder is not run. A config makes its model classes known once one is read. This module is imported while transformers is, so it
may only import what is there by then.
"""

from __future__ import annotations

from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from thrifty.export.uneven import modeling_uneven
from thrifty.export.uneven.known import ARCHITECTURES

for _kind in ARCHITECTURES:
    if _kind in CONFIG_MAPPING_NAMES:
        _config_class = getattr(modeling_uneven, modeling_uneven.PREFIX + CONFIG_MAPPING_NAMES[_kind])
        CONFIG_MAPPING.register(_config_class.model_type, _config_class, exist_ok=True)
