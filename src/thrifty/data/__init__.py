"""Text and images for calibration and evaluation: files, data sets and the texts inside the package become rows of tensors."""

from __future__ import annotations

from thrifty.data.completions import parses
from thrifty.data.embedded import default_model, embedded_text
from thrifty.data.load import load_rows
from thrifty.data.rows import Rows

__all__ = ["Rows", "default_model", "embedded_text", "load_rows", "parses"]
