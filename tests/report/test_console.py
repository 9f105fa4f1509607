"""The console: the headline first, the worst layers, then what to beware of; nothing that was put in taken for markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from tests.report.samples import certificate, layers, unmeasured, vision
from thrifty.measure.certificate import Certificate
from thrifty.report.compare import Comparison, Result
from thrifty.report.console import SIDE_BY_SIDE, WORST, render_certificate, render_comparison
from thrifty.report.headline import headline

ODD = "a[red]b[/]c[/nothing] :smile:"


def shown(renderable: RenderableType, width: int = 160) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, color_system=None).print(renderable)
    return file.getvalue()


def compared(count: int) -> str:
    results = tuple(Result(f"result-{index}", certificate(bits_per_weight=4.0 + index)) for index in range(count))
    return shown(render_comparison(Comparison(results, ())))


def test_the_headline_is_told() -> None:
    text = shown(render_certificate(certificate(), "small"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for row in headline(certificate()):
        assert " ".join(part for part in (row.what, row.before, row.after, row.change) if part) in lines
    assert lines[0] == "tiny/model -> small"
    assert "awq + gptq (bits 4, group size 32)" in lines
    assert "42.5 s, peak memory 900.00 MB" in lines
    assert "every layer, with plots: small/report.html" in lines


def test_without_a_folder_none_is_named() -> None:
    text = shown(render_certificate(certificate()))
    assert text.splitlines()[0].strip() == "tiny/model" and "report.html" not in text


def test_the_worst_layers_are_told_worst_first() -> None:
    one = certificate()
    text = shown(render_certificate(one))
    worst = sorted(one.layers, key=lambda layer: -layer.relative_error)
    places = [text.index(layer.name) for layer in worst[:WORST]]
    assert places == sorted(places)
    assert not any(layer.name in text for layer in worst[WORST:])
    assert f"largest errors of {len(one.layers)} layers" in text


def test_layers_of_unknown_error_are_not_called_the_worst() -> None:
    rows = layers(1)
    for row in rows[1:]:
        row["relative_error"] = None
    text = shown(render_certificate(certificate(layers=rows))).split("warning:")[0]
    assert rows[0]["name"] in text and rows[1]["name"] not in text
    none = shown(render_certificate(certificate(layers=[row | {"relative_error": None} for row in rows])))
    assert "largest errors" not in none
    assert "largest errors" not in shown(render_certificate(certificate(layers=[])))


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate_is_told(passed: bool) -> None:
    verdict = {"metric": "perplexity", "limit": 0.05, "passed": passed, "reason": "it rose by 7 %"}
    text = shown(render_certificate(certificate(gate=verdict)))
    assert ("within the limit: it rose by 7 %" in text) == passed
    assert ("limit not met: it rose by 7 %" in text) == (not passed)
    assert "limit" not in shown(render_certificate(certificate()))


def test_what_is_put_in_is_text() -> None:
    rows = layers(1)
    rows[0] |= {"name": ODD, "method": ODD, "relative_error": 0.5}
    model = {"name": ODD, "digest": "d"}
    gate = {"metric": ODD, "limit": 0.1, "passed": False, "reason": ODD}
    quality = [{"metric": ODD, "before": 1.0, "after": 2.0, "difference": 1.0}]
    one = certificate(layers=rows, model=model, warnings=[ODD], gate=gate, quality=quality, recipe=ODD)
    text = shown(render_certificate(one, ODD), 400)
    assert text.count(ODD) >= 8
    results = (Result(ODD, one), Result("b", certificate()))
    assert shown(render_comparison(Comparison(results, (ODD,))), 400).count(ODD) == 3


def test_warnings_are_told_after_the_tables() -> None:
    text = shown(render_certificate(certificate(warnings=["few tokens", "dead columns"])))
    assert text.index("largest errors") < text.index("warning: few tokens") < text.index("warning: dead columns")


@pytest.mark.parametrize("one", [vision(), unmeasured(), Certificate.build(model={"name": "m", "digest": "d"}, recipe="rtn: {}")])
def test_results_without_perplexity(one: Certificate) -> None:
    text = shown(render_certificate(one, "small"))
    assert "perplexity" not in text
    for row in headline(one):
        assert row.what in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_figures_survive_a_narrow_console(width: int) -> None:
    text = shown(render_certificate(certificate(), "small"), width)
    for figure in ("12.31 [11.8, 12.9]", "12.69 [12.1, 13.3]", "2.90 MB", "91.2 %"):
        assert figure in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("count", [1, 2, SIDE_BY_SIDE, SIDE_BY_SIDE + 1, 3 * SIDE_BY_SIDE + 1])
def test_every_result_of_a_comparison_has_a_column(count: int) -> None:
    text = compared(count)
    assert all(text.count(f"result-{index} ") == 1 for index in range(count))
    tables = -(-count // SIDE_BY_SIDE)
    for what in ("weight files", "bits per weight", "perplexity  ", "KL, nats", "peak memory"):
        assert text.count(what) == tables
    numbers = [line.split()[3:] for line in text.splitlines() if "bits per weight" in line]
    assert [number for row in numbers for number in row] == [f"{4 + index}" for index in range(count)]


def test_a_figure_that_a_result_lacks_is_marked_and_one_that_all_lack_is_left_out() -> None:
    results = (Result("a", certificate()), Result("b", vision()))
    lines = {line[:30].strip(): line[30:].split("  ") for line in shown(render_comparison(Comparison(results, ()))).splitlines()}
    told = {what: [part.strip() for part in parts if part.strip()] for what, parts in lines.items()}
    assert told["perplexity"] == ["12.69 [12.1, 13.3]", "–"]  # noqa: RUF001
    assert told["relative error of the output"] == ["–", "0.0125 [0.01, 0.015]"]  # noqa: RUF001
    assert "relative error" not in compared(2)


def test_what_keeps_results_from_being_compared_is_told() -> None:
    assert "note: not the same text" in shown(render_comparison(Comparison((Result("a", certificate()),), ("not the same text",))))
