"""The page in a real browser: what it finds, shows, keeps in its address and exports; it asks nobody, and runs nothing of a record's."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.papers.query_cases import BAQ, CASES, KV, SIGNS
from tests.papers.samples import HOSTILE, method, paper
from thrifty.base.errors import InputError
from thrifty.papers.digest import escaped
from thrifty.papers.find import Index, counts
from thrifty.papers.library import SHIPPED, Library
from thrifty.papers.query import folded, parse
from thrifty.papers.record import Record
from thrifty.papers.references import bibtex, plain, short_authors, table
from thrifty.papers.site import FILE, write_site
from thrifty.papers.status import WORDS, Statuses

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright, which is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
ROWS = 25
"""So many are drawn at first."""
AWP = "2506.10205"
MEASURED = {"awp": {"figure": "4 bits: perplexity 7 to 8", "test": "tests/weights/test_awp.py"}}
STATUSES = Statuses([method("awp", AWP)], MEASURED)
BAD = paper(
    "2506.00666",
    title=" ".join(HOSTILE),
    authors=('O\'Neil "Bobby" <b>Tables</b>', "Poincaré & Söhne", "x" * 90, "Ünal"),
    abstract="".join(f"{title}\n" for title in HOSTILE) + "  <svg onload=alert(1)> &amp; \\begin{x}\n\n  <!-- " + "y" * 120,
    reason="<b onmouseover=alert(1)>why</b>",
    name="</li><script>alert(2)</script>",
    code=("javascript:alert(3)", "https://github.com/a/b?x=1&y=<2>"),
    categories=("cs.LG", "cs.CL"),
    module="kv",
    kind="survey",
    domain="theory",
    fit="far",
)


@pytest.fixture(scope="module")
def shipped() -> list[Record]:
    return list(Library(Path("none"), SHIPPED).records.values())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; `apt-get install chromium` brings it")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=SWITCHES)
        context = started.new_context(viewport=WIDE, permissions=["clipboard-read", "clipboard-write"])
        context.add_init_script("window.alert = (text) => { window.attacked = text; };")
        yield context
        started.close()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, shipped: list[Record]) -> dict[str, str]:
    """The addresses of pages by name."""
    days = [
        paper(f"2501.{number:05}", published=date(2025, 1, 1) + timedelta(number % 90), title=f"Paper {number}") for number in range(300)
    ]
    scores = {record.id: len(record.title) / 7 for record in shipped}
    awp = next(record for record in shipped if record.id == AWP)
    made: dict[str, tuple[list[Record], dict[str, Any]]] = {
        "shipped": (shipped, {"scores": scores}),
        "linked": (shipped[:100], {"docs": "https://docs.example/"}),
        "bad": ([BAD, *shipped[:5], awp, paper("hep-th/9901001", title="Old and unread")], {}),
        "many": (days, {}),
        "empty": ([], {}),
    }
    folder = tmp_path_factory.mktemp("sites")
    return {name: f"file://{write_site(found, STATUSES, folder / name, **more)['file']}" for name, (found, more) in made.items()}


@pytest.fixture
def visit(browser: Any, sites: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Opens a page by its name and what stands after its #. Each must ask for itself alone, run nothing of a record's, have no fault."""
    asked, faults, opened = [], [], []

    def visit(name: str, place: str = "", scheme: str = "light") -> Any:
        page = browser.new_page()
        opened.append(page)
        page.emulate_media(color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url.split("#")[0]))
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(sites[name] + place)
        return page

    yield visit
    assert [page.evaluate("window.attacked") for page in opened] == [None] * len(opened)
    for page in opened:
        page.close()
    assert not faults
    assert {address for address in asked if not address.startswith(("data:,", "blob:"))} <= set(sites.values())


def shown(page: Any) -> list[str]:
    """Ids of the papers of the list."""
    return page.eval_on_selector_all("#papers > .paper", "rows => rows.map((row) => row.dataset.id)")


def chosen(page: Any) -> dict[str, Any]:
    """All that an address should bring back."""
    boxes = page.eval_on_selector_all("#facets input:checked", "boxes => boxes.map((box) => box.name + '=' + box.value)")
    fields = {name: page.input_value(f"#{name}") for name in ("query", "since", "until", "sort")}
    opened = page.eval_on_selector_all(".paper.open", "rows => rows.map((row) => row.dataset.id)")
    return {**fields, "boxes": boxes, "open": opened, "count": page.text_content("#count"), "shown": shown(page)}


def facet(page: Any, name: str) -> dict[str, int]:
    """The counts that stand beside the words of a facet."""
    script = "labels => labels.map((label) => [label.querySelector('input').value, Number(label.querySelector('output').textContent)])"
    return dict(page.eval_on_selector_all(f"label:has(input[name={name}])", script))


def choose(page: Any, name: str, word: str) -> None:
    page.locator(f"input[name={name}][value={word}]").evaluate("(box) => { box.closest('details').open = true; box.click(); }")


def export(page: Any, form: str) -> str:
    page.select_option("#form", form)
    with page.expect_download() as download:
        page.click("#download")
    return Path(download.value.path()).read_bytes().decode()


# ---- the file


def test_what_is_written(tmp_path: Path, shipped: list[Record]) -> None:
    written = write_site(shipped, STATUSES, tmp_path / "new" / "site")
    file = tmp_path / "new" / "site" / FILE
    assert written == {"papers": 132, "bytes": file.stat().st_size, "file": str(file)}
    assert [path.name for path in file.parent.iterdir()] == [FILE]
    first = file.read_bytes()
    write_site(list(reversed(shipped)), STATUSES, file.parent)  # over its own page
    assert file.read_bytes() == first


def test_nothing_of_others_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(InputError, match="is a file; give --out a folder"):
        write_site([], STATUSES, file)
    (tmp_path / FILE).write_text("<html>my home page</html>")
    with pytest.raises(InputError, match="is not a page that thrifty made"):
        write_site([], STATUSES, tmp_path)
    (tmp_path / "odd" / FILE).mkdir(parents=True)
    with pytest.raises(InputError, match="is not a page that thrifty made"):
        write_site([], STATUSES, tmp_path / "odd")
    assert file.read_text() == "text" and (tmp_path / FILE).read_text() == "<html>my home page</html>"


# ---- the query language


def test_the_cases_of_the_query_language(visit: Callable[..., Any]) -> None:
    answers = answered(visit("empty"), [(query, text) for query, text, _ in CASES])
    for (query, text, expected), answer in zip(CASES, answers, strict=True):
        assert answer == python(query, text), query
        assert answer == expected if isinstance(expected, bool) else expected in answer, query


def test_any_query_means_the_same(visit: Callable[..., Any]) -> None:
    chance = random.Random(0)
    pieces = [*'()"-', " ", "AND", "OR", "NOT", "quant", "low-bit", "bit", "kv", "é", "C++", "_", "a", '"bit post"', "x_1", "\u3000", "ß"]
    asked = []
    for _ in range(1500):
        words = chance.choices(pieces, k=chance.randrange(1, 9))
        asked.append((chance.choice(("", " ", " ")).join(words), chance.choice((BAQ, KV, SIGNS, "a é"))))
    expected = [python(query, text) for query, text in asked]
    assert answered(visit("empty"), asked) == expected
    assert 300 < sum(isinstance(answer, bool) for answer in expected) < 1200  # read and refused


def test_every_letter_folds_the_same(visit: Callable[..., Any]) -> None:
    """And is or is not one that words are made of."""
    other = "\U00010480"  # a letter that no other folds to
    letters = [chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    letters.remove(other)
    script = """([letters, other]) => JSON.stringify([...letters].map((letter) => {
      const folded = Query.folded(letter + other);
      return [folded, Query.places(folded, [{ text: other, whole: false }]).length === 0];
    }))"""
    found = json.loads(visit("empty").evaluate(script, ["".join(letters), other]))
    expected = [[text, text[-2:-1].isalnum()] for text in (folded(letter + other) for letter in letters)]
    assert [pair for pair in zip(letters, found, expected, strict=True) if pair[1] != pair[2]] == []


def python(query: str, text: str) -> bool | str:
    """Whether `query.py` finds a text of one field a line, or why it does not read the query."""
    try:
        return parse(query)("\n".join(folded(line) for line in text.split("\n")))
    except InputError as refused:
        return str(refused)


def answered(page: Any, asked: list[tuple[str, str]]) -> list[bool | str]:
    """The same of `query.js`."""
    script = """asked => asked.map(([query, text]) => {
      try {
        const texts = new Query.Texts([text.split("\\n").map(Query.folded).join("\\n")]);
        return texts.among(Query.parse(query))[0] === 1;
      } catch (fault) {
        if (!(fault instanceof Query.Fault)) throw fault;
        return fault.message;
      }
    })"""
    return page.evaluate(script, asked)


# ---- finding


@pytest.mark.parametrize("query", ["quantiz", '"low-bit" OR posit', "(prun OR spars) -attention", "Poincare", "2506.10205", "liu awp"])
def test_typing_narrows_the_list(query: str, visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped")
    assert page.text_content("#count") == "132 papers" and shown(page) == [record.id for record in shipped[:ROWS]]
    page.locator("#query").press_sequentially(query) if query.isalnum() else page.fill("#query", query)
    found = [record.id for record in Index(shipped).search(query)]
    assert shown(page) == found[:ROWS] and page.text_content("#count") == f"{len(found)} of 132 papers"
    assert page.get_attribute("#count", "role") == "status"
    page.fill("#query", "")
    assert len(shown(page)) == ROWS and page.text_content("#count") == "132 papers"


def test_a_query_that_cannot_be_read_keeps_what_is_there(visit: Callable[..., Any]) -> None:
    page = visit("shipped")
    page.fill("#query", "posit")
    before = shown(page)
    page.fill("#query", "posit AND (")
    assert page.text_content("#fault").startswith("query, place 11 ('('): this parenthesis is not closed; words,")
    assert shown(page) == before and page.get_attribute("#query", "aria-invalid") == "true"
    choose(page, "module", "audit")  # filters take from what is there
    assert shown(page) == [] and "0 of" in page.text_content("#count")
    page.click("#clear")
    assert shown(page) == before
    page.fill("#query", "posit AND (8-bit)")
    assert page.text_content("#fault") == "" and page.get_attribute("#query", "aria-invalid") == "false"


def test_nothing_found_is_said(visit: Callable[..., Any]) -> None:
    page = visit("shipped", "#q=nothing-like-it")
    assert page.is_visible("text=No paper meets all of this") and page.is_disabled("#download")
    assert page.text_content("#count") == "0 of 132 papers"


def test_an_empty_library_is_said(visit: Callable[..., Any]) -> None:
    page = visit("empty")
    assert page.is_visible("text=The library holds no papers yet") and page.text_content("#count") == "0 papers"
    assert not page.is_visible("#dates") and page.is_disabled("#download")


def test_matches_are_marked_and_nothing_else_is_changed(visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped", f"#q=(quant+%22llm+pruning%22)+OR+poincare&paper={AWP}")
    marks = page.eval_on_selector_all(".open .abstract mark", "marks => marks.map((mark) => mark.textContent)")
    assert "LLM\npruning" in marks and "quant" in marks  # a phrase that a line break is in
    assert "Poincaré" in page.eval_on_selector_all(".reason mark, h2 mark, .meta mark", "all => all.map((mark) => mark.textContent)")
    by_id = {record.id: record for record in shipped}
    for name, title in page.eval_on_selector_all(
        ".paper", "all => all.map((row) => [row.dataset.id, row.querySelector('h2').textContent])"
    ):
        assert title == by_id[name].title
    assert page.text_content(".open .abstract") == by_id[AWP].abstract


@pytest.mark.parametrize(
    ("name", "word"), [("module", "kv"), ("status", "implemented"), ("kind", "survey"), ("fit", "near"), ("domain", "recsys")]
)
def test_each_filter(name: str, word: str, visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped")
    choose(page, name, word)
    found = [record.id for record in shipped if word in values(record, name)]
    assert shown(page) == found[:ROWS] and 0 < len(found) < len(shipped)
    assert page.text_content("#count") == f"{len(found)} of 132 papers"
    assert facet(page, name)[word] == len(found)
    page.click("#clear")
    assert page.text_content("#count") == "132 papers" and not page.is_visible("#clear")


def test_counts_say_what_there_would_be(visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped")
    by_status = counts(shipped, STATUSES)["status"]
    assert facet(page, "status") == by_status and facet(page, "kind") == counts(shipped, STATUSES)["kind"]
    page.fill("#query", "token")
    found = Index(shipped).search("token")
    assert facet(page, "kind") == {kind: sum(record.kind == kind for record in found) for kind in facet(page, "kind")}
    choose(page, "module", "tokens")
    choose(page, "module", "decode")
    both = [record for record in found if {"tokens", "decode"} & set(values(record, "module"))]
    assert page.text_content("#count") == f"{len(both)} of 132 papers"
    assert facet(page, "fit") == {fit: sum(record.fit == fit for record in both) for fit in facet(page, "fit")}
    # A facet's own choice does not count against its other words.
    assert facet(page, "module") == {word: sum(word in values(r, "module") for r in found) for word in facet(page, "module")}


def test_days_are_included_at_both_ends(visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped")
    page.fill("#since", "2025-06-07")
    page.fill("#until", "2025-06-08")
    assert shown(page) == [r.id for r in shipped if date(2025, 6, 7) <= r.published <= date(2025, 6, 8)]
    assert facet(page, "status")["planned"] < 65 and page.url.endswith("#since=2025-06-07&until=2025-06-08")


def test_sorting(visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped")
    page.select_option("#sort", "score")
    assert shown(page)[:9] == [r.id for r in sorted(shipped, key=lambda r: -len(r.title))][:9]
    page.select_option("#sort", "date")
    assert shown(page) == [record.id for record in shipped[:ROWS]]
    page = visit("many")
    assert page.locator("#sort option").all_text_contents() == ["newest first", "by title"]  # no scores
    page.select_option("#sort", "title")
    assert page.locator("#papers h2").all_text_contents() == [f"Paper {number}" for number in range(ROWS)]


def values(record: Record, name: str) -> list[str | None]:
    if name == "status":
        return [STATUSES.of(record).word]
    return [getattr(record, name), *(record.also if name == "module" else ())]


# ---- one paper


def test_a_paper_opens_and_closes(visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped", "#q=AWP")
    row = page.locator(f".paper[data-id='{AWP}']")
    row.locator("h2 button").click()
    assert page.url.endswith(f"#q=AWP&paper={AWP}") and row.locator("h2 button").get_attribute("aria-expanded") == "true"
    facts = row.locator("dl").inner_text()
    assert "4 bits: perplexity 7 to 8" in facts and "thrifty.weights.solve.awp" in facts and "Hassan Mansour" in facts
    links = row.locator("a").evaluate_all("all => all.map((link) => link.getAttribute('href'))")
    assert links == [f"https://arxiv.org/abs/{AWP}v1", f"#paper={AWP}"]  # the method is named, for there is no address of it
    assert "method awp" in row.locator(".links").inner_text()
    row.locator("h2 button").click()
    assert row.locator(".abstract").count() == 0 and page.url.endswith("#q=AWP")


@pytest.mark.parametrize("anchor", ["auto", "none"])  # what browsers do for themselves, and not all of them
def test_one_paper_is_open_and_what_was_pressed_stays_in_its_place(anchor: str, visit: Callable[..., Any]) -> None:
    page = visit("shipped")
    page.evaluate("anchor => { document.documentElement.style.overflowAnchor = anchor; }", anchor)
    titles = page.locator("#papers h2 button")
    titles.nth(2).click()
    titles.nth(4).scroll_into_view_if_needed()
    before = titles.nth(4).bounding_box()["y"]
    titles.nth(4).click()
    assert page.locator(".paper.open").count() == 1 and abs(titles.nth(4).bounding_box()["y"] - before) < 2


def test_links_to_the_documentation_and_to_code(visit: Callable[..., Any]) -> None:
    page = visit("linked", f"#paper={AWP}")
    assert page.get_attribute(".open a:has-text('method awp')", "href") == "https://docs.example/methods/#awp"
    page = visit("shipped", "#paper=2506.05664")
    assert page.get_attribute(".open a:has-text('CSU-ModelCompression/BAQ')", "href") == "https://github.com/CSU-ModelCompression/BAQ"


def test_paragraphs_are_kept_to_the_sign(visit: Callable[..., Any], shipped: list[Record]) -> None:
    record = next(record for record in shipped if record.abstract.count("\n  ") >= 2)
    page = visit("shipped", f"#paper={record.id}")
    paragraphs = page.locator(".open .abstract p").all_text_contents()
    assert "".join(paragraphs) == record.abstract and len(paragraphs) == record.abstract.count("\n  ") + 1
    assert all(text.startswith("  ") for text in paragraphs[1:])


# ---- the address


@pytest.mark.parametrize("paper", [AWP, AWP + "v1"])
def test_a_link_to_a_paper_shows_it(paper: str, visit: Callable[..., Any]) -> None:
    page = visit("shipped", f"#paper={paper}")
    row = page.locator(f".paper.open[data-id='{AWP}']")
    assert row.locator(".abstract").count() == 1
    top = row.bounding_box()["y"]
    assert 0 <= top < WIDE["height"] / 2


def test_a_link_to_a_paper_far_down_shows_it_above_the_list(visit: Callable[..., Any]) -> None:
    page = visit("many", "#paper=2501.00000")  # the oldest of 300
    assert page.locator("#linked .paper.open").get_attribute("data-id") == "2501.00000"
    assert len(shown(page)) == ROWS and page.text_content("#count") == "300 papers"
    page.click("#linked h2 button")
    assert not page.is_visible("#linked") and page.url.endswith("#")


def test_a_link_to_no_paper_says_so(visit: Callable[..., Any]) -> None:
    page = visit("shipped", "#paper=2506.99999")
    assert page.text_content("#told") == "There is no paper 2506.99999 in this library." and len(shown(page)) == ROWS


def test_an_old_id_is_a_link_too(visit: Callable[..., Any]) -> None:
    page = visit("bad")
    page.click("text=Old and unread")
    again = visit("bad", "#" + page.url.split("#")[1])
    assert chosen(again)["open"] == ["hep-th/9901001"]


def test_an_address_brings_all_back(visit: Callable[..., Any]) -> None:
    page = visit("shipped")
    page.fill("#query", '"language models" -video (é OR model)')
    for name, word in (("module", "quantize"), ("module", "prune"), ("status", "planned"), ("status", "implemented"), ("kind", "method")):
        choose(page, name, word)
    page.fill("#since", "2025-06-07")
    page.fill("#until", "2025-06-11")
    page.select_option("#sort", "score")
    page.locator("#papers h2 button").nth(1).click()
    before = chosen(page)
    assert len(before["open"]) == 1 and len(before["boxes"]) == 5 and 1 < len(before["shown"]) <= ROWS
    assert chosen(visit("shipped", "#" + page.url.split("#")[1])) == before
    page.reload()
    assert chosen(page) == before


def test_an_address_that_makes_no_sense_is_no_harm(visit: Callable[..., Any]) -> None:
    page = visit("shipped", "#module=<b>&sort=toString&since=yesterday&q=%E0%A4%A&paper=%22%5D&kind=nothing")
    assert page.text_content("#count").endswith("of 132 papers") and page.input_value("#sort") == "date"


def test_back_and_forward(visit: Callable[..., Any]) -> None:
    page = visit("shipped")
    states = [chosen(page)]

    def step(action: Callable[[], Any]) -> None:
        action()
        states.append(chosen(page))

    step(lambda: page.locator("#query").press_sequentially("quant"))  # one step, not five
    step(lambda: choose(page, "module", "quantize"))
    step(lambda: page.locator("#papers h2 button").first.click())
    step(lambda: page.locator("#papers h2 button").nth(1).click())
    step(lambda: page.fill("#query", "quantiz"))
    step(lambda: page.locator("#papers h2 button").nth(2).click())
    step(lambda: page.select_option("#sort", "title"))
    for before in reversed(states[:-1]):
        page.go_back()
        assert chosen(page) == before
    for after in states[1:]:
        page.go_forward()
        assert chosen(page) == after


def test_typing_that_stops_is_remembered(visit: Callable[..., Any]) -> None:
    page = visit("shipped")
    page.locator("#query").press_sequentially("posit")
    page.wait_for_url("**#q=posit")
    page.go_back()
    assert page.input_value("#query") == "" and len(shown(page)) == ROWS


def test_the_link_is_copied(visit: Callable[..., Any]) -> None:
    page = visit("shipped", f"#q=awp&paper={AWP}")
    page.click("text=Copy link")
    assert page.evaluate("navigator.clipboard.readText()") == page.url.split("#")[0] + f"#paper={AWP}"
    assert page.text_content("#told") == "Copied the link."


# ---- exports


def test_all_shown_is_exported_as_python_writes_it(visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped", "#q=quant")
    found = Index(shipped).search("quant")
    same(page, found)
    assert len(found) > 20 and page.text_content("#told") == f"papers.csv holds {len(found)} papers as CSV."


def test_hostile_records_are_exported_as_python_writes_them(visit: Callable[..., Any]) -> None:
    same(visit("bad", "#q=tables"), [BAD])


def same(page: Any, found: list[Record]) -> None:
    """The four forms equal what Python writes, and can be read back."""
    lines = [f"- [{escaped(r.title)}]({r.address}), {escaped(short_authors(r))}, {r.published}\n" for r in found]
    assert export(page, "Markdown") == "".join(lines)
    entries = export(page, "BibTeX")
    assert entries == "\n".join(map(bibtex, found)) and entries.count("@misc{") == len(found)
    papers = json.loads(export(page, "JSON"))
    assert papers == json.loads(json.dumps([plain(record, STATUSES) for record in found]))
    rest = [{name: value for name, value in entry.items() if name not in ("address", "status")} for entry in papers]
    assert [Record.model_validate(entry) for entry in rest] == found
    text = export(page, "CSV")
    assert text == table(found, STATUSES)
    assert [row["title"] for row in csv.DictReader(io.StringIO(text, newline=""))] == [record.title for record in found]


def test_a_selection_is_exported(visit: Callable[..., Any], shipped: list[Record]) -> None:
    page = visit("shipped")
    boxes = page.locator("#papers > .paper > input")
    boxes.nth(3).check()
    boxes.nth(1).check()
    page.fill("#query", "nothing-like-it")  # it outlasts a search
    assert page.text_content("#exported") == "Export 2 selected as"
    assert [entry["id"] for entry in json.loads(export(page, "JSON"))] == [shipped[1].id, shipped[3].id]
    page.select_option("#form", "BibTeX")
    page.click("#copy")
    assert page.evaluate("navigator.clipboard.readText()") == f"{bibtex(shipped[1])}\n{bibtex(shipped[3])}"
    assert page.text_content("#told") == "Copied 2 papers as BibTeX."
    page.click("#none")
    assert page.text_content("#exported") == "Export all shown as" and page.is_disabled("#download")


def test_all_shown_are_selected(visit: Callable[..., Any]) -> None:
    page = visit("many")
    page.check("#every")
    assert page.text_content("#exported") == "Export 300 selected as"
    page.locator("#papers > .paper > input").first.uncheck()
    assert page.evaluate("document.getElementById('every').indeterminate") and page.text_content("#exported") == "Export 299 selected as"
    page.check("#every")
    page.uncheck("#every")
    assert page.text_content("#exported") == "Export all shown as"


# ---- hostile records, keys, eyes


def test_a_hostile_record_is_text(visit: Callable[..., Any]) -> None:
    for query in ("", "script OR img OR svg OR b"):
        page = visit("bad", f"#q={query}&paper={BAD.id}")
        assert page.text_content(".open h2") == BAD.title and page.text_content(".open .abstract") == BAD.abstract
        assert page.text_content(".open .reason") == BAD.reason and BAD.name in page.locator(".open .badges").inner_text()
        assert page.locator("img, svg, b").count() == 0 and page.locator("script").count() == 1
        links = page.locator(".open a").evaluate_all("all => all.map((link) => link.protocol)")
        assert set(links) == {"https:", "file:"} and "javascript:alert(3)" in page.locator(".open .links").inner_text()


def test_keys(visit: Callable[..., Any]) -> None:
    page = visit("shipped")
    active = "document.activeElement.id || document.activeElement.closest('[data-id]')?.dataset.id || document.activeElement.tagName"
    page.keyboard.press("/")
    assert page.evaluate(active) == "query"
    page.keyboard.type("a/b")  # in the box a slash is a slash
    assert page.input_value("#query") == "a/b"
    page.fill("#query", "posit")
    page.keyboard.press("Tab")
    assert page.evaluate(active) == "SUMMARY"
    page.keyboard.press("Tab")
    assert page.evaluate(active) == "skip" and page.is_visible("#skip")
    page.keyboard.press("Enter")
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate(active))
    first = shown(page)[0]
    assert order == ["sort", "every", "form", "download", "copy", first]
    page.keyboard.press("Space")
    assert page.locator("#papers > .paper > input").first.is_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator(".paper.open").get_attribute("data-id") == first
    page.keyboard.press("/")
    page.keyboard.press("Enter")  # from the box to the first paper
    assert page.evaluate(active) == first
    page.keyboard.press("Enter")
    assert page.locator(".paper.open").count() == 0


def test_everything_to_press_has_a_name(visit: Callable[..., Any]) -> None:
    page = visit("shipped", f"#paper={AWP}")
    for role in ("checkbox", "button", "link", "combobox", "searchbox"):
        for one in page.get_by_role(role).all():
            named = one.evaluate(
                "e => (e.getAttribute('aria-label') || [...(e.labels ?? [])].map((l) => l.innerText).join() || e.textContent).trim()"
            )
            assert named, one.evaluate("e => e.outerHTML")
    assert page.locator("h1").count() == 1 and page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize("name", ["shipped", "bad"])
def test_a_phone_needs_no_sideways_scrolling(name: str, visit: Callable[..., Any]) -> None:
    page = visit(name, f"#paper={AWP if name == 'shipped' else BAD.id}")
    page.set_viewport_size(PHONE)
    assert not page.is_visible("#facets") and page.is_visible(".open .abstract")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.click("#filters > summary")
    page.click("#help summary")
    page.fill("#query", '"' + "x" * 200)
    assert page.is_visible("#facets") and page.is_visible("#fault")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_rows_come_as_they_are_needed(visit: Callable[..., Any]) -> None:
    page = visit("many")
    assert len(shown(page)) == ROWS and page.text_content("#more") == "Show more (275 papers left)"
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("() => document.querySelectorAll('#papers > .paper').length > 25")
    page.fill("#query", "paper")
    assert len(shown(page)) == ROWS and 0 < page.locator("#count").bounding_box()["y"] < WIDE["height"] / 2
    for _ in range(11):
        page.evaluate("document.getElementById('more').click()")
    assert len(set(shown(page))) == 300 and not page.is_visible("#more")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(scheme: str, visit: Callable[..., Any]) -> None:
    page = visit("bad", f"#q=a+OR+why&paper={BAD.id}", scheme=scheme)
    page.click("#help summary")
    page.evaluate("document.querySelectorAll('#facets details').forEach((one) => { one.open = true; })")
    page.fill("#query", "a OR why OR (")
    ratios = page.evaluate(CONTRAST)
    assert {*WORDS, "How to search", "placeholder"} <= {text for _, text in ratios} and len(ratios) > 80
    assert min(ratios) >= [4.5, ""], min(ratios)
    assert (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {"light": "rgb(252, 252, 251)", "dark": "rgb(22, 24, 27)"}[scheme]
    )


CONTRAST = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = channels(color).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    if (channels(color)[3] !== 0) return color;
    return element.parentElement ? paper(element.parentElement) : "rgb(255, 255, 255)";
  };
  const ratio = (ink, under) => {
    const [low, high] = [light(ink), light(under)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("script, :disabled, option")) continue;
    found.push([ratio(getComputedStyle(element).color, paper(element)), node.data]);
  }
  for (const field of document.querySelectorAll("#query, select, input[type=date]")) {
    found.push([ratio(getComputedStyle(field).color, paper(field)), field.id]);
  }
  const box = document.getElementById("query");
  found.push([ratio(getComputedStyle(box, "::placeholder").color, paper(box)), "placeholder"]);
  return found;
}"""
