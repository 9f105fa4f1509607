"""Open a model, describe it once, and hand out its parts: a block at a time, and the shell around the blocks."""

from thrifty.models.blocks import Call, change_inputs, get_weight, linear_modules, norm_modules, run_block, run_with_weights, set_weight
from thrifty.models.rotated import Rotated
from thrifty.models.shell import Shell
from thrifty.models.source import Source, open_model

__all__ = [
    "Call",
    "Rotated",
    "Shell",
    "Source",
    "change_inputs",
    "get_weight",
    "linear_modules",
    "norm_modules",
    "open_model",
    "run_block",
    "run_with_weights",
    "set_weight",
]
