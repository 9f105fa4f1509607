"""The page: whole in one file, everything told, nothing that was put in taken for markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.samples import certificate, layers, unmeasured, vision
from thrifty.measure.certificate import Certificate
from thrifty.report.headline import headline
from thrifty.report.page import render_report, write_report

EVIL = "<script>alert('x')</script> & \"more\""
# Elements without an end tag.
VOID = {"meta", "link", "br", "img", "input", "hr", "base"}


class Page(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and the text outside scripts, styles and drawings."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page(one: Certificate) -> Page:
    return Page(render_report(one))


@pytest.fixture(scope="module")
def whole() -> Page:
    return page(certificate())


def test_the_page_needs_no_other_file_and_no_network(whole: Page) -> None:
    html = render_report(certificate())
    for tag, attributes in whole.elements:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "image")
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in html and not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(", "".join(whole.scripts))


def test_plots_are_inside(whole: Page) -> None:
    assert whole.count("svg") == whole.count("figure") == 3
    for title in ("Size and quality", "Error by layer", "Bits by layer"):
        assert title in whole.text


def test_the_headline_is_told(whole: Page) -> None:
    for row in headline(certificate()):
        assert " ".join(part for part in (row.what, row.before, row.after, row.change) if part) in whole.text
    assert "tiny/model" in whole.text and "awq + gptq (bits 4, group size 32)" in whole.text


def test_every_layer_is_told_with_its_figures() -> None:
    one = certificate(layers=layers(9))
    found = page(one)
    assert len(one.layers) == 63
    for layer in one.layers:
        assert f" {layer.name} " in found.text
    body = render_report(one)
    for layer in one.layers:
        assert f'data-value="{layer.relative_error!r}"' in body
    assert found.count("tr") >= 63 + len(headline(one))


def test_what_it_was_made_from_and_with_is_told(whole: Page) -> None:
    for word in (
        "train.txt: 128 rows, 65,536 tokens, samples 0-127",
        "test.txt: 60 rows, 15,360 tokens",
        "d" * 64,
        "LlamaForCausalLM",
        "seed 0",
        "42.5 s (compress 30.1 s, evaluate 9.2 s, write 1.1 s)",
        "peak memory 900.00 MB",
        "ram 24.00 GB",
        "torch 2.13.0",
        "thrifty repeat FOLDER",
    ):
        assert word in whole.text
    assert certificate().recipe.strip().splitlines()[-1].strip() in whole.text


def test_whatever_is_put_in_is_text() -> None:
    rows = layers(2)
    rows[0] |= {"name": EVIL, "role": EVIL, "method": EVIL, "relative_error": 0.9}
    one = certificate(
        layers=rows,
        warnings=[f"layer {EVIL} is out of line"],
        recipe=f"steps: [gptq: {{}}] # {EVIL}\n# ünïcødé 模型 \u202e {{{{ 7 * 7 }}}}\n",
        model={"name": EVIL, "digest": EVIL, "architecture": EVIL, "revision": EVIL},
        versions={EVIL: EVIL},
        hardware={EVIL: EVIL},
        request={EVIL: [EVIL]},
        phases={EVIL: 1.0},
        speed={EVIL: EVIL},
        quality=[{"metric": EVIL, "before": 1.0, "after": 2.0, "difference": 1.0}],
        data={"calibration": {"source": EVIL, "digest": EVIL, "rows": 1, "samples": [EVIL]}},
        gate={"metric": EVIL, "limit": 0.1, "passed": False, "reason": EVIL},
    )
    html, found = render_report(one), page(one)
    assert found.count("script") == 1, "only the page's own"
    assert "alert" not in "".join(found.scripts)
    assert html.count("<script") == 1
    assert found.text.count("<script>alert('x')</script>") >= 10
    assert "ünïcødé 模型" in found.text and "{{ 7 * 7 }}" in found.text
    assert not any("alert" in (value or "") for tag, attributes in found.elements for value in attributes.values() if tag != "tr")


def test_warnings_are_counted_and_told() -> None:
    assert "1 warning few tokens" in page(certificate(warnings=["few tokens"])).text
    assert "2 warnings one two" in page(certificate(warnings=["one", "two"])).text
    assert "warning" not in page(certificate()).text


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate_is_told_at_the_top(passed: bool) -> None:
    reason = "perplexity rose by 7 %, more than the 5 % that was allowed"
    found = page(certificate(gate={"metric": "perplexity", "limit": 0.05, "passed": passed, "reason": reason}))
    word, style = ("Within the limit", "passed") if passed else ("Limit not met", "failed")
    assert f"{word} : {reason}" in found.text.replace(f"{word}:", f"{word} :")
    assert found.text.index(reason) < found.text.index("weight files")
    assert any(attributes.get("class") == style for _, attributes in found.elements)


def test_a_layer_out_of_line_is_marked() -> None:
    rows = layers(6)
    rows[3]["relative_error"] = 0.7
    found = page(certificate(layers=rows))
    marked = [attributes["title"] for tag, attributes in found.elements if tag == "tr" and attributes.get("class") == "odd"]
    assert len(marked) == 1 and marked[0]
    assert f"{rows[3]['name']}:" in found.text, "the warning names it"


def test_a_simulated_layer_is_marked() -> None:
    rows = layers(1)
    rows[0]["simulated"] = True
    assert page(certificate(layers=rows)).text.count("simulated") == 1


def test_the_page_of_a_model_without_next_tokens() -> None:
    found = page(vision())
    assert "relative error of the output 0 0.0125 0.0125 [0.01, 0.015]" in found.text
    assert "accuracy 0.91 0.9 -0.01 [-0.03, 0.01]" in found.text
    assert "bootstrap over rows" in found.text and "50 rows" in found.text
    assert "perplexity" not in found.text and "next-token" not in found.text and "windows" not in found.text
    assert found.count("svg") == 3


def test_the_page_of_a_result_that_was_not_measured() -> None:
    found = page(unmeasured())
    assert "The quality was not measured." in found.text
    assert "95 %" not in found.text and "perplexity" not in found.text
    assert "evaluation none" in found.text


def test_the_page_of_a_result_of_which_nothing_is_known() -> None:
    bare = Certificate.build(model={"name": "m", "digest": "d"}, recipe="steps: [rtn: {}]\n")
    found = page(bare)
    assert found.count("svg") == 0 and "Layers" not in found.text and "rtn" in found.text


def test_numbers_that_are_missing_in_a_layer_sort_below_all_others() -> None:
    rows = layers(1)
    rows[0] |= {"bits": None, "sparsity": None, "error": None, "relative_error": None}
    html = render_report(certificate(layers=rows))
    line = html[html.index(f"<td>{rows[0]['name']}") :].split("</tr>")[0]
    assert line.count('data-value="-1">–<') == 4  # noqa: RUF001


def test_equal_certificates_give_equal_pages(tmp_path: Path) -> None:
    assert render_report(certificate()) == render_report(Certificate.from_json(certificate().to_json()))
    path = write_report(certificate(), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render_report(certificate())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_samples_are_written_as_runs_and_none_is_lost() -> None:
    samples = [0, 1, 2, 5, 7, 8, "a.png", 9]
    data = {"calibration": {"source": "s", "digest": "d", "rows": 8, "samples": samples}}
    assert "samples 0-2, 5, 7-8, a.png, 9," in page(certificate(data=data)).text
