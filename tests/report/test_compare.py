"""Several results side by side: read from their folders, told with what keeps them from being compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.report.samples import certificate, layers, unmeasured, vision
from tests.report.test_page import EVIL, Page
from thrifty.base.errors import InputError, RunError
from thrifty.measure.certificate import Certificate
from thrifty.report.compare import Comparison, compare, render_comparison, write_comparison

KEYS = {
    "model",
    "name",
    "recipe",
    "bytes",
    "bits_per_weight",
    "perplexity",
    "perplexity_ratio",
    "kl",
    "top1_agreement",
    "relative_error",
    "decode_tokens_per_second",
    "seconds",
    "peak_rss_bytes",
}
OTHER = {"calibration": None, "evaluation": {"source": "other.txt", "digest": "f" * 64, "rows": 3}}


def folders(base: Path, *certificates: Certificate) -> list[Path]:
    found = []
    for index, one in enumerate(certificates):
        folder = base / f"result-{index}"
        folder.mkdir(parents=True)
        one.write(folder)
        found.append(folder)
    return found


@pytest.fixture
def three(tmp_path: Path) -> Comparison:
    """Two results of one model, and one of which nothing was measured."""
    smaller = certificate(bytes={"before": 8_400_000, "after": 1_900_000}, kl={"value": 0.2, "low": 0.1, "high": 0.3})
    return compare(folders(tmp_path, certificate(), smaller, unmeasured()))


def test_json_holds_the_same_keys_for_every_result(three: Comparison) -> None:
    found = json.loads(json.dumps(three.to_json(), allow_nan=False))
    assert found.keys() == {"results", "notes"}
    assert all(row.keys() == KEYS for row in found["results"])
    first, second, third = found["results"]
    assert [row["name"] for row in found["results"]] == ["result-0", "result-1", "result-2"]
    assert first["perplexity"] == {"value": 12.69, "low": 12.1, "high": 13.3}
    assert (first["bytes"], second["bytes"], second["kl"]["value"]) == (2_900_000, 1_900_000, 0.2)
    assert first["recipe"] == certificate().recipe and first["decode_tokens_per_second"] == 204.0
    assert third["perplexity"] is third["kl"] is third["top1_agreement"] is third["decode_tokens_per_second"] is None


def test_the_order_is_that_of_the_request(tmp_path: Path) -> None:
    places = folders(tmp_path, certificate(bits_per_weight=3.0), certificate(bits_per_weight=2.0))
    assert [result.certificate.bits_per_weight for result in compare(places[::-1]).results] == [2.0, 3.0]


def test_results_of_one_name_are_told_apart(tmp_path: Path) -> None:
    [first] = folders(tmp_path / "a", certificate())
    [second] = folders(tmp_path / "b", certificate())
    assert [result.name for result in compare([first, second]).results] == [str(first), str(second)]
    assert compare([str(first)]).results[0].name == "result-0"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": {"name": "other", "digest": "0" * 64}}, "different models"),
        ({"data": OTHER}, "not measured on the same text"),
        ({"data": {}}, "not measured on the same text"),
        ({"hardware": {"cpu": "a processor", "threads": 1}}, "different thread counts"),
        ({"hardware": {"cpu": "another", "threads": 2}}, "different hardware"),
        ({"layers": [layers(1)[0] | {"simulated": True}]}, "result-1 holds simulated layers"),
        (
            {"gate": {"metric": "perplexity", "limit": 0.05, "passed": False, "reason": "it rose by 7 %"}},
            "result-1 did not meet its limit: it rose by 7 %",
        ),
    ],
)
def test_what_keeps_results_from_being_compared_is_told(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    alike = folders(tmp_path / "alike", certificate(), certificate())
    assert compare(alike).notes == ()
    [note] = compare([alike[0], *folders(tmp_path / "unlike", certificate(), certificate(**changes))[1:]]).notes
    assert word in note
    assert word in Page(render_comparison(compare([alike[0], tmp_path / "unlike" / "result-1"]))).text


def test_the_page_has_a_row_a_result_and_marks_what_is_missing(three: Comparison) -> None:
    found = Page(render_comparison(three))
    assert "3 results compared" in found.text and found.count("tr") == 4
    for word in ("result-0", "2.90 MB", "1.90 MB", "0.2 [0.1, 0.3]", "12.69 [12.1, 13.3]", "91.2 %", "204", "42.5 s"):
        assert word in found.text
    cells = [attributes for tag, attributes in found.elements if tag == "td"]
    assert len(cells) == 3 * len(three.columns)
    assert sum(attributes.get("data-value") == "-1" for attributes in cells) == 5, "what was not measured sorts below all numbers"
    assert found.text.count("–") == 5  # noqa: RUF001
    assert "relative error" not in found.text, "what no result has needs no column"
    assert found.count("svg") == 2


def test_the_page_needs_no_other_file_and_no_network(three: Comparison) -> None:
    html = render_comparison(three)
    for _, attributes in Page(html).elements:
        assert all((attributes.get(name) or "#").startswith("#") for name in ("src", "href", "xlink:href"))
    assert set(re.findall(r"https?://[^\s\"'<>)]+", html)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_whatever_is_put_in_is_text(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    certificate(model={"name": EVIL, "digest": EVIL}, recipe=EVIL).write(folder)
    html = render_comparison(compare([folder, *folders(tmp_path, certificate())]))
    assert html.count("<script") == 1 and "alert" not in "".join(Page(html).scripts)
    assert "<script>alert(1)<" in Page(html).text


def test_the_original_is_drawn_only_where_it_is_one(tmp_path: Path) -> None:
    [one, same, other] = folders(
        tmp_path, certificate(), certificate(), certificate(perplexity={"before": {"value": 9.0}, "after": {"value": 10.0}})
    )
    assert "original</text>" in render_comparison(compare([one, same])).replace(">original", "original")
    assert "original</text>" not in render_comparison(compare([one, other]))


def test_results_without_perplexity_are_compared(tmp_path: Path) -> None:
    found = compare(folders(tmp_path, vision(), vision(relative_error={"value": 0.5})))
    page = Page(render_comparison(found))
    assert "0.0125 [0.01, 0.015]" in page.text and "0.5" in page.text and "perplexity" not in page.text
    assert [row["relative_error"]["value"] for row in found.to_json()["results"]] == [0.0125, 0.5]
    assert "perplexity" not in [column.key for column in found.columns]


def test_one_result_alone_and_one_of_which_nothing_is_known(tmp_path: Path) -> None:
    bare = Certificate.build(model={"name": "m", "digest": "d"}, recipe="steps: [rtn: {}]\n")
    page = Page(render_comparison(compare(folders(tmp_path, bare))))
    assert "One result" in page.text and page.count("svg") == 0 and "result-0" in page.text


def test_the_page_is_written_whole(three: Comparison, tmp_path: Path) -> None:
    path = write_comparison(three, tmp_path / "pages" / "compare.html")
    assert path.read_text(encoding="utf-8") == render_comparison(three)
    with pytest.raises(RunError):
        write_comparison(three, tmp_path / "result-0" / "certificate.json" / "compare.html")


def test_folders_that_hold_no_certificate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        compare([])
    with pytest.raises(InputError, match="gone"):
        compare([*folders(tmp_path, certificate()), tmp_path / "gone"])
