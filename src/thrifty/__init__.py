"""Make neural networks cheaper to run: a Hugging Face model in, a smaller one out, with proof of what was lost.

    thrifty.compress("model", recipe="gptq: {bits: 4}", out="small")
    model = thrifty.load("small")
    thrifty.evaluate("small", against="model")

Names are loaded when they are used: `import thrifty` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from thrifty.base.after_import import after_import
from thrifty.base.memory import keep_few_products

keep_few_products()
after_import("transformers.quantizers.auto", "thrifty.runtime.quantizer")
after_import("transformers.models.auto.configuration_auto", "thrifty.runtime.uneven")

_PLACES = {
    "compress": "thrifty.api",
    "evaluate": "thrifty.api",
    "plan": "thrifty.api",
    "describe": "thrifty.api",
    "load": "thrifty.runtime.load",
    "kv_cache": "thrifty.api",
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # half of the time of `import thrifty`

        try:
            return version("thrifty")
        except PackageNotFoundError:
            return "0+unknown"
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'thrifty' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
