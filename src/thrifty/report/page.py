"""`report.html`: one self-contained page about one result. It needs no network and no other file; equal certificates give equal pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from thrifty.base.store import write_text
from thrifty.measure.certificate import Certificate, Data, Layer
from thrifty.measure.outliers import outliers
from thrifty.report.headline import LINKS, headline, link_rows, recipe_line
from thrifty.report.numbers import MISSING, duration, number, percent, plain, quantity, size, words
from thrifty.report.plots import balance_plot, bits_plot, error_plot, layer_role

FILE = "report.html"


def render_report(certificate: Certificate) -> str:
    """The page as HTML text."""
    plots = (balance_plot(certificate), error_plot(certificate.layers), bits_plot(certificate.layers))
    return render(
        "report.html.j2",
        title=f"{certificate.model.name}, compressed",
        certificate=certificate,
        headline=headline(certificate),
        links=link_rows(certificate),
        link_columns=LINKS,
        recipe_line=recipe_line(certificate.recipe),
        note=_note(certificate),
        plots=[plot for plot in plots if plot is not None],
        odd={outlier.name: outlier.reason for outlier in outliers(certificate.layers)},
        sources=_sources(certificate),
        conditions=_conditions(certificate),
    )


def write_report(certificate: Certificate, folder: str | Path) -> Path:
    """Write `report.html` into the folder atomically."""
    path = Path(folder) / FILE
    write_text(path, render_report(certificate))
    return path


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; everything put in is escaped."""
    environment = Environment(
        loader=PackageLoader("thrifty.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"role": layer_role, "figures": _figures}
    return environment.get_template(template).render(**values)


def _figures(layer: Layer) -> list[tuple[str, str]]:
    """(value to sort by, text) of the number columns of the layer table."""
    values = (layer.bits, layer.sparsity, layer.relative_error, layer.error, layer.tokens)
    shown = (number(layer.bits), percent(layer.sparsity), number(layer.relative_error), number(layer.error), number(layer.tokens))
    return [("-1" if value is None else repr(float(value)), text) for value, text in zip(values, shown, strict=True)]


def _note(certificate: Certificate) -> str:
    """What the headline's figures rest on."""
    sentences = []
    if certificate.scored:
        windows, rows = ("windows of text", "tokens") if "tokens" in certificate.scored else ("rows", "rows")
        counts = ", ".join(f"{count:,} {name}" for name, count in certificate.scored.items())
        sentences.append(f"Brackets are 95 % intervals (bootstrap over {windows}).")
        sentences.append(f"Changes compare both models on the same {rows} ({counts}).")
    else:
        sentences.append("The quality was not measured.")
    facts = [f"{words(key)} {plain(value)}" for key, value in (certificate.speed or {}).items() if not isinstance(value, dict)]
    return " ".join([*sentences, *([f"Speed: {', '.join(facts)}."] if facts else [])])


def _sources(certificate: Certificate) -> list[tuple[str, str]]:
    model, data = certificate.model, certificate.data
    rows = [
        ("model", model.name + (f", revision {model.revision}" if model.revision else "")),
        ("architecture", model.architecture or MISSING),
        ("parameters", number(model.parameters) if model.parameters else MISSING),
        ("digest of its weights", model.digest),
        ("calibration", _data(data.calibration)),
        ("evaluation", _data(data.evaluation)),
        ("seed", str(certificate.seed)),
    ]
    given = {key: value for key, value in certificate.request.items() if value not in (None, False) and key not in ("model", "calibration")}
    return rows + [(words(key), plain(value)) for key, value in given.items()]


def _data(data: Data | None) -> str:
    if data is None:
        return "none"
    samples = json.dumps(_ranges(data.samples)).strip("[]").replace('"', "")
    return f"{data.source}: {data.rows:,} rows, {data.tokens:,} tokens, samples {samples or MISSING}, digest {data.digest}"


def _ranges(samples: list[int | str]) -> list[int | str]:
    """Runs of consecutive numbers as `first-last`, so that the list stays readable and whole."""
    found: list[list[Any]] = []
    for sample in samples:
        if found and isinstance(sample, int) and isinstance(found[-1][1], int) and sample == found[-1][1] + 1:
            found[-1][1] = sample
        else:
            found.append([sample, sample])
    return [first if first == last else f"{first}-{last}" for first, last in found]


def _conditions(certificate: Certificate) -> list[tuple[str, str]]:
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in certificate.phases.items())
    rows = [
        ("time", duration(certificate.seconds) + (f" ({phases})" if phases else "")),
        ("peak memory", size(certificate.peak_rss_bytes)),
    ]
    rows += [(words(key), quantity(key, value)) for key, value in certificate.hardware.items()]
    return [*rows, ("versions", ", ".join(f"{name} {version}" for name, version in certificate.versions.items()) or MISSING)]
