"""Results in our container as transformers loads them: `import thrifty`, then `from_pretrained`.

transformers reads the tensors that are plain. Those that are codes are put in place when it is done, decoded, and joined from what lies on
disk as its own tables say. The model is then an ordinary one, and is saved as such, unless its matrices round their inputs: then they read
them as the file says, and the model is not saved. This module is imported when transformers' quantizers are (`thrifty.base.after_import`),
so nothing else of thrifty stands at its top.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "thrifty"


@register_quantization_config(METHOD)
class ThriftyConfig(QuantizationConfigMixin):
    """`quantization_config` as it stands in config.json. dequantize: what transformers calls it when a plain model comes out."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.quant_method = METHOD  # type: ignore[assignment]
        self.dequantize = True

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)


@register_quantizer(METHOD)
class ThriftyQuantizer(HfQuantizer):
    """Keeps transformers from reading codes as weights, and gives every parameter that is held as codes its values afterwards."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any) -> None:
        from thrifty.base.errors import InputError
        from thrifty.models.disk import scan
        from thrifty.models.names import map_names
        from thrifty.runtime.container import open_container

        files = [Path(file) for file in checkpoint_files or ()]
        if not files or any(file.suffix != ".safetensors" for file in files):
            raise InputError("a result in the container of thrifty is loaded from the safetensors files of its folder")
        tensors = {key: info for file in files for key, info in scan(file).items()}
        self.container = open_container(files[0].parent, self.quantization_config.settings, tensors)  # type: ignore[attr-defined]
        self.names = map_names([*self.container.plain, *self.container.shapes], model)
        # A table that joins codes is not left to transformers at all, and neither is whatever else it joins.
        joined = [name for name, pieces in self.names.pieces.items() if any(piece.key in self.container.shapes for piece in pieces)]
        self.tables = {tuple(self.names.converters[name].source_patterns) for name in joined}
        joined = [name for name, table in self.names.converters.items() if tuple(table.source_patterns) in self.tables]
        direct = [name for name, key in self.names.direct.items() if key in self.container.shapes]
        self.types = {name: model.get_parameter(name).dtype for name in (*direct, *joined)}
        strange = next((key for key in self.container.readings if key not in set(self.names.direct.values())), None)
        if strange is not None:
            raise InputError(f"{self.container.place}: {strange} does something to its inputs and is no layer of its own in transformers")
        # These have no part that is called as they are, by which transformers would know that something is there for them.
        later = [*joined, *(name for name in direct if self.names.direct[name] in self.container.stacked)]
        for name in later:
            model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True  # type: ignore[assignment]
        self._pass_over(model, later)

    def _pass_over(self, model: nn.Module, later: list[str]) -> None:
        """Let transformers not wonder about parts of matrices, nor about parameters that are filled later."""
        from thrifty.export.container import layouts

        parts = sorted({part for layout in layouts().values() for part in layout.part_names})
        sources = [re.escape(pattern).replace(r"\*", r"\d+") for table in sorted(self.tables) for pattern in table]
        stacked = [rf"{re.escape(key)}\.\d+\.\d+$" for key in self.container.stacked]
        for attribute, patterns in (
            ("_keys_to_ignore_on_load_unexpected", [rf"\.({'|'.join(parts)})$", *sources, *stacked]),
            ("_keys_to_ignore_on_load_missing", [f"^{re.escape(name)}$" for name in later]),
        ):
            setattr(model, attribute, {*(getattr(model, attribute, None) or ()), *patterns})

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        return param_name in self.types  # its codes come in another shape

    def update_weight_conversions(self, weight_conversions: list[Any], *_: Any) -> list[Any]:
        return [
            item for item in weight_conversions if not (isinstance(item, WeightConverter) and tuple(item.source_patterns) in self.tables)
        ]

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        from thrifty.models.blocks import change_inputs

        for name, dtype in self.types.items():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            place = getattr(module, leaf)
            values = self.names.assemble(name, self._read, model).to(place.device, dtype)
            setattr(module, leaf, nn.Parameter(values, requires_grad=values.is_floating_point()))
            reading = self.container.readings.get(self.names.direct.get(name, ""))
            if self.container.rounds and reading is not None:
                change_inputs(module, reading)
        if self.container.rounds:
            model.register_state_dict_pre_hook(_refuse_state)
        if self.tables:
            model._weight_conversions = None  # saving takes the tables of the architecture, not only those that were used here
        return model

    def _read(self, key: str) -> Tensor:
        if key not in self.container.shapes:
            return self.container.plain[key].read()
        if self.container.rounds and key in self.container.readings:  # the matrix of turned inputs
            return self.container.encoded(key).decode()
        return self.container.read(key)

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype or torch.float32

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _refuse_state(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    from thrifty.base.errors import RunError

    raise RunError(
        "a model whose inputs are rounded while it runs is not saved from memory, where nothing says so; copy the folder it was loaded "
        "from, or write a plain one with `thrifty export --to dense`"
    )
