"""Tiny model folders."""

from tests.folders import folder_of, source_of

__all__ = ["folder_of", "source_of"]
