"""The commands of the literature side: `thrifty papers ...`. They hand the library the list of methods; it knows none itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thrifty.base.errors import InputError

if TYPE_CHECKING:
    from thrifty.papers.find import Filter
    from thrifty.papers.library import Added, Library
    from thrifty.papers.record import Record
    from thrifty.papers.status import Statuses

app = typer.Typer(name="papers", help="The catalogue of papers and the weekly digest.", no_args_is_help=True)

Words = list[str] | None
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")]
Module = Annotated[Words, typer.Option("--module", metavar="WORD", help="Only papers of this part of thrifty; may be repeated.")]
Kind = Annotated[Words, typer.Option("--kind", metavar="WORD", help="Only papers of this kind (method, survey, ...); may be repeated.")]
Domain = Annotated[Words, typer.Option("--domain", metavar="WORD", help="Only papers of this domain; may be repeated.")]
Fit = Annotated[Words, typer.Option("--fit", metavar="WORD", help="Only papers that fit so: core, near, far, none; may be repeated.")]
State = Annotated[
    Words, typer.Option("--status", metavar="WORD", help="Only implemented, planned, elsewhere or unread papers; may be repeated.")
]
Since = Annotated[str | None, typer.Option("--since", metavar="DATE", help="First day, YYYY-MM-DD, of the first version; included.")]
Until = Annotated[str | None, typer.Option("--until", metavar="DATE", help="Last day, included.")]
Docs = Annotated[str | None, typer.Option("--docs", metavar="ADDRESS", help="What addresses of the documentation begin with, for links.")]


@app.command("import")
def import_digest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A weekly digest in the classic Markdown layout.")], json: Json = False
) -> None:
    """Keep the papers of a weekly digest."""
    from thrifty.papers import classic

    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a digest: {_why(error)}") from None
    digest = classic.read(text, file)
    with _drawing():
        added = _library().add_digest(digest)
    _tell(f"digest of {digest.day}", {"day": str(digest.day)}, added, json)


@app.command()
def fetch(
    since: Since = None,
    until: Until = None,
    query: Annotated[Path | None, typer.Option("--query", metavar="FILE", help="Query words and politeness (YAML).")] = None,
    json: Json = False,
) -> None:
    """Ask arXiv for the papers of some days, keep every one, and make the digest of those that no digest has yet.

    Without --since from two weeks before the newest digest on, since papers are announced late; without --until up to today.
    """
    from thrifty.papers.classic import Digest
    from thrifty.papers.fetch import LATE, read_query
    from thrifty.papers.fetch import fetch as ask

    library = _library()
    last = _day(until, "--until") or date.today()
    newest = max(library.digests, default=None)
    first = _day(since, "--since") or (newest and newest - LATE)
    if first is None:
        raise InputError("there is no digest to go on from; say the first day with --since YYYY-MM-DD")
    with _drawing():
        found = ask(library, read_query(query), first, last, cache=library.own / "cache")
        # A paper that arXiv announces late stands in the digest of the day when it was first seen.
        elsewhere = {name for day, ids in library.digests.items() if day != last for name in ids}
        ids = dict.fromkeys([*(name for name in found.ids if name not in elsewhere), *library.digests.get(last, ())])
        digest = Digest(last, tuple(sorted((library.records[name] for name in ids), key=lambda paper: paper.published, reverse=True)))
        library.add_digest(digest)
    _tell(f"{len(found.ids)} papers from {first} to {last}", {"since": str(first), "until": str(last)}, found.added, json)


@app.command()
def digest(
    day: Annotated[str | None, typer.Option("--day", metavar="DATE", help="The digest of this day; the newest if left out.")] = None,
    since: Since = None,
    until: Until = None,
    layout: Annotated[
        Literal["thrifty", "classic"], typer.Option("--layout", help="thrifty: by part, with reasons; classic: to the byte.")
    ] = "thrifty",
    form: Annotated[
        Literal["markdown", "html", "json", "bibtex", "csv"], typer.Option("--format", help="What to write it as.")
    ] = "markdown",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write it; standard output if left out.")] = None,
    docs: Docs = None,
) -> None:
    """Write the digest of a day, or of the papers of some days."""
    from thrifty.papers import classic
    from thrifty.papers.digest import Issue, write

    if layout == "classic" and form != "markdown":
        raise InputError(f"--layout classic is Markdown only; leave --format {form} out, or take --layout thrifty")
    if day and (since or until):
        raise InputError("--day names a digest that is kept, --since and --until make one of some days; give one or the other")
    library = _library()
    found = _window(library, since, until) if since or until else library.digest(_day(day, "--day") or _newest(library))
    if layout == "classic":
        text = classic.write(found)
    else:
        from thrifty.papers.relevance import Judge

        text = write(Issue.of(found.day, found.records, _statuses(), Judge(), docs), form)
    _put(text, out)


@app.command("list")
def list_papers(
    module: Module = None,
    kind: Kind = None,
    domain: Domain = None,
    fit: Fit = None,
    status: State = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
) -> None:
    """List papers, newest first."""
    wanted = _filter(module, kind, domain, fit, status, since, until)
    statuses = _statuses()
    _show([record for record in _library().records.values() if wanted.takes(record, statuses)], statuses, json)


@app.command()
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help='Words, "phrases", AND, OR, NOT, a leading minus, parentheses.')],
    module: Module = None,
    kind: Kind = None,
    domain: Domain = None,
    fit: Fit = None,
    status: State = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
) -> None:
    """Find papers by words in any field. Write -- before a query that begins with a minus."""
    from thrifty.papers.find import Index

    wanted = _filter(module, kind, domain, fit, status, since, until)
    found = Index(_library().records.values()).search(query)
    statuses = _statuses()
    _show([record for record in found if wanted.takes(record, statuses)], statuses, json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="PAPER", help="An arXiv id, the name of a method, or a title.")], json: Json = False
) -> None:
    """Show one paper: all that is known of it, and why it is here."""
    from thrifty.cli import render
    from thrifty.papers.references import plain
    from thrifty.papers.relevance import Judge

    record = _library().record(name)
    relevance = Judge().of(record)
    values = {**plain(record, _statuses()), "score": relevance.score, "why": relevance.reason}
    if json:
        render.print_json(values)
    else:
        _describe(record, values)


@app.command()
def stats(json: Json = False) -> None:
    """Count the papers by part, kind, domain, fit and status."""
    from rich.columns import Columns

    from thrifty.cli import render
    from thrifty.papers.find import counts

    found = counts(_library().records.values(), _statuses())
    if json:
        render.print_json(found)
        return
    tables = [_table({name: list(words), "papers": [str(number) for number in words.values()]}) for name, words in found.items()]
    render.output().print(Columns(tables, padding=(0, 3)))


@app.command()
def graph(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write it; standard output if left out.")] = None,
    json: Json = False,
) -> None:
    """Write which paper builds on which, as a Mermaid chart."""
    from thrifty.cli import render
    from thrifty.papers.lineage import families, lineage, mermaid

    found = lineage(_library().records.values())
    if json:
        named = [{"name": name, "members": members} for name, members in families(found)]
        render.print_json({"edges": sorted(found.edges), "families": named})
    else:
        _put(mermaid(found), out)


@app.command()
def site(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of the page.")], docs: Docs = None, json: Json = False
) -> None:
    """Write a page that searches the papers without a network."""
    from thrifty.cli import render
    from thrifty.papers.relevance import Judge
    from thrifty.papers.site import write_site

    records = list(_library().records.values())
    judge = Judge()
    scores = {record.id: judge.of(record).score for record in records}
    written = write_site(records, _statuses(), out, scores=scores, docs=docs)
    if json:
        render.print_json(written)
    else:
        typer.echo(f"{written['papers']} papers in {written['file']}")


def _library() -> Library:
    from thrifty.papers.library import Library, own_folder

    return Library(own_folder())


def _statuses() -> Statuses:
    # Not through `thrifty.api`, which imports all that a run needs.
    from thrifty.papers.status import Statuses
    from thrifty.pipeline.catalogue import load_methods

    return Statuses(load_methods().values())


def _newest(library: Library) -> date:
    if not library.digests:
        raise InputError("the library holds no digest; `thrifty papers import FILE.md` adds one, or take --since and --until")
    return max(library.digests)


def _window(library: Library, since: str | None, until: str | None) -> Any:
    """The papers of some days as a digest of the last."""
    from thrifty.papers.classic import Digest

    wanted = _filter(since=since, until=until)
    found = tuple(record for record in library.records.values() if wanted.takes(record, None))
    return Digest(wanted.until or (found[0].published if found else date.today()), found)


def _filter(
    module: Words = None,
    kind: Words = None,
    domain: Words = None,
    fit: Words = None,
    status: Words = None,
    since: str | None = None,
    until: str | None = None,
) -> Filter:
    from thrifty.papers.find import Filter

    words = {"module": module, "kind": kind, "domain": domain, "fit": fit, "status": status}
    return Filter({name: found for name, found in words.items() if found}, _day(since, "--since"), _day(until, "--until"))


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{option} {text}: that is no day; write it as YYYY-MM-DD") from None


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else f"it is not UTF-8 ({error})"


def _put(text: str, out: Path | None) -> None:
    """To a file, or as it is to standard output."""
    from thrifty.base.store import write_text

    if out is None:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    elif out.is_dir():
        raise InputError(f"{out} is a folder; give --out a file")
    else:
        write_text(out, text)


def _tell(what: str, more: Mapping[str, Any], added: Added, as_json: bool) -> None:
    from thrifty.cli import render

    if as_json:
        render.print_json({**more, **vars(added)})
    else:
        typer.echo(f"{what}: {len(added.new)} new, {len(added.changed)} changed, {len(added.known)} known already")


def _show(records: Sequence[Record], statuses: Statuses, as_json: bool) -> None:
    from thrifty.cli import render
    from thrifty.papers.references import plain

    if as_json:
        render.print_json([plain(record, statuses) for record in records])
        return
    rows: dict[str, list[str]] = {"id": [], "date": [], "part": [], "status": [], "name": [], "title": []}
    for record in records:
        values = (record.id, str(record.published), record.module, statuses.of(record).word, record.name, record.title)
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value or "")
    if records:
        render.output().print(_table(rows))
    typer.echo(f"{len(records)} paper{'' if len(records) == 1 else 's'}")


def _table(columns: Mapping[str, Iterable[str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "date"))
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(Text(value) for value in row))
    return table


def _describe(record: Record, values: Mapping[str, Any]) -> None:
    """One paper for the eye."""
    from rich.text import Text

    from thrifty.cli import render

    console = render.output()
    console.print(Text(record.title, style="bold"))
    console.print(Text(", ".join(record.authors)))
    console.print(Text(f"{record.address}  {record.published}"))
    console.print(Text(f"\n{record.abstract}\n"))
    said = {name: values.get(name) for name in ("name", "kind", "domain", "module", "also", "fit", "core", "headline", "builds_on", "code")}
    facts = {**said, "score": f"{values['score']:.1f}", "why": values["why"], **values["status"]}
    facts["status"] = facts.pop("word")
    for name, value in facts.items():
        if value:
            console.print(Text(f"{name:10} {', '.join(value) if isinstance(value, list | tuple) else value}"))


def _drawing() -> Any:
    from thrifty.cli.progress import drawing

    return drawing()
