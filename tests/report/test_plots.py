"""Plots: whole SVG that stands in any page, every series in it, no colour of its own."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from tests.report.samples import ROLES, certificate, layers, unmeasured, vision
from thrifty.measure.certificate import Layer, Value
from thrifty.report.plots import Plot, Point, balance_plot, bits_plot, error_plot, layer_role, tradeoff_plot

SVG = "{http://www.w3.org/2000/svg}"


def texts(plot: Plot | None) -> list[str]:
    assert plot is not None
    return ["".join(element.itertext()) for element in ElementTree.fromstring(plot.svg).iter(f"{SVG}text")]


def parsed(rows: list[dict]) -> list[Layer]:
    return [Layer(**row) for row in rows]


def drawings() -> dict[str, Plot | None]:
    points = [Point("a", 1.0, Value(value=10, low=9, high=11)), Point("b", 2.0, Value(value=9))]
    return {
        "error": error_plot(parsed(layers())),
        "bits": bits_plot(parsed(layers())),
        "balance": balance_plot(certificate()),
        "size": balance_plot(vision()),
        "tradeoff": tradeoff_plot(points, Point("original", 4.0, Value(value=8)), "perplexity"),
    }


@pytest.mark.parametrize("name", ["error", "bits", "balance", "size", "tradeoff"])
def test_a_plot_is_svg_that_needs_nothing_and_takes_its_colours_from_the_page(name: str) -> None:
    plot = drawings()[name]
    assert plot is not None and plot.title and plot.caption.endswith(".")
    root = ElementTree.fromstring(plot.svg)
    assert root.tag == f"{SVG}svg" and "width" not in root.attrib and root.attrib["viewBox"].startswith("0 0 ")
    links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', plot.svg)
    assert all((link or address).startswith("#") for link, address in links)
    assert "var(--series-1)" in plot.svg and "var(--font)" in plot.svg
    assert not re.search(r"(fill|stroke|color): ?(#|rgb|black)", plot.svg) and "DejaVu" not in plot.svg
    assert plot == drawings()[name], "equal input must give equal text"


def test_the_error_plot_has_a_line_a_role_and_a_point_a_block() -> None:
    plot = error_plot(parsed(layers(5)))
    assert set(ROLES) <= set(texts(plot)) and "relative error" in texts(plot)
    assert plot is not None and plot.svg.count("<use ") >= 5 * len(ROLES)


def test_errors_that_have_no_logarithm_are_left_out() -> None:
    rows = layers(3)
    for row, error in zip(rows, [None, 0.0, -1e-9], strict=False):
        row["relative_error"] = error
    assert {"q", "k", "v"} <= set(texts(error_plot(parsed(rows))))
    assert error_plot(parsed([row | {"relative_error": None} for row in rows])) is None
    assert error_plot([]) is None


def test_experts_of_one_role_are_a_band() -> None:
    rows = [row | {"role": "expert", "name": f"{row['name']}.{index}"} for index, row in enumerate(layers(4))]
    plot = error_plot(parsed(rows))
    assert plot is not None and "FillBetween" in plot.svg
    assert texts(plot).count("expert") == 1
    single = error_plot(parsed(layers(4)))
    assert single is not None and "FillBetween" not in single.svg


def test_the_bits_plot_has_a_cell_a_matrix() -> None:
    found = texts(bits_plot(parsed(layers(6))))
    assert found.count("4") - found.count("5") >= 6 * 7 - 1 - 1, "41 cells of 4 bits, besides the axis"
    assert "8" in found and set(ROLES) <= set(found)
    assert bits_plot([]) is None
    assert bits_plot(parsed([row | {"bits": None} for row in layers(2)])) is None


def test_the_bits_plot_tells_sparsity_where_it_matters() -> None:
    plot = bits_plot(parsed([row | {"sparsity": 0.5, "bits": 16} for row in layers(2)]))
    assert plot is not None and "sparsity" in plot.title and "16, 50 %" in texts(plot)
    plain = bits_plot(parsed(layers(2)))
    assert plain is not None and "sparsity" not in plain.title


def test_many_blocks_keep_their_axis_readable() -> None:
    found = texts(bits_plot(parsed(layers(80))))
    ticks = [int(text) for text in found if text.isdigit()]
    assert ticks[0] == 0 and ticks[-1] >= 75 and len(ticks) <= 17
    assert all(second - first == 5 for first, second in pairwise(ticks))


def test_layers_outside_any_block_are_drawn() -> None:
    rows = [row | {"block": None, "role": ""} for row in layers(1)]
    assert "q_proj" in texts(bits_plot(parsed(rows)))
    assert layer_role(Layer(**rows[0])) == "q_proj" and layer_role(Layer(**layers(1)[0])) == "q"


def test_size_and_quality_are_told_in_numbers() -> None:
    found = texts(balance_plot(certificate()))
    assert {"original", "result", "8.4 MB", "2.9 MB", "12.31", "12.69"} <= set(found)
    found = texts(balance_plot(vision()))
    assert {"8.4 MB", "2.9 MB"} <= set(found) and not any("perplexity" in text for text in found)
    assert balance_plot(unmeasured(bytes=None)) is None
    assert "12,345 MB" in texts(balance_plot(certificate(bytes={"before": 12_345_000_000, "after": 1})))


def test_half_an_interval_or_a_missing_value_does_not_stop_a_plot() -> None:
    lonely = {"before": {"value": 12.0}, "after": {"value": 13.0, "low": 12.5}}
    assert {"12", "13"} <= set(texts(balance_plot(certificate(perplexity=lonely))))
    gone = {"before": {"value": 12.0}, "after": {"value": None}}
    assert "result" in texts(balance_plot(certificate(perplexity=gone)))
    missing = Point("a", 1.0, Value(value=None))
    assert tradeoff_plot([missing], None, "perplexity") is None
    assert "a" not in texts(tradeoff_plot([missing, Point("b", 1.0, Value(value=3.0))], missing, "perplexity"))


ODD = ["_small", "$x$", "$\\frac{$", "模型", "<script>alert(1)</script>", "a & b", "]]>", '"quoted"', "-->", "n" * 90]


def test_any_name_can_be_drawn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = [Point(name, 1.0 + place, Value(value=10.0)) for place, name in enumerate(ODD)]
        plot = tradeoff_plot(points, None, "perplexity")
        rows = [row | {"role": name} for row, name in zip(layers(2), ODD, strict=False)]
        drawn = [texts(plot), texts(error_plot(parsed(rows))), texts(bits_plot(parsed(rows)))]
    for found in drawn:
        shown = {text.lstrip("\u200b") for text in found}
        assert set(ODD[:9]) <= shown
    assert any(text.startswith("nnn") and len(text) <= 32 for text in drawn[0])
    assert plot is not None and "<script" not in plot.svg
