"""The query language of the library: words, "phrases", AND, OR, NOT, a leading minus, and parentheses.

A word is found where one starts with it (`quant` finds quantization); a phrase where exactly these words follow one another. Hyphens hold a
word together: `low-bit` is one word, and a minus is a NOT only before a word. Case and accents do not matter. Words side by side must all
be there; OR binds less than AND. The page of `site.py` reads the same language (`page/query.js`); both are tested on the same cases.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from thrifty.base.errors import InputError
from thrifty.papers.record import Record

_TOKEN = re.compile(r'\s*(?:(?P<quote>"(?P<phrase>[^"]*)(?P<closed>"?))|(?P<minus>-(?=[^\s()]))|(?P<paren>[()])|(?P<word>[^\s()"]+))')


def folded(text: str) -> str:
    """Lower case, without accents, words one space apart.

    >>> folded("Nyström  Attention")
    'nystrom attention'
    """
    plain = text
    if not text.isascii():
        plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return " ".join(plain.lower().split())


def searchable(record: Record) -> str:
    """Everything that a search looks at, one field a line."""
    fields = (
        record.id, record.name, record.title, ", ".join(record.authors), record.abstract, record.kind, record.domain, record.module,
        " ".join(record.also), record.core, record.headline, record.reason, ", ".join(record.builds_on), " ".join(record.categories),
        " ".join(record.code),
    )  # fmt: skip
    return "\n".join(folded(field) for field in fields if field)


@dataclass(frozen=True)
class Token:
    """A piece of a query: kind `word`, `phrase`, `and`, `or`, `not`, `(` or `)`; at: its place, counted from 1."""

    kind: str
    text: str
    at: int


def tokens(query: str) -> list[Token]:
    """The pieces of a query. Raises InputError where a quotation mark is not closed or a phrase is empty.

    >>> [token.text for token in tokens('Graph-KV -"low bit"')]
    ['graph-kv', '-', 'low bit']
    """
    found: list[Token] = []
    at = 0
    while query[at:].strip():
        piece = _TOKEN.match(query, at)
        assert piece is not None  # a word takes what nothing else takes
        place = piece.end() - len(piece[0].lstrip()) + 1
        if piece["quote"]:
            if not piece["closed"]:
                raise InputError(f'query, place {place}: the quotation mark is not closed; write "words together"')
            if not folded(piece["phrase"]):
                raise InputError(f"query, place {place}: the phrase is empty; put words between the quotation marks")
            found.append(Token("phrase", folded(piece["phrase"]), place))
        elif piece["minus"]:
            found.append(Token("not", "-", place))
        elif piece["paren"]:
            found.append(Token(piece["paren"], piece["paren"], place))
        elif piece["word"] in ("AND", "OR", "NOT"):
            found.append(Token(piece["word"].lower(), piece["word"], place))
        elif folded(piece["word"]):
            found.append(Token("word", folded(piece["word"]), place))
        at = piece.end()
    return found


DEEPEST = 100
"""So many parentheses and NOTs may lie inside one another."""


class Expression(ABC):
    """What a query asks for. Called with a text made by `searchable`: whether the text holds it."""

    @abstractmethod
    def among(self, texts: Sequence[str], within: Sequence[int]) -> Sequence[int]:
        """Which of the texts with these numbers hold it, in their order."""

    def __call__(self, text: str) -> bool:
        return bool(self.among([text], [0]))


@dataclass(frozen=True)
class Words(Expression):
    """A word, from the start of one on; or a phrase (whole), up to the end of one too."""

    text: str
    whole: bool

    def among(self, texts: Sequence[str], within: Sequence[int]) -> Sequence[int]:
        words, length, found = self.text, len(self.text), []
        starts, ends = words[0].isalnum(), self.whole and words[-1].isalnum()
        single = f" {words}" if length == 1 and not ends else None  # stands inside of most words, so starts are looked for
        for number in within:  # 10,000 times in a hundredth of a second, so no call but `find` stands in the way
            text = texts[number]
            if single is not None and single in text:
                found.append(number)
                continue
            at = text.find(words)
            while at >= 0:
                inside = starts and at > 0 and text[at - 1].isalnum()
                if not inside and not (ends and text[at + length : at + length + 1].isalnum()):
                    found.append(number)
                    break
                at = text.find(words, at + 1)
        return found


@dataclass(frozen=True)
class Not(Expression):
    """Not this."""

    part: Expression

    def among(self, texts: Sequence[str], within: Sequence[int]) -> Sequence[int]:
        out = set(self.part.among(texts, within))
        return [number for number in within if number not in out]


@dataclass(frozen=True)
class All(Expression):
    """All of these; of none, everything."""

    parts: tuple[Expression, ...]

    def among(self, texts: Sequence[str], within: Sequence[int]) -> Sequence[int]:
        for part in self.parts:
            within = part.among(texts, within)
        return within


@dataclass(frozen=True)
class Any(Expression):
    """Any of these."""

    parts: tuple[Expression, ...]

    def among(self, texts: Sequence[str], within: Sequence[int]) -> Sequence[int]:
        found: set[int] = set()
        for part in self.parts:
            found.update(part.among(texts, [number for number in within if number not in found]))
        return [number for number in within if number in found]


def parse(query: str) -> Expression:
    """What a query asks for; an empty one is met by everything. Raises InputError that names the place of a fault."""
    return _Parser(tokens(query)).query()


class _Parser:
    """OR of AND of NOT of words, phrases and parentheses."""

    def __init__(self, found: list[Token]) -> None:
        self.left = found
        self.depth = 0

    def query(self) -> Expression:
        if not self.left:
            return All(())
        found = self.either()
        if self.left:
            self.fail(self.left[0], "this parenthesis was never opened")
        return found

    def either(self) -> Expression:
        options = [self.all()]
        while self.left and self.left[0].kind == "or":
            options.append(self.all(self.left.pop(0)))
        return options[0] if len(options) == 1 else Any(tuple(options))

    def all(self, after: Token | None = None) -> Expression:
        parts = [self.one(after)]
        while self.left and self.left[0].kind not in ("or", ")"):
            parts.append(self.one(self.left.pop(0) if self.left[0].kind == "and" else None))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def one(self, after: Token | None = None) -> Expression:
        if not self.left or self.left[0].kind in ("and", "or", ")"):
            self.fail(self.left[0] if self.left else after, "a word is missing")
        token = self.left.pop(0)
        if token.kind in ("word", "phrase"):
            return Words(token.text, whole=token.kind == "phrase")
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(token, f"this is nested more than {DEEPEST} deep")
        found = Not(self.one(token)) if token.kind == "not" else self.inside(token)
        self.depth -= 1
        return found

    def inside(self, opened: Token) -> Expression:
        if not self.left:
            self.fail(opened, "this parenthesis is not closed")
        found = self.either()
        if not self.left:
            self.fail(opened, "this parenthesis is not closed")
        self.left.pop(0)
        return found

    def fail(self, token: Token | None, what: str) -> NoReturn:
        place = f"place {token.at} ({token.text!r})" if token else "at its end"
        raise InputError(f'query, {place}: {what}; words, "phrases", AND, OR, NOT, a leading minus and parentheses are understood')
