"""Papers of some days from the arXiv API, politely, and each of them once.

Pages lie in a cache as they came, so a fetch that was stopped goes on where it was. They are used for half a day (`KEPT`): arXiv's answers
change once a day, and a paper may be announced weeks after its day. Papers are known by their ids, so asking again adds only what is new.

The `arxiv` package builds the requests and reads the answers. Whether an answer is whole is checked here: that package passes over what a
page that was cut off, is empty or holds damaged entries has lost.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from xml.etree import ElementTree

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thrifty.base.errors import InputError, RunError
from thrifty.base.events import note, task
from thrifty.base.store import content_key, write_bytes
from thrifty.papers.library import Added, Library
from thrifty.papers.record import Record, code_addresses

if TYPE_CHECKING:
    import arxiv

QUERY = Path(__file__).with_name("fetch.yaml")
"""The query as it is shipped."""
ADDRESS = "THRIFTY_ARXIV_URL"
"""Environment variable: where the API is, if not at arXiv; `{}` stands for the query."""
KEPT = timedelta(hours=12)
"""So long a page is used again."""
LATE = timedelta(days=14)
"""A fetch that goes on from a digest begins so long before it: papers are announced after their day, now and then by more than a week."""

_ENTRY, _TOTAL = "{http://www.w3.org/2005/Atom}entry", "{http://a9.com/-/spec/opensearch/1.1/}totalResults"
_TIMEOUT = 60.0

Word = Annotated[str, Field(pattern=r'^[^"\n]*[^"\s][^"\n]*$')]


class Query(BaseModel):
    """What is asked for, and how. delay_seconds: between requests; retries: of each request that fails."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Annotated[tuple[Word, ...], Field(min_length=1)]
    background: Annotated[tuple[Word, ...], Field(min_length=1)]
    excluded: tuple[Word, ...] = ()
    page_size: Annotated[int, Field(ge=1, le=2000)] = 100
    delay_seconds: Annotated[float, Field(ge=0)] = 3.0
    retries: Annotated[int, Field(ge=0, le=20)] = 5

    def expression(self, since: date, until: date) -> str:
        """The query in arXiv's language, for papers first submitted from one day to another, both included."""
        words = f"({_any(self.key)}) AND ({_any(self.background)})"
        without = f" ANDNOT ({_any(self.excluded)})" if self.excluded else ""
        return f"{words}{without} AND submittedDate:[{since:%Y%m%d}0000 TO {until:%Y%m%d}2359]"


def _any(words: tuple[str, ...]) -> str:
    return " OR ".join(f"abs:{word}" if word.isalnum() else f'abs:"{word}"' for word in words)


def read_query(path: Path | None) -> Query:
    """The query of a file, or the shipped one. Raises InputError that names file, line and field."""
    path = path or QUERY
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: this is no YAML ({getattr(error, 'problem', None) or error})") from None
    try:
        return Query.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "the whole file"
        line = next((number for number, line in enumerate(text.split("\n"), 1) if line.startswith(f"{field}:")), 1)
        raise InputError(f"{path}, line {line}, {field}: {first['msg']}; {QUERY} shows how it is written") from None


@dataclass(frozen=True)
class Fetched:
    """ids: the papers that arXiv has for the query; requests: how often it was asked; added: what that changed in the library."""

    ids: tuple[str, ...]
    requests: int
    added: Added


def fetch(library: Library, query: Query, since: date, until: date, cache: Path, sleep: Callable[[float], None] = time.sleep) -> Fetched:
    """Keep every paper that arXiv has for the query and these days, both included.

    cache: where pages lie. Raises InputError for days the wrong way round and where the package `arxiv` is
    missing, RunError when arXiv does not answer as it should after all retries; what came until then is kept, and the same call goes on.
    """
    if since > until:
        raise InputError(f"the first day, {since}, is after the last, {until}")
    pages = _Pages(query, query.expression(since, until), cache, sleep)
    _forget_old(cache)
    records, totals = pages.records()
    if totals != {len(records)}:  # papers came in, or moved from page to page, while they were asked for
        note(f"arXiv has {_or(totals)} papers for this query, {len(records)} came; asking for all of them again")
        pages.forget()
        records, totals = pages.records()
    if totals != {len(records)}:
        pages.forget()
        raise RunError(f"arXiv has {_or(totals)} papers for this query, but its pages hold {len(records)}; try again later")
    return Fetched(tuple(records), pages.requests, library.add(records.values()))


def to_record(result: arxiv.Result) -> Record:
    """The record of one answer. Raises RunError that names a paper that makes none."""
    name, _, version = result.get_short_id().rpartition("v")
    abstract = result.summary.strip("\r\n").rstrip(" ")
    # The API sets two spaces before the first line of an abstract, and of each further paragraph.
    abstract = abstract.removeprefix("  ")
    try:
        return Record(
            id=name,
            version=int(version),
            published=result.published.date(),
            updated=result.updated.date(),
            title=" ".join(result.title.split()),
            authors=tuple(filter(None, (" ".join(author.name.split()) for author in result.authors))),
            categories=tuple(dict.fromkeys(filter(None, (result.primary_category, *result.categories)))),
            abstract=abstract,
            code=code_addresses(abstract),
        )
    except (ValidationError, ValueError) as error:
        said = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("id",), "msg": str(error)}
        raise RunError(f"arXiv's entry {result.entry_id} makes no record: {said['loc'][0]}, {said['msg']}") from None


class _Pages:
    """The pages of one query: those in the cache as they are, the others asked for."""

    def __init__(self, query: Query, expression: str, cache: Path, sleep: Callable[[float], None]) -> None:
        self.arxiv = _package()
        self.query, self.sleep = query, sleep
        # Oldest first: a paper that comes in meanwhile stands at the end, and moves none that was read.
        order = {"sort_by": self.arxiv.SortCriterion.SubmittedDate, "sort_order": self.arxiv.SortOrder.Ascending}
        self.search = self.arxiv.Search(query=expression, **order)
        self.client = self.arxiv.Client(page_size=query.page_size)
        self.client.query_url_format = os.environ.get(ADDRESS, self.client.query_url_format)
        self.folder = cache / content_key([expression, query.page_size])[:32]
        self.requests = 0

    def records(self) -> tuple[dict[str, Record], set[int]]:
        """Every paper by id, and how many there are, as each page has it: they may disagree."""
        found: dict[str, Record] = {}
        totals: set[int] = set()
        start = 0
        with task("papers") as advance:
            while start == 0 or start < max(totals):
                content = self.page(start)
                total, _ = _counts(content)
                totals.add(total)
                for result in self.read(content):
                    record = to_record(result)
                    found[record.id] = record
                start += self.query.page_size
                advance(len(found), f"of {total}")
        return found, totals

    def page(self, start: int) -> bytes:
        """The page that begins with this paper: from the cache, or from arXiv."""
        place = self.folder / f"{start:06}.xml"
        if place.exists():
            return place.read_bytes()
        content = self.ask(start)
        write_bytes(place, content)
        return content

    def ask(self, start: int) -> bytes:
        """Ask arXiv until a whole page comes."""
        import requests

        address = self.client._format_url(self.search, start, self.query.page_size)  # the package has no public name for it
        wait = self.query.delay_seconds if self.requests else 0.0
        said = ""
        for attempt in range(self.query.retries + 1):
            self.sleep(wait)
            self.requests += 1
            wait = self.query.delay_seconds * 2 ** (attempt + 1)
            try:
                answer = requests.get(address, headers={"user-agent": f"arxiv.py/{self.arxiv.__version__}"}, timeout=_TIMEOUT)
            except requests.RequestException as error:
                said = f"no answer ({type(error).__name__})"
                continue
            if answer.status_code == 400:
                raise RunError(f"arXiv does not accept the query {self.search.query!r}; look at the words of the query file")
            if answer.status_code != 200:
                said = f"status {answer.status_code}"
                wait = max(wait, _seconds(answer.headers.get("Retry-After")))
                continue
            said = self.fault(answer.content, start)
            if not said:
                return answer.content
        raise RunError(
            f"arXiv did not give the page that begins with paper {start + 1}: {said}, after {self.query.retries} retries; "
            "what came before is kept, and the same command goes on from there"
        )

    def fault(self, content: bytes, start: int) -> str:
        """What is wrong with a page; nothing where it holds all that it should."""
        try:
            total, entries = _counts(content)
        except ElementTree.ParseError:
            return "a page that is cut off"
        expected = max(0, min(self.query.page_size, total - start))
        if entries < expected:
            return f"a page with {entries} papers instead of {expected}"
        if len(list(self.read(content))) < entries:
            return "a page with an entry that has no id or no date"
        return ""

    def read(self, content: bytes) -> Iterator[Any]:
        """The papers of a page."""
        from arxiv import _feed  # what the package itself reads pages with; it has no public name

        yield from _feed.parse(content).results

    def forget(self) -> None:
        """Forget every page."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _forget_old(cache: Path) -> None:
    """Remove pages that are no longer used, of any query."""
    oldest = time.time() - KEPT.total_seconds()
    for page in cache.glob("*/*.xml"):
        with suppress(FileNotFoundError):
            if page.stat().st_mtime < oldest:
                page.unlink()


def _or(totals: set[int]) -> str:
    return " or ".join(map(str, sorted(totals)))


def _package() -> Any:
    try:
        import arxiv
    except ImportError:
        raise InputError("fetching needs the package arxiv: pip install 'thrifty[papers]'") from None
    return arxiv


def _counts(content: bytes) -> tuple[int, int]:
    """How many papers there are in all, and on this page. Raises ParseError for a page that is cut off."""
    root = ElementTree.fromstring(content)
    total = root.findtext(_TOTAL)
    if total is None or not total.strip().isdigit():
        raise ElementTree.ParseError("no number of results")
    return int(total), len(root.findall(_ENTRY))


def _seconds(header: str | None) -> float:
    """What a server asks to wait, in seconds; it may also name a time, which is passed over."""
    return float(header) if header and header.strip().isdigit() else 0.0
