"""Why a paper is here: words of the query as they stand, words of the query by their stems, and terms of thrifty's parts.

A score ranks the papers of a digest. A term counts once however often it occurs, and twice where it stands in the title; terms of other
fields count against. The terms are in `relevance.yaml`; how well the score tells `core` and `near` papers from the rest is measured by
`bench/relevance.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import snowballstemmer
import yaml

from thrifty.papers.fetch import read_query
from thrifty.papers.query import folded
from thrifty.papers.record import Module, Record

TERMS = Path(__file__).with_name("relevance.yaml")
THRESHOLD = 4.5
"""A paper with at least this score is worth reading; set on the shipped week, see `bench/relevance.py`."""

_WORD = re.compile(r"[^\W_]+")
_LITERAL, _STEM, _MODULE, _SUBJECT, _ELSEWHERE = 1.0, 0.5, 1.0, 0.5, -1.5

Stems = tuple[str, ...]


@dataclass(frozen=True)
class Relevance:
    """Why a paper is here, and how much.

    literal: words of the query that stand in it; stems: words that share a stem with one of the query; modules: terms of each part of
    thrifty, the strongest part first; subjects: what it is applied to; elsewhere: terms of other fields. All as they stand in the text.
    """

    score: float
    literal: tuple[str, ...]
    stems: tuple[str, ...]
    modules: Mapping[Module, tuple[str, ...]]
    subjects: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def module(self) -> Module | None:
        """The part of thrifty that it speaks of most."""
        return next(iter(self.modules), None)

    @property
    def reason(self) -> str:
        """The reason in words, the strongest three parts only: `word: pruning; stem: pruned; quantize: 4-bit, codebook`."""
        parts = [("word", self.literal), ("stem", self.stems), *list(self.modules.items())[:3], ("other field", self.elsewhere)]
        return "; ".join(f"{name}: {', '.join(words)}" for name, words in parts if words) or "no word of the query or of a part"


class Judge:
    """Scores papers by the words of a query and the terms of a file."""

    def __init__(self, key: Iterable[str] | None = None, terms: Path = TERMS) -> None:
        lists = yaml.safe_load(terms.read_text(encoding="utf-8"))
        self.literals = tuple(key if key is not None else read_query(None).key)
        self.keys = {stems(word) for word in self.literals}
        self.modules = {cast(Module, name): {stems(term) for term in found} for name, found in lists["modules"].items()}
        self.subjects = {stems(term) for term in lists["subjects"]}
        self.elsewhere = {stems(term) for term in lists["elsewhere"]}
        known = [self.keys, *self.modules.values(), self.subjects, self.elsewhere]
        self.longest = max(len(term) for found in known for term in found)

    def of(self, record: Record) -> Relevance:
        """The relevance of one paper."""
        title, text = self._found(record.title), self._found(f"{record.title}\n{record.abstract}")
        weigh = _Weigh(title, text)
        literal = tuple(word for word in self.literals if _stands(word, record))
        stood = {stems(word) for word in literal}
        by_stem = {term: text[term] for term in self.keys if term in text and term not in stood}
        score = sum(_LITERAL * (1 + _stands(word, record, title=True)) for word in literal) + weigh(by_stem, _STEM)
        parts = {name: weigh.those(terms) for name, terms in self.modules.items()}
        by_weight = sorted((name for name in parts if parts[name]), key=lambda name: -weigh(parts[name], _MODULE))
        every = {term for found in parts.values() for term in found}
        subjects, elsewhere = weigh.those(self.subjects), weigh.those(self.elsewhere)
        score += weigh(every, _MODULE) + weigh(subjects, _SUBJECT) + weigh(elsewhere, _ELSEWHERE)
        modules = {name: tuple(dict.fromkeys(parts[name].values())) for name in by_weight}
        said = [tuple(dict.fromkeys(found.values())) for found in (by_stem, subjects, elsewhere)]
        return Relevance(score, literal, said[0], modules, said[1], said[2])

    def _found(self, text: str) -> dict[Stems, str]:
        """Every run of words, no longer than the longest term, by its stems: as it first stands in the text."""
        words = _WORD.findall(text)
        stemmed = [_stem(folded(word)) for word in words]
        found: dict[Stems, str] = {}
        for length in range(1, self.longest + 1):
            for start in range(len(words) - length + 1):
                found.setdefault(tuple(stemmed[start : start + length]), " ".join(words[start : start + length]))
        return found


class _Weigh:
    """What terms weigh in a paper: twice where they stand in its title."""

    def __init__(self, title: Mapping[Stems, str], text: Mapping[Stems, str]) -> None:
        self.title, self.text = title, text

    def __call__(self, terms: Iterable[Stems], weight: float) -> float:
        return sum(weight * (1 + (term in self.title)) for term in terms)

    def those(self, terms: Iterable[Stems]) -> dict[Stems, str]:
        """Of these terms the ones that occur, as they stand."""
        return {term: self.text[term] for term in terms if term in self.text}


def stems(term: str) -> Stems:
    """The Porter stems of a term's words; a hyphen is as good as a space.

    >>> stems("Low-bit quantization")
    ('low', 'bit', 'quantiz')
    """
    return tuple(_stem(folded(word)) for word in _WORD.findall(term))


_PORTER = snowballstemmer.stemmer("porter")


@cache
def _stem(word: str) -> str:
    return _PORTER.stemWord(word)


def _stands(word: str, record: Record, title: bool = False) -> bool:
    """Whether a word of the query stands in a paper as it is, case aside."""
    text = record.title if title else f"{record.title}\n{record.abstract}"
    return re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, re.IGNORECASE) is not None
