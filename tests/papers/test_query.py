"""The query language: the cases that the page is tested on too, and whole random queries against their meaning."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.papers.query_cases import CASES
from tests.papers.samples import paper
from thrifty.base.errors import InputError
from thrifty.papers.query import folded, parse, searchable

VOCABULARY = ("quant", "quantization", "low-bit", "low", "bit", "kv", "kvs", "edge", "é", "a", "c++", "x_1", "and", "2-bit")

Tree = tuple[str, Any]
"""("word", w), ("phrase", words), ("not", tree), ("and", trees) or ("or", trees)."""

_words = st.sampled_from(VOCABULARY)
_leaves = st.one_of(_words.map(lambda word: ("word", word)), st.lists(_words, min_size=1, max_size=3).map(lambda words: ("phrase", words)))
trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        inner.map(lambda tree: ("not", tree)),
        st.tuples(st.sampled_from(("and", "or")), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)
texts = st.lists(st.tuples(_words, st.sampled_from((" ", "  ", ", ", "-", "\n"))), max_size=12).map(
    lambda pieces: "".join(word + between for word, between in pieces)
)


@pytest.mark.parametrize(("query", "text", "expected"), CASES)
def test_cases(query: str, text: str, expected: bool | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(InputError) as refused:
            parse(query)
        assert expected in str(refused.value) and "\n" not in str(refused.value)
    else:
        assert parse(query)(fields(text)) is expected


@given(trees, texts, st.randoms(use_true_random=False))
def test_a_query_means_its_tree(tree: Tree, text: str, chance: Random) -> None:
    assert parse(printed(tree, chance))(fields(text)) is holds(tree, fields(text))


@given(trees, st.lists(texts, max_size=6), st.randoms(use_true_random=False))
def test_many_texts_at_once(tree: Tree, found: list[str], chance: Random) -> None:
    wanted = parse(printed(tree, chance))
    assert wanted.among(found, range(len(found))) == [number for number, text in enumerate(found) if wanted(text)]


@given(st.text())
def test_any_text_is_read_or_refused_in_a_sentence(query: str) -> None:
    try:
        parse(query)("some text")
    except InputError as refused:
        assert str(refused).startswith("query, place ")


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text)


def test_a_record_is_found_by_its_own_words() -> None:
    record = paper(title="On Nyström", authors=("Paul Erdős",), abstract="We prune\nlarge models.", builds_on=("Wanda",))
    text = searchable(record)
    assert all(parse(query)(text) for query in ("nystrom", '"paul erdos"', '"prune large models"', "wanda", "2506.00001"))
    assert not parse('"nystrom paul"')(text)


def fields(text: str) -> str:
    """A text as `searchable` would make it of one field a line."""
    return "\n".join(folded(line) for line in text.split("\n"))


def printed(tree: Tree, chance: Random) -> str:
    """One of the ways to write a tree as a query."""
    kind, inner = tree
    if kind == "word":
        return cased(inner, chance)
    if kind == "phrase":
        return '"' + chance.choice((" ", "  ", "\t")).join(cased(word, chance) for word in inner) + '"'
    if kind == "not":
        part = grouped(inner, chance, ("word", "phrase", "not"))
        return ("NOT " if part.startswith("(") else chance.choice(("NOT ", "-"))) + part
    if kind == "and":
        return chance.choice((" ", " AND ")).join(grouped(part, chance, ("word", "phrase", "not", "and")) for part in inner)
    return " OR ".join(grouped(part, chance, ("word", "phrase", "not", "and", "or")) for part in inner)


def grouped(tree: Tree, chance: Random, bare: tuple[str, ...]) -> str:
    """A part within parentheses, where it needs them or by chance."""
    text = printed(tree, chance)
    return text if tree[0] in bare and chance.random() < 0.7 else f"({text})"


def cased(word: str, chance: Random) -> str:
    """In some case, but never as an operator."""
    return word if word == "and" else chance.choice((word, word.upper(), word.title()))


def holds(tree: Tree, text: str) -> bool:
    """Whether a text holds a tree, by trying every place."""
    kind, inner = tree
    if kind == "not":
        return not holds(inner, text)
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(holds(part, text) for part in inner)
    words = folded(inner if kind == "word" else " ".join(inner))
    return any(stands(words, text, at, whole=kind == "phrase") for at in range(len(text)))


def stands(words: str, text: str, at: int, whole: bool) -> bool:
    """Whether words stand at a place from the start of a word on, and up to the end of one."""
    end = at + len(words)
    inside = words[0].isalnum() and at > 0 and text[at - 1].isalnum()
    torn = whole and words[-1].isalnum() and end < len(text) and text[end].isalnum()
    return text[at:end] == words and not inside and not torn
