"""The picture of a search: negative flips against score, and the front between them."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from muscle.report.text import one_line
from muscle.tuning.ranking import feasible
from muscle.tuning.records import Found, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
_TRIAL, _FRONT, _CHOSEN, _NEW, _SHADE = "#1f77b4", "#444444", "#d62728", "#2ca02c", "#bbbbbb"


def front_png(found: Found) -> bytes:
    """Half A's trials as a PNG: change of the score in points (x), NFR in % (y).

    The same result gives the same bytes. Where no trial finished, the axes hold a note.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own: pyplot's are shared by the whole process and need a display.
    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # A name with two dollar signs is no formula.
    axes.set_title(one_line(found.name, 80), parse_math=False)
    word = "score" if found.continuous else "accuracy"
    axes.set_xlabel(f"change of {word} against new, points (half A)")
    axes.set_ylabel("NFR, % (half A)")
    _draw_trials(axes, found)
    _draw_candidates(axes, found)
    _draw_bounds(axes, found)
    axes.legend(loc="best", fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def front_line(found: Found) -> list[Point]:
    """The corners of the front, by rising x: to each score the lowest NFR that reaches it."""
    measured = {t.number: t.a for t in found.trials}
    return sorted(_point(a) for n in found.front if (a := measured.get(n)) is not None)


def _point(m: Measured) -> Point:
    return 100 * m.gain, 100 * m.nfr


def _finished(found: Found, fit: bool) -> list[Point]:
    """Where the feasible, or the infeasible, finished trials lie."""
    return [
        _point(t.a) for t in found.trials if t.a is not None and feasible(t, found.epsilon) is fit
    ]


def _draw_trials(axes: "Axes", found: Found) -> None:
    for fit, label, face in ((True, "feasible", _TRIAL), (False, "infeasible", "none")):
        if points := _finished(found, fit):
            _scatter(axes, points, 45, f"trial, {label}", "o", face, _TRIAL)
    if line := front_line(found):
        # Between two corners only the right one reaches the score.
        axes.step(*zip(*line, strict=True), where="pre", color=_FRONT, lw=1.2, label="front")
    for trial in found.trials:
        if trial.number in found.front and trial.a is not None:
            axes.annotate(
                str(trial.number),
                _point(trial.a),
                xytext=(5, -12),
                textcoords="offset points",
                fontsize="small",
            )


def _draw_candidates(axes: "Axes", found: Found) -> None:
    between = [_point(c.a) for c in found.candidates if c.interpolation != 1]
    if between:
        _scatter(axes, between, 18, "interpolation", "D", _FRONT, _FRONT)
    if found.chosen is not None:
        label = f"chosen: {found.chosen.name}"
        _scatter(axes, [_point(found.chosen.a)], 220, label, "*", _CHOSEN, "black")
    elif found.closest is not None:
        label = f"closest: {found.closest.name}"
        _scatter(axes, [_point(found.closest.a)], 220, label, "*", "none", _CHOSEN)


def _scatter(
    axes: "Axes", points: list[Point], size: float, label: str, marker: str, face: str, edge: str
) -> None:
    x, y = zip(*points, strict=True)
    axes.scatter(
        x,
        y,
        s=size,
        marker=marker,
        facecolors=face,
        edgecolors=edge,
        label=label,
        zorder=3,
    )


def _draw_bounds(axes: "Axes", found: Found) -> None:
    """New's own NFR, the least score that is feasible, and limits that show both."""
    bound = -100 * found.epsilon
    shown = [t.a for t in found.trials if t.a is not None and t.state == "finished"]
    new = [100 * m.nfr_new for m in shown[:1]]
    extra = [c.a for c in (*found.candidates, found.chosen, found.closest) if c is not None]
    points = [_point(m) for m in (*shown, *extra)]
    left, right = _limits([bound, 0.0, *(x for x, _ in points)], 1.0)
    bottom, top = _limits([*new, *(y for _, y in points)], 1.0)
    axes.set_xlim(left, right)
    axes.set_ylim(max(bottom, -0.05 * (top - bottom)), top)
    axes.axvspan(left, bound, color=_SHADE, alpha=0.35, lw=0, zorder=0, label="infeasible side")
    axes.axvline(bound, color=_FRONT, lw=1, ls="--", label=f"new's score less epsilon, {bound:g}")
    for value in new:
        axes.axhline(value, color=_NEW, lw=1, ls=":", label=f"new's NFR, {value:.2f} %")
    if not shown:
        axes.text(0.5, 0.5, "no trial finished", transform=axes.transAxes, ha="center")


def _limits(values: Iterable[float], least: float) -> Point:
    """An axis' ends: all values and a margin, at least `least` long."""
    inside = list(values) or [0.0]
    low, high = min(inside), max(inside)
    length = max(high - low, least)
    middle = (low + high) / 2
    return middle - 0.6 * length, middle + 0.6 * length
