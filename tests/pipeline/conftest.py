"""Tiny model folders that a run can be made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import add_reader, tiny


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of the tiny model of that name, with what reads its inputs."""
    root = tmp_path_factory.mktemp("tiny")

    def get(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            tiny(name, folder)
            add_reader(name, folder)
        return folder

    return get
