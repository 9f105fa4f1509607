"""Which paper builds on which: a graph without the edges that follow from others, as Mermaid text."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx

from thrifty.papers.record import Record


def lineage(records: Iterable[Record]) -> nx.DiGraph:
    """What every paper builds on, an edge from the older thing to the paper. Nodes are names; those of papers have their `id`.

    An edge that a longer path implies is left out, except between things that build on one another in a ring.
    """
    found = list(records)
    names = {record.label.lower(): record.label for record in found}
    graph = nx.DiGraph()
    for record in found:
        for base in record.builds_on:
            graph.add_edge(names.setdefault(base.lower(), base), record.label)
    for record in found:
        if record.label in graph:
            graph.nodes[record.label]["id"] = record.id
    return _reduced(graph)


def families(graph: nx.DiGraph) -> list[tuple[str, list[str]]]:
    """The connected parts of a lineage, largest first: each named after what most of it builds on, with its nodes in their order."""
    found = []
    for part in nx.weakly_connected_components(graph):
        nodes = sorted(part)
        found.append((max(nodes, key=lambda node: (graph.out_degree(node), node)), nodes))
    return sorted(found, key=lambda family: (-len(family[1]), family[0]))


def mermaid(graph: nx.DiGraph) -> str:
    """A lineage as a Mermaid flow chart, a frame for each family; papers lead to arXiv."""
    numbers = {node: f"n{number}" for number, node in enumerate(sorted(graph))}
    lines = ["flowchart LR"]
    for count, (name, nodes) in enumerate(families(graph)):
        lines.append(f'  subgraph f{count}["{_quoted(name)}"]')
        lines += [f'    {numbers[node]}["{_quoted(node)}"]' for node in nodes]
        edges = sorted(edge for edge in graph.edges if edge[0] in set(nodes))
        lines += [f"    {numbers[base]} --> {numbers[paper]}" for base, paper in edges]
        lines.append("  end")
    identified = sorted((node, data["id"]) for node, data in graph.nodes(data=True) if "id" in data)
    lines += [f'  click {numbers[node]} "https://arxiv.org/abs/{name}"' for node, name in identified]
    return "\n".join(lines) + "\n"


def _reduced(graph: nx.DiGraph) -> nx.DiGraph:
    """The transitive reduction, its rings taken as one node each."""
    rings = nx.condensation(graph)
    kept = nx.transitive_reduction(rings)
    place = rings.graph["mapping"]
    result = nx.DiGraph()
    result.add_nodes_from(graph.nodes(data=True))
    inside = [(a, b) for a, b in graph.edges if place[a] == place[b] or kept.has_edge(place[a], place[b])]
    result.add_edges_from(edge for edge in inside if edge[0] != edge[1])
    return result


def _quoted(text: str) -> str:
    """A label that Mermaid shows as it is."""
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
