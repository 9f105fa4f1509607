"""A stand-in for the arXiv API: a local server that answers with Atom pages, and with faults where a test asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from thrifty.papers.record import Record

Answer = tuple[int, dict[str, str], bytes]
Fault = Callable[[int, Answer], Answer]
"""Changes an answer, given the number of the request, counted from 1."""


def entry(record: Record, summary: str | None = None) -> str:
    """One paper as the API has it."""
    authors = "".join(f"<author><name>{escape(name)}</name></author>" for name in record.authors)
    categories = "".join(f'<category term="{term}" scheme="http://arxiv.org/schemas/atom"/>' for term in record.categories)
    first = record.categories[0] if record.categories else "cs.LG"
    return (
        f"<entry><id>http://arxiv.org/abs/{record.id}v{record.version}</id>"
        f"<updated>{record.updated or record.published}T17:59:59Z</updated><published>{record.published}T00:00:01Z</published>"
        f"<title>{escape(record.title)}</title><summary>{escape(summary or f'  {record.abstract}' + chr(10))}</summary>{authors}"
        f'<arxiv:primary_category xmlns:arxiv="http://arxiv.org/schemas/atom" term="{first}"/>{categories}'
        f'<link href="http://arxiv.org/abs/{record.id}v{record.version}" rel="alternate" type="text/html"/></entry>'
    )


def page(entries: Sequence[str], total: int, start: int, size: int) -> bytes:
    """One page as the API has it."""
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom">'
        '<title type="html">ArXiv Query</title><id>http://arxiv.org/api/x</id><updated>2025-06-13T00:00:00-04:00</updated>'
    )
    counts = "".join(
        f'<opensearch:{name} xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/">{value}</opensearch:{name}>'
        for name, value in (("totalResults", total), ("startIndex", start), ("itemsPerPage", size))
    )
    return f"{head}{counts}{''.join(entries)}</feed>".encode()


class Server:
    """papers: what it has, in its order. asked: the parameters of every request. fault: what goes wrong."""

    def __init__(self) -> None:
        self.papers: list[Record] = []
        self.asked: list[dict[str, str]] = []
        self.fault: Fault = lambda number, answer: answer
        self.address = ""

    def answer(self, parameters: dict[str, str]) -> Answer:
        self.asked.append(parameters)
        start, size = int(parameters["start"]), int(parameters["max_results"])
        entries = [entry(record) for record in self.papers[start : start + size]]
        return self.fault(len(self.asked), (200, {}, page(entries, len(self.papers), start, size)))


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parameters = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            status, headers, body = server.answer(parameters)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{listening.server_address[1]}/api/query?{{}}"
        yield server
        listening.shutdown()
        thread.join()


def day(number: int) -> date:
    return date(2025, 6, number)
