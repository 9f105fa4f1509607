"""An anatomy for people: what `thrifty describe` prints. Blocks that are alike are shown once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.base.anatomy import Anatomy, Block, Linear, Norm, Space

_COMMUTES = {
    "none": "fixed",
    "scale": "can be rescaled",
    "permutation": "can be reordered",
    "rotation": "can be rotated",
    "any": "can be rescaled",
}


def describe(anatomy: Anatomy) -> RenderableType:
    """A printable description of a model."""
    parts: list[RenderableType] = [_head(anatomy)]
    for first, last, block in _runs(anatomy.blocks):
        parts.append(_block(first, last, block))
    for title, lines in (("Worked out, not declared", anatomy.inferred), ("Not covered", anatomy.missing)):
        if lines:
            parts.append(Text(f"{title}:", style="bold"))
            parts.extend(Text(f"  {line}") for line in lines)
    return Group(*parts)


def _head(anatomy: Anatomy) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("architecture", f"{anatomy.architecture} ({anatomy.model_type}, {anatomy.kind.replace('_', ' ')})")
    inside = f"{_in_linears(anatomy.blocks):,} in the linears of {len(anatomy.blocks)} blocks"
    table.add_row("parameters", f"{anatomy.parameters:,}, of which {inside}")
    table.add_row("hidden size", str(anatomy.hidden_size))
    if len(anatomy.chains) > 1:
        table.add_row("chains", ", then ".join(anatomy.chains))
    table.add_row("embeddings", ", ".join(anatomy.embeddings) or "none found")
    table.add_row("final norms", ", ".join(map(_norm, anatomy.final_norms)) or "none found")
    table.add_row("head", (anatomy.head or "none") + (", shares its weight with the embeddings" if anatomy.tied else ""))
    return table


def _in_linears(blocks: Iterable[Block]) -> int:
    return sum(linear.out_features * linear.in_features for block in blocks for linear in block.linears)


def _runs(blocks: tuple[Block, ...]) -> list[tuple[int, int, Block]]:
    """Neighbouring blocks of one chain that differ in nothing but their number, as (first, last, first block)."""
    runs: list[tuple[int, int, Block]] = []
    for block in blocks:
        if runs and _template(runs[-1][2]) == _template(block):
            runs[-1] = (runs[-1][0], block.index, runs[-1][2])
        else:
            runs.append((block.index, block.index, block))
    return runs


def _template(block: Block) -> str:
    nameless = replace(block, index=0)
    return re.sub(r"'[^']*'", lambda text: re.sub(r"(?<=[.])\d+(?=[.'])", "*", text[0], count=1), repr(nameless))


def _block(first: int, last: int, block: Block) -> RenderableType:
    where = f"block {first}" if first == last else f"blocks {first}-{last}"
    pattern = block.path.rpartition(".")[0] + (f".{first}" if first == last else ".*")
    table = Table(title=f"{where}: {pattern}", title_justify="left", title_style="bold", caption=_caption(block), caption_justify="left")
    for column in ("reads", "width", "linears (outputs)", "written by", "how"):
        table.add_column(column, overflow="fold")
    experts = block.experts.num_experts if block.experts else 0
    for stage in block.stages:
        expert = stage.linears[0].expert
        if expert not in (None, 0):
            continue
        space = stage.reads
        name = space.name if expert is None else re.sub(r"[.]0[.]", f".0-{experts - 1}.", space.name)
        table.add_row(name, str(space.width), _linears(block, stage.linears), _producers(block, space), _how(space))
    return table


def _linears(block: Block, linears: tuple[Linear, ...]) -> str:
    shown = []
    for linear in linears:
        stored = {"linear": "", "conv1d": ", stored transposed", "fused": ", part of a fused parameter"}[linear.storage]
        path = linear.path.removeprefix(block.path + ".")
        if linear.expert is not None:
            path = path.rpartition(".")[2]
        shown.append(f"{path} ({linear.role}, {linear.out_features}{stored})")
    return "\n".join(shown)


def _producers(block: Block, space: Space) -> str:
    if space.within:
        return f"tokens of {space.within}"
    written = "\n".join(path.removeprefix(block.path + ".") for path in space.producers) or "-"
    return written.rpartition(".")[2] if ".experts." in space.name else written


def _how(space: Space) -> str:
    how = _COMMUTES[space.commutes_with]
    if space.unit in ("head", "kv_group", "neuron") and space.unit_size > 1:
        how += f", in {'heads' if space.unit == 'head' else 'head groups'} of {space.unit_size}"
    return how + (f", {space.repeat} query heads share a value head" if space.repeat > 1 else "")


def _norm(norm: Norm) -> str:
    if norm.modulation is not None:
        return f"{norm.path} ({norm.kind}, moved by {norm.modulation.linear.rpartition('.')[2]})"
    return f"{norm.path} ({norm.kind}{', one plus weight' if norm.plus_one else ''}{', bias' if norm.bias else ''})"


def _caption(block: Block) -> str:
    lines = ["norms: " + ", ".join(_norm(norm).removeprefix(block.path + ".") for norm in block.norms)] if block.norms else []
    if block.attention:
        attention = block.attention
        lines.append(f"attention: {attention.num_heads} heads of {attention.head_dim}, {attention.num_key_value_heads} for keys and values")
    if block.experts:
        lines.append(f"experts: {block.experts.num_experts}, {block.experts.experts_per_token} for each token")
        lines.append("routers, never compressed: " + ", ".join(linear.path.removeprefix(block.path + ".") for linear in block.routers))
    if block.state_space:
        space = block.state_space
        heads = f", {space.num_heads} heads" if space.num_heads else ""
        lines.append(f"state space: inner width {space.inner_size}, state {space.state_size}{heads}")
    return "\n".join(lines)
