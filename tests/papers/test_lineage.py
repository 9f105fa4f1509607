"""What builds on what: no edge that follows from others, and a chart that says so."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from tests.papers.samples import paper
from thrifty.papers.library import Library
from thrifty.papers.lineage import families, lineage, mermaid


def named(name: str, number: int, *bases: str):
    return paper(f"2506.{number:05}", name=name, builds_on=bases)


def test_an_edge_that_follows_is_left_out() -> None:
    found = lineage([named("B", 1, "A"), named("C", 2, "B", "a"), named("D", 3, "X")])
    assert set(found.edges) == {("A", "B"), ("B", "C"), ("X", "D")}


def test_names_of_papers_are_known_in_any_case() -> None:
    found = lineage([named("GPTQ", 1, "OBS"), named("New", 2, "gptq", "OBS")])
    assert set(found.edges) == {("OBS", "GPTQ"), ("GPTQ", "New")}
    assert found.nodes["GPTQ"]["id"] == "2506.00001" and "id" not in found.nodes["OBS"]


def test_a_ring_is_kept() -> None:
    found = lineage([named("A", 1, "B"), named("B", 2, "A"), named("C", 3, "A", "B")])
    assert {("A", "B"), ("B", "A")} <= set(found.edges) and nx.has_path(found, "A", "C")


def test_families_are_named_after_what_most_builds_on() -> None:
    found = families(lineage([named("B", 1, "A"), named("C", 2, "A"), named("E", 3, "D")]))
    assert found == [("A", ["A", "B", "C"]), ("D", ["D", "E"])]


def test_the_chart() -> None:
    assert mermaid(lineage([named('say "hi" & <b>', 1, "A")])) == (
        'flowchart LR\n  subgraph f0["A"]\n    n0["A"]\n    n1["say #quot;hi#quot; #amp; #lt;b#gt;"]\n    n0 --> n1\n  end\n'
        '  click n1 "https://arxiv.org/abs/2506.00001"\n'
    )


@given(st.dictionaries(st.integers(0, 9), st.sets(st.integers(0, 9), max_size=4)))
def test_reachability_is_kept_and_nothing_is_spare(edges) -> None:
    found = lineage([named(f"p{paper}", paper, *(f"p{base}" for base in sorted(bases - {paper}))) for paper, bases in edges.items()])
    whole = nx.DiGraph((f"p{base}", f"p{paper}") for paper, bases in edges.items() for base in bases - {paper})
    assert {n: nx.descendants(whole, n) for n in whole} == {n: nx.descendants(found, n) for n in whole}
    if nx.is_directed_acyclic_graph(whole):
        assert set(found.edges) == set(nx.transitive_reduction(whole).edges)


def test_the_shipped_lineage(tmp_path: Path) -> None:
    records = list(Library(tmp_path).records.values())
    found = lineage(records)
    assert {("OBS", "SparseSSM"), ("Wanda", "AWP")} <= set(found.edges)
    chart = mermaid(found)
    assert chart.count("-->") == found.number_of_edges() and chart.count("subgraph") == len(families(found))
    assert chart.count("click") == sum("id" in data for _, data in found.nodes(data=True))
