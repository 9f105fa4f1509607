"""Filters take what they say, and counts add up."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.papers.samples import paper, records
from thrifty.base.errors import InputError
from thrifty.papers.find import VOCABULARIES, Filter, Index, counts
from thrifty.papers.library import Library
from thrifty.papers.query import searchable
from thrifty.papers.status import Statuses

NONE = Statuses([], {})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> list:
    return list(Library(tmp_path_factory.mktemp("own")).records.values())


def names(found: list) -> set[str]:
    return {record.name for record in found}


def test_a_filter_is_an_and_of_ors(shipped: list) -> None:
    wanted = Filter({"module": ["kv", "tokens"], "fit": ["core"]})
    found = [record for record in shipped if wanted.takes(record, NONE)]
    assert found == [r for r in shipped if r.fit == "core" and {r.module, *r.also} & {"kv", "tokens"}] and len(found) > 8
    assert "MiniCPM4" in names(found)  # of kv as a further module


def test_days_are_included_at_both_ends(shipped: list) -> None:
    wanted = Filter({}, date(2025, 6, 8), date(2025, 6, 9))
    assert {r.published for r in shipped if wanted.takes(r, NONE)} == {date(2025, 6, 8), date(2025, 6, 9)}


def test_the_status_is_a_filter(shipped: list) -> None:
    wanted = Filter({"status": ["planned"]})
    assert sum(wanted.takes(record, NONE) for record in shipped) == 67


@pytest.mark.parametrize("name", VOCABULARIES)
def test_an_unknown_word_is_refused_with_the_nearest(name: str) -> None:
    word = VOCABULARIES[name][0]
    with pytest.raises(InputError, match=f"--{name} {word}x: there is none.*{word}"):
        Filter({name: [word + "x"]})


def test_a_window_the_wrong_way_round() -> None:
    with pytest.raises(InputError, match="is after"):
        Filter({}, date(2025, 6, 9), date(2025, 6, 8))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("graph-kv", {"Graph-KV"}),
        ('"federated fine-tuning" -clients', set()),
        ('"federated fine-tuning" clients', {"FedBE"}),
        ('"posit" OR paged', {"POLARON", "PagedFlex"}),
        ("liu 2506.10205", {"AWP"}),
        ("Poincare", {"GGBall"}),
        ("", None),
    ],
)
def test_searches_of_the_shipped_week(query: str, expected: set | None, shipped: list) -> None:
    found = Index(shipped).search(query)
    if expected is None:
        assert found == shipped
    else:
        assert names(found) & expected == expected and len(found) <= len(expected) + 3


def test_every_field_is_searched() -> None:
    fields = {
        "title": "alpha", "authors": ("beta",), "abstract": "gamma", "name": "delta", "core": "epsilon", "headline": "zeta",
        "reason": "eta", "builds_on": ("theta",), "categories": ("iota",), "code": ("kappa",), "kind": "survey", "domain": "recsys",
        "module": "audit",
    }  # fmt: skip
    record = paper("2506.04242", **fields)
    for word in (
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "survey",
        "recsys",
        "audit",
        "04242",
    ):
        assert Index([record]).search(word if word != "04242" else "2506.04242") == [record], word
    assert not Index([record]).search('"alpha beta"')  # fields do not run into one another


@given(st.lists(records(), max_size=6, unique_by=lambda record: record.id))
def test_counts_add_up(found: list) -> None:
    for name, words in counts(found, NONE).items():
        assert sum(words.values()) == len(found), name


@given(records())
def test_what_is_searched_holds_no_upper_case(record) -> None:
    text = searchable(record)
    assert text == text.lower() and record.id.lower() in text
