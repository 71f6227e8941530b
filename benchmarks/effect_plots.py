"""The study's plots: NFR against score, and how the effect grows; SVG by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from effect_methods import METHODS
from effect_stats import Cell, Value, value_of

# Okabe and Ito's colours; colour is never alone, every group has its own marker.
GROUPS = {
    "version": ("s", "#D55E00"),
    "control": ("^", "#E69F00"),
    "published": ("v", "#0072B2"),
    "answer": ("D", "#009E73"),
    "other": ("P", "#CC79A7"),
    "growth": (".", "#56B4E9"),
}
WORDS = {
    "version": "old, new, and both at once",
    "control": "controls",
    "published": "published masks",
    "answer": "whole answers",
    "other": "focal, seeds",
    "growth": "varied",
}
INK, MUTED, GRID = "#1b1d21", "#5b616a", "#dcdfe4"
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "muscle",
    "font.family": "sans-serif",
    "text.parse_math": False,
    "font.size": 8.5,
}


def scatter(cell: Cell, methods: Sequence[str], path: Path, title: str) -> None:
    """Each method a point with its interval; the router's line, the floor, the ensemble."""
    shown = [m for m in methods if m != "again" and cell.seeds(m)]
    with _figure(path, (7.2, 5.2)) as axes:
        for method in shown:
            _point(axes, cell, method, cell.seeds(method))
        for group in dict.fromkeys(map(_group, shown)):
            marker, colour = GROUPS[group]
            axes.plot([], [], marker=marker, color=colour, ls="", ms=5.5, label=WORDS[group])
        both = cell.seeds()
        old, new = cell.rates("old", both), cell.rates("new", both)
        line = ([0.0, 100 * new.nfr[0]], [100 * old.score[0], 100 * new.score[0]])
        axes.plot(*line, color=MUTED, lw=1, ls="--", label="random router, old to new")
        if seeds := cell.seeds("again"):
            floor = cell.rates("again", seeds)
            axes.axvline(100 * floor.nfr[0], color=MUTED, lw=1, ls=":", label="noise floor")
        axes.set_xlabel("negative flips, % of examples")
        axes.set_ylabel("score, %")
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        _legend(axes)


def _group(method: str) -> str:
    return "version" if method in ("old", "new", "ensemble") else METHODS[method].group


def _point(axes: Any, cell: Cell, method: str, seeds: Sequence[int]) -> None:
    marker, colour = GROUPS[_group(method)]
    rates = cell.rates(method, seeds)
    x, y = (value_of(100 * values) for values in (rates.nfr, rates.score))
    for value, other, across in ((x, y, True), (y, x, False)):
        if value.low is not None:
            ends = ((value.low, value.high), (other.value, other.value))
            axes.plot(*(ends if across else ends[::-1]), color=colour, lw=0.8, alpha=0.55)
    axes.plot(x.value, y.value, marker=marker, ms=5.5, color=colour, ls="")
    # Of fewer seeds than new it isn't quite comparable with the points beside it.
    fewer = len(seeds) < len(cell.seeds())
    label = f"{method} ({len(seeds)} of {len(cell.seeds())} seeds)" if fewer else method
    axes.annotate(
        label, (x.value, y.value), xytext=(4, 3), textcoords="offset points",
        fontsize=6.5, color=INK,
    )  # fmt: skip


def growth(
    lines: Mapping[str, Sequence[tuple[float, Value, Value]]], what: str, path: Path, title: str
) -> None:
    """Relative NFR and score against what is varied, a line for each teacher."""
    with _figure(path, (7.2, 3.0), 2) as both:
        for k, (axes, label) in enumerate(zip(both, ("relative NFR", "score, %"), strict=True)):
            for (teacher, points), colour, marker in zip(
                lines.items(), ("#0072B2", "#009E73", "#D55E00"), "oDs", strict=False
            ):
                x = [point[0] for point in points]
                values = [point[1 + k] for point in points]
                middle = [v.value for v in values]
                low = [v.value if v.low is None else v.low for v in values]
                high = [v.value if v.high is None else v.high for v in values]
                axes.plot(x, middle, color=colour, marker=marker, ms=4, lw=1.2, label=teacher)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            if what == "epochs":
                axes.set_xscale("log", base=2)
                axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
            axes.set_xlabel(what)
            axes.set_ylabel(label)
        both[0].set_title(title, fontsize=9.5, color=INK, loc="left")
        _legend(both[0])


class _figure:
    """Axes to draw on; saved at the end."""

    def __init__(self, path: Path, size: tuple[float, float], columns: int = 1):
        self.path, self.size, self.columns = path, size, columns

    def __enter__(self) -> Any:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self.context = matplotlib.rc_context(SETTINGS)
        self.context.__enter__()
        self.figure = Figure(figsize=self.size, dpi=72, layout="constrained")
        FigureCanvasSVG(self.figure)
        axes = np.atleast_1d(self.figure.subplots(1, self.columns))
        for one in axes:
            one.grid(color=GRID, lw=0.7)
            one.set_axisbelow(True)
            one.tick_params(colors=MUTED, length=0)
            for side in one.spines.values():
                side.set_visible(False)
        return axes[0] if self.columns == 1 else axes

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.figure.savefig(self.path, format="svg", facecolor="white",
                                metadata={"Date": None})  # fmt: skip
        self.context.__exit__(kind, *rest)


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="best")
