"""Fixtures of folders: tiny models, written once for all tests of a folder whose conftest imports these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import tiny
from thrifty.models import Source, open_model


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny model of that name; not to be written to."""
    root = tmp_path_factory.mktemp("tiny")

    def get(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else tiny(name, folder)

    return get


@pytest.fixture(scope="session")
def source_of(folder_of: Callable[[str], Path]) -> Callable[[str], Source]:
    """The tiny model of that name, opened."""
    opened: dict[str, Source] = {}

    def get(name: str) -> Source:
        if name not in opened:
            opened[name] = open_model(folder_of(name))
        return opened[name]

    return get
