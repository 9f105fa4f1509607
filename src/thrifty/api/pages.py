"""The files of a result that people read: the report, and the model card with the certificate's table."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from thrifty.base.store import write_text
from thrifty.export.card import brings_code, classes_of, license_of, model_card
from thrifty.export.container import METHOD
from thrifty.export.side import library_of
from thrifty.measure.certificate import Certificate
from thrifty.report.headline import markdown
from thrifty.report.page import write_report


def write_pages(name: str, source: Path, quantized: bool, folder: Path, certificate: Certificate) -> None:
    """Write them for the result called `name` in `folder`, made from the model in `source`. quantized: whether its weights are."""
    write_report(certificate, folder)
    request = certificate.request
    original = request.get("model")
    card = model_card(
        name=name,
        base_model=original or "pycode, the model inside the package",
        license=license_of(source),
        classes=classes_of(folder),
        table=markdown(certificate),
        recipe_yaml=certificate.recipe,
        command=_command(certificate),
        quantized=quantized,
        library_note="; ".join(f"{name} {version}" for name, version in certificate.versions.items()),
        container=request.get("format") == METHOD,
        own_code=brings_code(folder),
        library=library_of(json.loads((folder / "config.json").read_text())),
    )
    write_text(folder / "README.md", card)


def _command(certificate: Certificate) -> str:
    """The command line that makes a result again; tensors that a program gave stand in it as a name to fill in."""
    request = certificate.request
    words = ["thrifty", "compress", *([str(request["model"])] if request.get("model") else []), "--recipe", "recipe.yaml"]
    calibration = request.get("calibration") or []
    for source in ["YOUR-TEXT"] if isinstance(calibration, str) else calibration:
        words += ["--calibration", str(source)]
    evaluation = request.get("evaluation") or []
    for source in ["YOUR-TEXT"] if isinstance(evaluation, str) else evaluation:
        words += ["--evaluation", str(source)]
    for key in ("samples", "tokens"):
        if request.get(key):
            words += [f"--{key}", str(request[key])]
    if request.get("format") == METHOD:
        words += ["--format", METHOD]
    return shlex.join([*words, "--seed", str(certificate.seed)])
