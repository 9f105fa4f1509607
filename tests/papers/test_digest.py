"""The digest: links that lead somewhere once rendered, abstracts as they were written, reasons and statuses beside each paper."""

from __future__ import annotations

import json
from datetime import date
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.papers.samples import HOSTILE, method, paper, records
from thrifty.papers.digest import FORMS, OTHER, PARTS, Issue, markdown, page, write
from thrifty.papers.library import Library
from thrifty.papers.record import MODULES, Record
from thrifty.papers.relevance import Judge
from thrifty.papers.status import Statuses

DAY = date(2025, 6, 13)
JUDGE = Judge()
STATUSES = Statuses([method("awp", "2506.10205")], {"awp": {"figure": "4 bits: perplexity 7 to 8", "test": "tests/weights/test_awp.py"}})


def issue(found: list[Record], docs: str | None = None) -> Issue:
    return Issue.of(DAY, found, STATUSES, JUDGE, docs)


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return list(Library(tmp_path_factory.mktemp("own")).records.values())


class Rendered(HTMLParser):
    """What a browser would make of a page: ids, addresses, headings, preformatted texts, every tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.abstracts: list[str] = []
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        if tag in ("h3", "pre"):
            self.inside = tag
            (self.headings if tag == "h3" else self.abstracts).append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside:
            (self.headings if self.inside == "h3" else self.abstracts)[-1] += data


def rendered(text: str) -> Rendered:
    return Rendered(MarkdownIt("commonmark", {"html": True}).render(text))


def resolves(found: Rendered) -> bool:
    inner = [link.removeprefix("#") for link in found.links if link.startswith("#")]
    return len(found.ids) == len(set(found.ids)) and bool(inner) and set(inner) == set(found.ids)


@pytest.mark.parametrize("form", [markdown, page])
def test_every_link_of_the_contents_leads_to_its_paper(form, week: list[Record]) -> None:
    found = rendered(form(issue(week))) if form is markdown else Rendered(form(issue(week)))
    assert resolves(found) and len(found.ids) == 132 + len(issue(week).groups())


@given(st.lists(records(), min_size=1, max_size=5, unique_by=lambda record: record.id))
def test_any_paper_is_shown_as_it_is(found: list[Record]) -> None:
    text = rendered(markdown(issue(found)))
    assert resolves(text)
    entries = issue(found).entries
    assert [" ".join(heading.split()) for heading in text.headings] == [entry.record.title for entry in entries]
    # The line break that a browser drops after <pre>, and the one before </pre>.
    assert [abstract[1:-1] for abstract in text.abstracts] == [entry.record.abstract for entry in entries]
    assert set(text.tags) <= {"h1", "h2", "h3", "p", "ul", "li", "a", "strong", "details", "summary", "pre", "code"}


@pytest.mark.parametrize("title", HOSTILE)
def test_hostile_titles_are_text(title: str) -> None:
    text = rendered(markdown(issue([paper(title=title, authors=(title,), abstract=title + "\n\n</pre><b>" + title)])))
    assert resolves(text) and text.headings == [title] and text.abstracts[0].strip() == title + "\n\n</pre><b>" + title
    assert not {"img", "script", "em", "b"} & set(text.tags)


def test_groups_are_in_order_and_best_first(week: list[Record]) -> None:
    groups = issue(week).groups()
    assert list(groups) == [part for part in PARTS if part in groups] and set(groups) == {*MODULES, OTHER}
    for entries in groups.values():
        scores = [entry.relevance.score for entry in entries]
        assert scores == sorted(scores, reverse=True)
    assert sum(map(len, groups.values())) == 132 and len(groups[OTHER]) == 65


def test_an_unread_paper_stands_where_its_words_point() -> None:
    read = {"title": "Speculative decoding with a draft model", "abstract": "A language model; sampling strategy; parallel decoding."}
    near, far = paper("2506.00001", **read), paper("2506.00002", title="On tea", abstract="Tea.")
    judged = paper("2506.00003", **read, fit="far", module=None)
    groups = issue([near, far, judged]).groups()
    assert [e.record.id for e in groups["decode"]] == ["2506.00001"]
    assert {e.record.id for e in groups[OTHER]} == {"2506.00002", "2506.00003"}


def test_each_entry_says_why_and_what_became_of_it(week: list[Record]) -> None:
    text = markdown(issue(week, docs="https://docs.example/"))
    awp = text[text.index('<a id="paper-2506.10205">') :][:3000]
    assert "word: sparse, pruning, quantization" in awp
    badge = "[**implemented**](https://docs.example/methods/#awp): the method awp names it · code `thrifty.weights.solve.awp`"
    assert badge in awp and "· test `tests/weights/test_awp.py` · measured 4 bits: perplexity 7 to 8" in awp
    assert "methods/#awp" not in markdown(issue(week))  # nowhere to lead to
    assert text.count("**planned**") == 66 and text.count("**elsewhere**") == 65
    assert "[code](<https://github.com/CSU-ModelCompression/BAQ>)" in text


@pytest.mark.parametrize("form", FORMS)
def test_no_papers(form) -> None:
    assert isinstance(write(issue([]), form), str)
    assert form not in ("markdown", "html") or "No papers." in write(issue([]), form)


def test_json(week: list[Record]) -> None:
    found = json.loads(write(issue(week), "json"))
    assert found["day"] == "2025-06-13" and len(found["papers"]) == 132
    awp = next(entry for entry in found["papers"] if entry["id"] == "2506.10205")
    assert awp["status"]["word"] == "implemented" and awp["status"]["figure"] == "4 bits: perplexity 7 to 8" and awp["part"] == "quantize"
    assert awp["matched"]["literal"] == ["sparse", "pruning", "quantization"] and awp["score"] > 10
    again = {key: awp[key] for key in Record.model_fields if key in awp}
    assert Record.model_validate(again) == next(record for record in week if record.id == "2506.10205")


def test_the_page_stands_alone(week: list[Record]) -> None:
    found = Rendered(page(issue(week)))
    assert not {"script", "link", "img", "iframe"} & set(found.tags) and "style" in found.tags


def test_it_says_the_same_twice(week: list[Record]) -> None:
    assert markdown(issue(week)) == markdown(issue(list(reversed(week))))
