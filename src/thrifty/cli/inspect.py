"""The commands that explain a model: `thrifty inspect ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(name="inspect", help="What explains a model and changes nothing.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """With a callback the only command keeps its name."""


@app.command()
def spectra(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model folder or hub id; the model inside the package if left out.")
    ] = None,
    rule: Annotated[Literal["median", "peak", "goodness"], typer.Option("--rule", help="Where the tail of a spectrum starts.")] = "peak",
    side: Annotated[int, typer.Option("--side", metavar="N", help="Rows of a window at most.")] = 2000,
    positions: Annotated[int, typer.Option("--positions", metavar="N", help="Windows along either side at most.")] = 15,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also draw them, as .png or .svg.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read weights from pickle files.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")] = False,
) -> None:
    """Say how heavy-tailed the spectrum of each matrix is, by layer and by block."""
    from thrifty.cli.commands import call_and_show

    allowed = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    words = {"rule": rule, "side": side, "positions": positions, "out": out, **allowed}
    call_and_show("spectra", lambda api: api.inspecting.spectra(model, **words), json)
