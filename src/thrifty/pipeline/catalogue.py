"""Every method there is: the modules of the family packages are imported, and outside packages join by an entry point.

A package outside thrifty adds its methods by naming a module under the entry-point group `thrifty.methods`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

import thrifty
from thrifty.base.method import Method, methods

FAMILIES = ("weights", "structure", "attention", "cache", "tokens", "decode", "tune", "inspect", "measure")


@cache
def load_methods() -> dict[str, type[Method]]:
    """Import every method module; an import error is the caller's to see. Returns the methods by name."""
    present = {module.name for module in pkgutil.iter_modules(thrifty.__path__)}
    for family in FAMILIES:
        if family in present:
            package = importlib.import_module(f"thrifty.{family}")
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                importlib.import_module(module.name)
    for entry in entry_points(group="thrifty.methods"):
        entry.load()
    return methods()
