"""The plots of a report, as SVG text that takes its colours from the page.

matplotlib draws with stand-in colours; they are replaced by CSS variables, so one drawing serves a light and a dark page. Equal input gives
equal text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from thrifty.measure.certificate import Certificate, Layer, Value

INK, MUTED, LINE = "#010101", "#010102", "#010103"
SERIES = tuple(f"#0102{index:02d}" for index in range(1, 9))
_MARKERS = "osD^vPX*"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    color: f"var(--series-{index})" for index, color in enumerate(SERIES, 1)
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "thrifty",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Plot:
    """A drawing with the sentence that says what is seen."""

    title: str
    caption: str
    svg: str


def layer_role(layer: Layer) -> str:
    """The layer's role, or the last part of its name."""
    return layer.role or layer.name.rsplit(".", 1)[-1]


def error_plot(layers: Sequence[Layer]) -> Plot | None:
    """Relative error over blocks, a line a role; where a block has several of a role (experts), their median and range."""
    points = _by_role(layers, lambda layer: layer.relative_error if layer.relative_error and layer.relative_error > 0 else None)
    if not points:
        return None
    with _figure(9.0, 3.6) as (figure, canvas):
        axes = figure.subplots()
        for index, (role, blocks) in enumerate(points.items()):
            color, marker = SERIES[index % len(SERIES)], _MARKERS[index % len(_MARKERS)]
            places = sorted(blocks)
            axes.plot(places, [median(blocks[place]) for place in places], color=color, marker=marker, ms=4.5, lw=1.4, label=_label(role))
            if any(len(values) > 1 for values in blocks.values()):
                low, high = ([end(blocks[place]) for place in places] for end in (min, max))
                axes.fill_between(places, low, high, color=color, alpha=0.15, lw=0)
        axes.set_yscale("log")
        axes.set_xlabel("block")
        axes.set_ylabel("relative error")
        _whole(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        svg = canvas()
    return Plot("Error by layer", "Squared error of each layer's output on calibration data, as a share of the output itself.", svg)


def bits_plot(layers: Sequence[Layer]) -> Plot | None:
    """Bits (and sparsity, where it matters) of each role in each block, as a grid."""
    bits = _by_role(layers, lambda layer: layer.bits)
    if not bits:
        return None
    sparsity = _by_role(layers, lambda layer: layer.sparsity)
    blocks = sorted({block for places in bits.values() for block in places})
    sparse = any(sum(values) / len(values) > 0.1 for places in sparsity.values() for values in places.values())
    labels = [_label(role) for role in bits]
    beside = 1.0 + 0.09 * max(map(len, labels))
    with _figure(min(9.0, beside + (0.9 if sparse else 0.55) * len(blocks)), 0.7 + 0.32 * len(bits)) as (figure, canvas):
        axes = figure.subplots()
        for row, (role, places) in enumerate(bits.items()):
            for column, block in enumerate(blocks):
                if block in places:
                    share = sum(sparsity[role][block]) / len(sparsity[role][block]) if sparse and block in sparsity.get(role, {}) else 0.0
                    _cell(axes, column, row, sum(places[block]) / len(places[block]), share, len(blocks))
        axes.set_xlim(-0.5, len(blocks) - 0.5)
        axes.set_ylim(len(bits) - 0.5, -0.5)
        axes.set_yticks(range(len(bits)), labels)
        step = -(-len(blocks) // 16)
        axes.set_xticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]])
        axes.set_xlabel("block")
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        svg = canvas()
    words = "Bits of a stored value; below, the share of zeros." if sparse else "Bits of a stored value, scales not counted."
    return Plot("Bits and sparsity by layer" if sparse else "Bits by layer", words, svg)


def _cell(axes: Axes, column: int, row: int, bits: float, sparsity: float, columns: int) -> None:
    """A cell as dark as its share of 16 bits that is left."""
    kept = min(1.0, bits * (1 - sparsity) / 16)
    axes.barh(row, 0.92, left=column - 0.46, height=0.86, color=SERIES[0], alpha=0.12 + 0.68 * kept**0.5, lw=0)
    if columns <= 16:
        text = f"{bits:.3g}" + (f", {100 * sparsity:.0f} %" if sparsity > 0.1 else "")
        axes.text(column, row, text, ha="center", va="center", fontsize=8)


def balance_plot(certificate: Certificate) -> Plot | None:
    """Size before and after beside quality before and after."""
    if certificate.bytes is None:
        return None
    pair = certificate.perplexity
    values = [] if pair is None else [value for value in (pair.before, pair.after) if value.value is not None]
    names = ("original", "result")
    with _figure(9.0 if len(values) == 2 else 4.6, 1.9) as (figure, canvas):
        panels = figure.subplots(1, 2 if len(values) == 2 else 1, squeeze=False)[0]
        megabytes = [certificate.bytes.before / 1e6, certificate.bytes.after / 1e6]
        bars = panels[0].barh(names, megabytes, color=[LINE, SERIES[0]], height=0.55)
        panels[0].bar_label(
            bars, [f"{value:,.3g} MB" if value < 1000 else f"{value:,.0f} MB" for value in megabytes], padding=4, fontsize=9
        )
        panels[0].set_xlim(0, 1.3 * max(megabytes))
        panels[0].set_title("weight files")
        if len(values) == 2:
            for row, value in enumerate(values):
                _whisker(panels[1], value, row, (MUTED, SERIES[0])[row])
            panels[1].set_yticks(range(2), names)
            panels[1].set_ylim(-0.6, 1.6)
            panels[1].set_title("perplexity, 95 % interval")
        for axes in panels:
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        svg = canvas()
    if len(values) < 2:
        return Plot("Size", "Bytes of the weight files.", svg)
    caption = "The intervals are over other windows of the same text; the comparison itself is paired and much sharper (see the table)."
    return Plot("Size and quality", caption, svg)


def _whisker(axes: Axes, value: Value, row: int, color: str) -> None:
    low, high = (value.value if end is None else end for end in (value.low, value.high))
    axes.plot([low, high], [row, row], color=color, lw=2, solid_capstyle="round")
    axes.plot([value.value], [row], color=color, marker="o", ms=7)
    axes.annotate(f"{value.value:.4g}", (value.value, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)


@dataclass(frozen=True)
class Point:
    """A result among others: its name, megabytes, and a quality with its interval."""

    name: str
    megabytes: float
    quality: Value


def tradeoff_plot(points: Sequence[Point], original: Point | None, quality: str) -> Plot | None:
    """Quality over size, a point a result, the original as a dashed line."""
    points = [point for point in points if point.quality.value is not None]
    if not points:
        return None
    with _figure(9.0, 3.8) as (figure, canvas):
        axes = figure.subplots()
        for index, point in enumerate(points):
            color, marker, value = SERIES[index % len(SERIES)], _MARKERS[index % len(_MARKERS)], point.quality
            low, high = (value.value if end is None else end for end in (value.low, value.high))
            axes.plot([point.megabytes] * 2, [low, high], color=color, lw=2, solid_capstyle="round")
            axes.plot([point.megabytes], [value.value], color=color, marker=marker, ms=8, ls="", label=_label(point.name))
        if original is not None and original.quality.value is not None:
            axes.axhline(original.quality.value, color=MUTED, lw=1, ls="--", label="original")
        axes.set_xlabel("weight files, MB")
        axes.set_ylabel(quality)
        axes.set_xlim(left=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        svg = canvas()
    return Plot(f"Size and {quality}", f"{quality[0].upper()}{quality[1:]} with its 95 % interval over the size of the weight files.", svg)


def _by_role(layers: Sequence[Layer], value: Callable[[Layer], float | None]) -> dict[str, dict[int, list[float]]]:
    """Values by role and block, roles in the order in which they first come; layers without a block count as block 0."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for layer in layers:
        measured = value(layer)
        if measured is not None:
            found[layer_role(layer)][layer.block or 0].append(measured)
    return found


def _label(name: str, width: int = 32) -> str:
    """A name as a label: its middle left out where it is long. A leading underscore would hide it from the legend."""
    short = name if len(name) <= width else f"{name[: width // 2]}...{name[-width // 2 + 3 :]}"
    return f"\u200b{short}" if short.startswith("_") else short


def _whole(axes: Axes) -> None:
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """A figure of so many inches, and a function that renders it."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")

        def render() -> str:
            buffer = io.StringIO()
            with warnings.catch_warnings():
                # Text stays text, so the reader's fonts draw what matplotlib's own font lacks.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
            return _themed(buffer.getvalue())

        yield figure, render


def _themed(svg: str) -> str:
    """The drawing alone, with the page's colours, font and width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _head, svg, count=1)
    svg = re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], svg)
    # One version of matplotlib writes `font: 10px 'DejaVu Sans', ...`, another size and family apart.
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--font)", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip())


def _head(found: re.Match[str]) -> str:
    width = float(found[1].split()[2])
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {links} viewBox="{found[1]}" style="max-width: {width * 4 / 3:.0f}px" role="img">'
