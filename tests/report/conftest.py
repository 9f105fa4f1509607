"""Here drawings are drawn."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With matplotlib's own canvas again."""
    monkeypatch.setattr("thrifty.report.plots.FigureCanvasSVG", FigureCanvasSVG)
