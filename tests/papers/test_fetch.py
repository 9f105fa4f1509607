"""Fetching from a local server that answers as arXiv does, faults included: nothing is lost, nothing comes twice."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import date
from pathlib import Path

import pytest

from tests.papers.atom import Server, day, entry, page, serving
from tests.papers.samples import HOSTILE, paper
from thrifty.base.errors import InputError, RunError
from thrifty.cli.main import main
from thrifty.papers.classic import Digest
from thrifty.papers.fetch import ADDRESS, QUERY, Query, fetch, read_query
from thrifty.papers.library import Library

FIRST, LAST = day(6), day(12)
QUICK = Query(key=("sparse",), background=("LLM",), page_size=3, delay_seconds=3, retries=4)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    with serving() as found:
        monkeypatch.setenv(ADDRESS, found.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found


class Fetcher:
    """Fetches into a library of its own, and notes how long it would have slept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slept: list[float] = []

    @property
    def library(self) -> Library:
        return Library(self.folder / "own", self.folder / "none")

    def __call__(self, query: Query = QUICK, since: date = FIRST, until: date = LAST):
        return fetch(self.library, query, since, until, self.folder / "cache", self.slept.append)


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path)


def papers(count: int, **more) -> list:
    return [paper(f"2506.{number:05}", abstract=f"A sparse LLM, number {number}.", **more) for number in range(1, count + 1)]


def once(number: int, answer):
    """A fault of one request only."""
    return lambda asked, plain: answer(plain) if asked == number else plain


def starts(server: Server) -> list[int]:
    return [int(asked["start"]) for asked in server.asked]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9, 10])
def test_every_page_is_read(count: int, server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(count)
    found = fetcher()
    assert len(found.ids) == len(found.added.new) == count
    assert starts(server) == list(range(0, max(count, 1), 3)) and found.requests == len(server.asked)
    assert fetcher.library.records.keys() == {record.id for record in server.papers}


def test_what_is_asked(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(1)
    fetcher(read_query(None))
    assert server.asked[0] == {
        "search_query": (
            '(abs:sparse OR abs:pruning OR abs:sparsity OR abs:quantization OR abs:quantize OR abs:"low-bit" OR abs:acceleration OR abs:KV)'
            " AND (abs:LLM OR abs:LLMs OR abs:attention OR abs:transformer) ANDNOT (abs:spiking OR abs:BEV)"
            " AND submittedDate:[202506060000 TO 202506122359]"
        ),
        "sortBy": "submittedDate",
        "sortOrder": "ascending",
        "start": "0",
        "max_results": "100",
    }


def test_records_are_as_the_api_says(server: Server, fetcher: Fetcher) -> None:
    text = "First line\nsecond line\n  A new paragraph: https://github.com/a/b."
    server.papers = [
        paper("2506.00001", version=3, updated=day(12), title="A: B", abstract=text, categories=("cs.LG", "cs.CL")),
        paper("hep-th/9901001", published=date(1999, 1, 1), updated=date(1999, 1, 1), categories=("hep-th",)),
        *(
            paper(f"2506.1000{n}", title=title, authors=(title,), abstract=title, updated=day(10), categories=("cs.CV",))
            for n, title in enumerate(HOSTILE)
        ),
    ]
    fetcher()
    for record in server.papers:
        expected = record.model_copy(update={"code": ("https://github.com/a/b",) if record.id == "2506.00001" else ()})
        assert fetcher.library.records[record.id] == expected


def test_titles_over_several_lines_are_one(server: Server, fetcher: Fetcher) -> None:
    server.papers = [paper().model_copy(update={"title": "Two\n  lines"})]
    fetcher()
    assert fetcher.library.record("2506.00001").title == "Two lines"


def test_it_waits_between_requests(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)
    fetcher()
    assert fetcher.slept == [0.0, 3.0, 3.0] and Query(key=("a",), background=("b",)).delay_seconds == 3.0


def test_busy_in_the_middle(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)
    server.fault = lambda asked, plain: (503, {"Retry-After": "20"}, b"busy") if asked in (2, 3) else plain
    assert len(fetcher().ids) == 9
    assert starts(server) == [0, 3, 3, 3, 6] and fetcher.slept == [0.0, 3.0, 20.0, 20.0, 3.0]


def test_back_off_without_a_word_from_the_server(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(2)
    server.fault = lambda asked, plain: (429, {}, b"") if asked <= 3 else plain
    assert len(fetcher().ids) == 2 and fetcher.slept == [0.0, 6.0, 12.0, 24.0]


FAULTS = {
    "cut off": lambda plain: (200, {}, plain[2][:-40]),
    "cut between entries": lambda plain: (200, {}, plain[2][: plain[2].rindex(b"<entry>")]),
    "empty": lambda plain: (200, {}, page([], 9, 3, 3)),
    "short": lambda plain: (200, {}, page([entry(paper("2506.00004"))], 9, 3, 3)),
    "no feed at all": lambda plain: (200, {}, b"<html>maintenance</html>"),
    "nothing": lambda plain: (200, {}, b""),
    "an entry without an id": lambda plain: (200, {}, plain[2].replace(b"<id>http://arxiv.org/abs/2506.00005v1</id>", b"")),
    "an entry without a date": lambda plain: (
        200,
        {},
        plain[2].replace(b"<published>", b"<printed>").replace(b"</published>", b"</printed>"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_page_that_is_not_whole_is_asked_for_again(fault: str, server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)
    server.fault = once(2, FAULTS[fault])
    assert len(fetcher().ids) == 9 and starts(server) == [0, 3, 3, 6]
    assert len(fetcher.library.records) == 9


@pytest.mark.parametrize("fault", FAULTS)
def test_after_all_retries_it_says_so_and_goes_on_later(fault: str, server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)
    server.fault = lambda asked, plain: FAULTS[fault](plain) if b"2506.00005v1" in plain[2] else plain
    with pytest.raises(RunError, match=r"page that begins with paper 4: .*, after 4 retries; what came before is kept"):
        fetcher()
    assert not (fetcher.folder / "own").exists() and starts(server) == [0, 3, 3, 3, 3, 3]
    server.asked.clear()
    server.fault = lambda asked, plain: plain
    assert len(fetcher().ids) == 9 and starts(server) == [3, 6]


def test_a_duplicate_at_the_boundary_is_one_paper(server: Server, fetcher: Fetcher) -> None:
    """A paper that moves from one page to the next while they are asked for: seen twice, and another one not at all."""
    server.papers = papers(6)
    shifted = page([entry(record) for record in server.papers[2:5]], 6, 3, 3)
    server.fault = once(2, lambda plain: (200, {}, shifted))
    found = fetcher()
    assert len(found.ids) == 6 and starts(server) == [0, 3, 0, 3]
    assert sorted(found.added.new) == sorted(record.id for record in server.papers)


def test_a_shift_that_stays_is_an_error(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(6)
    server.papers[3] = server.papers[2]
    with pytest.raises(RunError, match="arXiv has 6 papers for this query, but its pages hold 5"):
        fetcher()
    assert not (fetcher.folder / "own").exists()


def test_killed_in_the_middle_it_goes_on(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)

    def killed(seconds: float) -> None:
        if len(server.asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(fetcher.library, QUICK, day(6), day(12), fetcher.folder / "cache", killed)
    server.asked.clear()
    assert len(fetcher().ids) == 9 and starts(server) == [6]


def test_no_server_at_all(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:9/api?{}")
    with pytest.raises(RunError, match=r"no answer \(ConnectionError\)"):
        fetcher()


def test_a_query_that_arxiv_refuses_is_not_asked_again(server: Server, fetcher: Fetcher) -> None:
    server.fault = lambda asked, plain: (400, {}, b"")
    with pytest.raises(RunError, match="does not accept the query"):
        fetcher()
    assert len(server.asked) == 1


def test_across_runs_nothing_is_lost_or_repeated(server: Server, fetcher: Fetcher) -> None:
    """Overlapping windows, and a paper of an earlier day that is announced late."""
    server.papers = papers(4)
    assert len(fetcher().added.new) == 4
    late = paper("2506.90001", published=day(7))
    server.papers = [*server.papers, late, paper("2506.90002", published=day(12))]
    found = fetcher(since=day(6), until=day(13))
    assert found.added.new == ("2506.90001", "2506.90002") and len(found.added.known) == 4
    assert not fetcher(since=day(7), until=day(13)).added.new


def test_a_newer_version_keeps_what_readers_said(server: Server, fetcher: Fetcher) -> None:
    fetcher.library.add([paper("2506.00001", name="Sparse One", fit="core", module="prune", title="Sparse: one")])
    server.papers = [paper("2506.00001", version=2, title="Sparse: one, revised", abstract="New.")]
    assert fetcher().added.changed == ("2506.00001",)
    after = fetcher.library.record("2506.00001")
    assert (after.version, after.title, after.abstract, after.fit, after.name) == (2, "Sparse: one, revised", "New.", "core", "Sparse One")


def test_within_half_a_day_nothing_is_asked_again(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(4)
    fetcher()
    age(fetcher.folder, hours=11)
    asked = len(server.asked)
    assert len(fetcher().ids) == 4 and len(server.asked) == asked


def test_later_everything_is_asked_again(server: Server, fetcher: Fetcher) -> None:
    """A paper may be announced long after its day."""
    server.papers = papers(4)
    fetcher()
    age(fetcher.folder, hours=13)
    server.papers = papers(5)
    assert fetcher().added.new == ("2506.00005",)


def test_old_pages_of_a_stopped_fetch_are_not_used(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)
    server.fault = lambda asked, plain: (503, {}, b"") if asked > 2 else plain
    with pytest.raises(RunError):
        fetcher()
    age(fetcher.folder, hours=13)
    server.fault = lambda asked, plain: plain
    server.papers = [paper("2506.90001"), *papers(8)]  # as many as before, and every one in another place
    assert set(fetcher().ids) == {record.id for record in server.papers}


def test_papers_that_come_in_between_two_tries(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)
    server.fault = lambda asked, plain: (503, {}, b"") if asked > 1 else plain
    with pytest.raises(RunError):
        fetcher()
    server.fault = lambda asked, plain: plain
    server.papers = [paper("2506.90001"), *papers(9)]
    assert set(fetcher().ids) == {record.id for record in server.papers}


def test_a_page_that_knows_of_no_papers_is_no_end(server: Server, fetcher: Fetcher) -> None:
    """arXiv now and then answers that there are none, in the middle of many."""
    server.papers = papers(9)
    server.fault = once(2, lambda plain: (200, {}, page([], 0, 3, 3)))
    assert len(fetcher().ids) == 9


def test_pages_that_go_on_to_disagree_are_an_error(server: Server, fetcher: Fetcher) -> None:
    server.papers = papers(9)
    server.fault = lambda asked, plain: (200, {}, page([], 0, 3, 3)) if b"2506.00005v1" in plain[2] else plain
    with pytest.raises(RunError, match="arXiv has 0 or 9 papers for this query, but its pages hold 6"):
        fetcher()
    assert not (fetcher.folder / "own").exists()


def age(folder: Path, hours: float) -> None:
    """Make the pages of the cache so old."""
    pages = list((folder / "cache").rglob("*.xml"))
    assert pages
    for place in pages:
        then = time.time() - hours * 3600
        os.utime(place, (then, then))


def test_an_entry_that_makes_no_record_is_named(server: Server, fetcher: Fetcher) -> None:
    server.papers = [paper().model_copy(update={"authors": ()})]
    with pytest.raises(RunError, match=r"entry http://arxiv\.org/abs/2506\.00001v1 makes no record: authors"):
        fetcher()


def test_days_the_wrong_way_round(fetcher: Fetcher) -> None:
    with pytest.raises(InputError, match="is after the last"):
        fetcher(since=day(12), until=day(6))


def test_without_the_package(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arxiv", None)
    with pytest.raises(InputError, match=r"pip install 'thrifty\[papers\]'"):
        fetcher()


# -- the query file ----------------------------------------------------------------------------------------------------


def test_the_published_defaults() -> None:
    query = read_query(None)
    assert query.key == ("sparse", "pruning", "sparsity", "quantization", "quantize", "low-bit", "acceleration", "KV")
    assert query.background == ("LLM", "LLMs", "attention", "transformer") and query.excluded == ("spiking", "BEV")
    assert (query.page_size, query.delay_seconds, query.retries) == (100, 3.0, 5) and read_query(QUERY) == query


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key: [a]\nbackground: []\n", "line 2, background: "),
        ("key: [a]\nbackground: [b]\npage_size: 0\n", "line 3, page_size: "),
        ("key: [a]\nbackground: [b]\ndelay: 3\n", "line 3, delay: "),
        ("background: [b]\n", "line 1, key: Field required"),
        ("key: ['a\"b']\nbackground: [b]\n", "line 1, key: "),
        ("key: [a\nbackground: [b]\n", ": this is no YAML"),
        ("- a\n", "line 1, the whole file: "),
    ],
)
def test_a_bad_query_file_names_line_and_field(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "query.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_query(path)
    assert str(path) in str(caught.value) and said in str(caught.value), str(caught.value)


def test_a_query_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_query(tmp_path / "none.yaml")


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.setenv("THRIFTY_PAPERS", str(tmp_path / "own"))
    query = tmp_path / "query.yaml"
    query.write_text("key: [sparse]\nbackground: [LLM]\npage_size: 3\ndelay_seconds: 0\n")

    def run(*words: str) -> dict:
        assert main(["papers", "fetch", "--query", str(query), "--json", *words]) == 0, capfd.readouterr().err
        return json.loads(capfd.readouterr().out)

    return run


def test_the_command_makes_the_digest_of_the_last_day(command, server: Server, tmp_path: Path) -> None:
    server.papers = [paper(f"2506.9000{n}", published=day(13 + n)) for n in range(4)]
    found = command("--until", "2025-06-20")
    assert found["since"] == "2025-05-30" and found["until"] == "2025-06-20" and len(found["new"]) == 4
    assert server.asked[0]["search_query"].endswith("submittedDate:[202505300000 TO 202506202359]")
    ids = Library(tmp_path / "own").digests[date(2025, 6, 20)]
    assert ids == ("2506.90003", "2506.90002", "2506.90001", "2506.90000")  # newest first
    # A paper that was announced late stands in the next digest, and only there.
    server.papers = [*server.papers, paper("2506.80001", published=day(14)), paper("2506.90009", published=day(25))]
    command("--until", "2025-06-27")
    digests = Library(tmp_path / "own").digests
    assert digests[date(2025, 6, 27)] == ("2506.90009", "2506.80001") and digests[date(2025, 6, 20)] == ids


def test_the_same_day_again_adds_to_its_digest(command, server: Server, tmp_path: Path) -> None:
    server.papers = [paper("2506.90000", published=day(14))]
    command("--until", "2025-06-20")
    server.papers = [*server.papers, paper("2506.90001", published=day(15))]
    age(tmp_path / "own", hours=13)
    command("--since", "2025-05-30", "--until", "2025-06-20")
    assert Library(tmp_path / "own").digests[date(2025, 6, 20)] == ("2506.90001", "2506.90000")


def test_a_digest_that_was_not_written_is_written_by_the_next_run(command, server: Server, tmp_path: Path, monkeypatch) -> None:
    server.papers = [paper("2506.90000", published=day(14))]

    def stopped(self: Library, digest: Digest) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Library, "add_digest", stopped)
        assert main(["papers", "fetch", "--query", str(tmp_path / "query.yaml"), "--until", "2025-06-20"]) == 130
    library = Library(tmp_path / "own")
    assert "2506.90000" in library.records and date(2025, 6, 20) not in library.digests
    command("--until", "2025-06-20")
    assert Library(tmp_path / "own").digests[date(2025, 6, 20)] == ("2506.90000",)


def test_it_goes_on_from_before_the_newest_digest(command, server: Server, tmp_path: Path) -> None:
    """A paper that was submitted before the day of a digest and announced after it is in the next one."""
    command("--until", "2025-06-20")
    server.papers = [paper("2506.90000", published=day(19))]
    assert command("--until", "2025-06-27")["new"] == ["2506.90000"]
    assert Library(tmp_path / "own").digests[date(2025, 6, 27)] == ("2506.90000",)
