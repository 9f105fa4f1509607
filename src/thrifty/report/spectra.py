"""The exponents of a model's matrices as a picture in a file of its own: PNG or SVG, by the name's ending."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thrifty.base.errors import InputError
from thrifty.base.store import write_bytes
from thrifty.inspect.spectra import Spectrum, by_block

FORMATS = (".png", ".svg")
PANELS = (("alpha", "whole matrices"), ("farms_alpha", "windows of one shape (FARMS)"))
MARKERS = "osD^vPX*"


def check_picture(path: Path) -> None:
    """Raise InputError where no picture can be written: known before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--out {path}: pictures end in {' or '.join(FORMATS)}")
    if path.exists():
        raise InputError(f"{path} exists; choose another --out")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.absolute().parent} is not a folder; choose another --out")


def write_spectra(spectra: Sequence[Spectrum], title: str, path: Path) -> None:
    """Draw alpha over the blocks, a line a role, beside each other for whole matrices and for windows; the mean of each block in black."""
    with matplotlib.rc_context({"svg.hashsalt": "thrifty", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(10.0, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, words) in zip(panels, PANELS, strict=True):
            for number, role in enumerate(dict.fromkeys(one.role for one in spectra)):
                points = [(one.block, getattr(one, name)) for one in spectra if one.role == role and math.isfinite(getattr(one, name))]
                axes.plot(*zip(*points, strict=True), marker=MARKERS[number % len(MARKERS)], ms=4, lw=1, label=role) if points else None
            means = by_block(spectra)
            axes.plot([mean.block for mean in means], [getattr(mean, name) for mean in means], color="black", lw=2, label="mean")
            axes.set_title(words, fontsize=9, loc="left")
            axes.set_xlabel("block")
            axes.grid(True, lw=0.4)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("alpha")
        panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        figure.suptitle(title, fontsize=10)
        buffer = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write_bytes(path, buffer.getvalue())
