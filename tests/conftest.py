"""What every test runs under: no network, few threads, the same examples on every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TextIO

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # the models are tiny: a second thread only waits for the first, for long where the machine has other work
}.items():
    os.environ.setdefault(_name, _value)
os.environ.pop("THRIFTY_DEBUG", None)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


class BlankCanvas:
    """Writes a picture with nothing in it."""

    def __init__(self, figure: Any) -> None:
        pass

    def print_svg(self, file: TextIO, **options: Any) -> None:
        """An empty drawing of the size of a page's width."""
        file.write('<svg viewBox="0 0 600 200"></svg>')


@pytest.fixture(autouse=True, scope="session")
def quick() -> Iterator[None]:
    """Most runs of a tiny model would spend their time on drawings, which tests/report has drawn, and on its speed, which is nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thrifty.report.plots.FigureCanvasSVG", BlankCanvas)
        patch.setattr("thrifty.pipeline.speed.ROUNDS", 1)
        yield
