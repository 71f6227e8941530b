"""Dot-and-whisker plots as SVG images, drawn for light and dark, wide and narrow pages.

An image inside a page runs no script and fetches nothing, whatever its text says. Colour
is never alone: every series has its own marker, and the same numbers stand in a table.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from muscle.report.text import cut, plain

# Okabe and Ito's colours, told apart by colour-blind readers; lighter ones on dark.
SERIES = {
    "old": ("o", "#0072B2", "#56B4E9"),
    "new": ("s", "#D55E00", "#FF9A57"),
    "compat": ("D", "#009E73", "#3CD3A6"),
    "old->new": ("s", "#D55E00", "#FF9A57"),
    "old->compat": ("D", "#009E73", "#3CD3A6"),
    "new->compat": ("^", "#8A5A9E", "#D7A6E8"),
    "noise floor": ("x", "#6B6F76", "#A6ACB5"),
}
INK = {"light": ("#1b1d21", "#5b616a", "#dcdfe4"), "dark": ("#e9eaed", "#a3a9b3", "#363a42")}
WIDTHS = {"wide": 5.5, "narrow": 3.3}
ROWS = 40
"""Groups in one plot; more go to the next."""


class Dot(NamedTuple):
    """A value with its whisker; None where there is no interval."""

    series: str
    value: float
    bounds: tuple[float, float] | None


@dataclass(frozen=True)
class DotPlot:
    """Groups of dots on one axis: a task and its versions, for example."""

    title: str
    unit: str
    groups: Sequence[tuple[str, Sequence[Dot]]]
    from_zero: bool = False


@dataclass(frozen=True)
class Picture:
    """One plot in four renderings, as data URIs by "light-wide" …; `alt` says it in words."""

    title: str
    alt: str
    images: dict[str, str]
    sizes: dict[str, tuple[int, int]]


def draw(plot: DotPlot) -> list[Picture]:
    """The plot as pictures, at most `ROWS` groups each; none without a dot."""
    groups = [(label, list(dots)) for label, dots in plot.groups if dots]
    parts = [groups[i : i + ROWS] for i in range(0, len(groups), ROWS)]
    return [_picture(plot, part, f" ({i} of {len(parts)})") for i, part in enumerate(parts, 1)]


def _picture(plot: DotPlot, groups: list[tuple[str, list[Dot]]], which: str) -> Picture:
    drawn: dict[str, tuple[bytes, tuple[int, int]]] = {}
    for width in WIDTHS:
        light, size = _svg(plot, groups, width)
        drawn |= {f"light-{width}": (light, size), f"dark-{width}": (_darken(light), size)}
    title = plot.title + ("" if which == " (1 of 1)" else which)
    return Picture(
        title,
        f"{title}. {_in_words(plot, groups)}",
        {
            name: "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
            for name, (svg, _) in drawn.items()
        },
        {name: size for name, (_, size) in drawn.items()},
    )


def _in_words(plot: DotPlot, groups: list[tuple[str, list[Dot]]]) -> str:
    """The picture for those who don't see it; long ones point at the table."""
    if len(groups) > 6:
        return f"{len(groups)} rows; the table has the same numbers."
    said = []
    for label, dots in groups:
        values = ", ".join(
            f"{d.series} {d.value:.2f}"
            + ("" if d.bounds is None else f" ({d.bounds[0]:.2f} to {d.bounds[1]:.2f})")
            for d in dots
        )
        said.append(f"{cut(plain(label), 60)}: {values}")
    return f"In {plot.unit}, with 95 % intervals. {'; '.join(said)}."


def _darken(svg: bytes) -> bytes:
    """The same picture in the colours for dark pages: nothing is laid out twice."""
    pairs = [(light, dark) for _, light, dark in SERIES.values()]
    for light, dark in [*pairs, *zip(INK["light"], INK["dark"], strict=True)]:
        svg = svg.replace(f": {light.lower()}".encode(), f": {dark.lower()}".encode())
    return svg


def _svg(
    plot: DotPlot, groups: list[tuple[str, list[Dot]]], width: str
) -> tuple[bytes, tuple[int, int]]:
    """One rendering for light pages and its size in CSS pixels."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(d.series for _, dots in groups for d in dots))
    step = 0.20
    lines = sum(len(dots) * step + 0.46 for _, dots in groups)
    across = 2 if width == "narrow" and len(series) > 3 else len(series)
    head = 0.2 + 0.2 * -(-len(series) // across)
    inches = (WIDTHS[width], lines + head + 0.6)
    settings: Any = {
        # Text stays text: the reader's own fonts draw it, in any script.
        "svg.fonttype": "none",
        "svg.hashsalt": "muscle",
        "font.family": "sans-serif",
        # A task may be called "$x^2$".
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=inches, dpi=72)
        FigureCanvasSVG(figure)
        figure.subplots_adjust(
            left=0.14 / inches[0],
            right=1 - 0.22 / inches[0],
            top=1 - head / inches[1],
            bottom=0.58 / inches[1],
        )
        axes = figure.add_subplot()
        _dots(axes, groups, step, width)
        _dress(axes, plot, lines)
        _legend(figure, series, across)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue(), (round(inches[0] * 96), round(inches[1] * 96))


def _dots(axes: Any, groups: list[tuple[str, list[Dot]]], step: float, width: str) -> None:
    ink = INK["light"][0]
    place = 0.0
    for label, dots in groups:
        axes.annotate(
            cut(plain(label).replace("\n", " "), 40 if width == "narrow" else 70),
            (0.0, place + 0.19),
            xycoords=axes.get_yaxis_transform(),
            xytext=(5, 0),  # clear of the line at 0
            textcoords="offset points",
            color=ink,
            fontsize=9.5,
            fontweight="bold",
            va="center",
        )
        place += 0.36
        for dot in dots:
            marker, colour, _ = SERIES[dot.series]
            if dot.bounds is not None:
                axes.plot(dot.bounds, (place, place), color=colour, lw=1.8, solid_capstyle="butt")
                axes.plot(
                    dot.bounds, (place, place), color=colour, ls="", marker="|", ms=6, mew=1.5
                )
            axes.plot(
                dot.value, place, color=colour, marker=marker, ms=6, mew=1.6, ls="", clip_on=False
            )
            place += step
        place += 0.10


def _dress(axes: Any, plot: DotPlot, lines: float) -> None:
    _, muted, grid = INK["light"]
    axes.set_ylim(lines, -0.02)
    axes.set_yticks([])
    axes.set_xlabel(plot.unit, color=muted, fontsize=9)
    axes.tick_params(axis="x", colors=muted, labelsize=9, length=0)
    axes.grid(axis="x", color=grid, lw=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    if plot.from_zero:
        axes.set_xlim(0.0, max(axes.get_xlim()[1], 0.5))
        axes.axvline(0, color=muted, lw=1)


def _legend(figure: Any, series: list[str], across: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker=SERIES[s][0], ms=6, mew=1.6, color=SERIES[s][1])
        for s in series
    ]
    figure.legend(
        handles,
        [s.replace("->", "→") for s in series],
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=across,
        frameon=False,
        fontsize=9,
        labelcolor=INK["light"][0],
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
