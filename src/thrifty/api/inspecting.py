"""What explains a model: one function for each command of `thrifty inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.store import as_path
from thrifty.data import default_model
from thrifty.inspect.spectra import by_block, spectrum
from thrifty.models import open_model
from thrifty.pipeline.sharing import pieces
from thrifty.pipeline.view import read_matrix

__all__ = ["spectra"]


def spectra(
    model: str | Path | None = None,
    *,
    rule: Literal["median", "peak", "goodness"] = "peak",
    side: int = 2000,
    positions: int = 15,
    out: str | Path | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """How heavy-tailed each matrix of a model is: {layers [name, role, block, alpha, farms_alpha, stable_rank, effective_rank, ..], blocks
    [block, alpha, farms_alpha], picture}.

    rule: where a tail starts. side, positions: rows of a window at most, and windows along either side at most, of `farms_alpha`. out: a
    file for a picture, .png or .svg. Raises InputError for what is no model, and where the picture cannot be written.
    """
    for name, value, least in (("side", side, 2), ("positions", positions, 1)):
        if value < least:
            raise InputError(f"{name} must be at least {least}; got {value}")
    out = None if out is None else as_path(out)
    if out is not None:
        from thrifty.report.spectra import check_picture, write_spectra  # matplotlib takes a second to load

        check_picture(out)
    source = open_model(model or default_model(), allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    found = []
    with events.task("matrices", len(source.anatomy.linears)) as advance:
        for position, block in enumerate(source.anatomy.blocks):
            for linear in block.linears:
                for name, weight in pieces(block, linear, read_matrix(source, linear)).items():
                    found.append(spectrum(weight, name, linear.role, position, rule, side, positions))
                advance(len(found), linear.path)
    if out is not None:
        write_spectra(found, source.anatomy.architecture, out)
    layers, blocks = [asdict(one) for one in found], [asdict(one) for one in by_block(found)]
    return {"architecture": source.anatomy.architecture, "rule": rule, "layers": layers, "blocks": blocks, "picture": out and str(out)}
