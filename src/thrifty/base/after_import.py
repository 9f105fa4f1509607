"""Something to do once another library is imported, without importing it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, module: str) -> None:
    """Import `module` as soon as the module `name` is there: now, or when somebody imports it."""
    if name in sys.modules:
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _Watch(name, module))


class _Watch(MetaPathFinder):
    """Finds one module as the others would, and imports another after it."""

    def __init__(self, name: str, module: str) -> None:
        self.name, self.module = name, module

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self.module)
        return spec


class _Then(Loader):
    """Loads a module as its own loader does, and another one after it."""

    def __init__(self, loader: Loader, module: str) -> None:
        self.loader, self.module = loader, module

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        importlib.import_module(self.module)
