"""Trials drawn: a mark for each, its shape and colour how it ended."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, Locator, NullLocator

from distill.report.drawing import LINE, Drawing, framed, scaled
from distill.report.style import LIGHT
from distill.report.trials import BEST, STATES, Mark, Points
from distill.runs.columns import Status

NAMES = 12  # of values on an axis, at most; more are left to the marks' own words
HOLLOW = {"markerfacecolor": "none", "markeredgewidth": 1.2}
LOOKS: dict[str, dict[str, Any]] = {
    Status.COMPLETE: {"marker": "o", "color": LINE[0], "markersize": 5.5},
    Status.STOPPED: {"marker": "s", "color": LIGHT["muted"], "markersize": 4.5, **HOLLOW},
    Status.DIVERGED: {"marker": "x", "color": LINE[6], "markersize": 6.5, "markeredgewidth": 1.8},
    Status.FAILED: {"marker": "v", "color": LINE[3], "markersize": 6.5},
    BEST: {"marker": "*", "color": LINE[1], "markersize": 12},
}


class Below(Locator):
    """The ticks of another locator that lie below a value, above which nothing is measured."""

    def __init__(self, whole: Locator, end: float) -> None:
        self.whole, self.end = whole, end

    def __call__(self) -> list[float]:
        """Where the ticks are."""
        self.whole.set_axis(self.axis)
        return [tick for tick in self.whole() if tick <= self.end]

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Where the ticks are, between two values."""
        return [tick for tick in self.whole.tick_values(vmin, vmax) if tick <= self.end]


def draw(plot: Points) -> Drawing:
    """The figure of ``plot``, in the style that is in force."""
    drawing, (axes,) = framed(plot, 4.1)
    known = [mark.y for mark in plot.marks if mark.y is not None]
    xs = [mark.x for mark in plot.marks]
    scaled(axes, "y", known or [1.0], plot.log[1] and min(known) > 0)
    top = _heights(axes, known, len(known) < len(plot.marks))
    _widths(axes, plot, xs)
    handles = []
    if plot.path:
        [line] = axes.plot(*zip(*plot.path, strict=True), color=LINE[1], linewidth=1.3, zorder=1.5)
        handles.append((line, plot.line))
    for state in (*STATES, BEST):
        marks = [mark for mark in plot.marks if mark.state == state]
        if marks:
            handles.append((_draw(drawing, axes, marks, top), state))
    axes.set_xlabel(plot.x)
    drawing.figure.legend(
        *zip(*handles, strict=True), loc="outside lower left", ncols=3 if plot.path else 4,
        fontsize=10.5, handletextpad=0.4, columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip
    return drawing


def _draw(drawing: Drawing, axes: Axes, marks: Sequence[Mark], top: float) -> Line2D:
    """Marks of one state; those without a value at the ``top``."""
    ys = [top if mark.y is None else mark.y for mark in marks]
    look = LOOKS[marks[0].state]
    [line] = axes.plot([m.x for m in marks], ys, linestyle="", zorder=2.5, **look)
    drawing.values += [
        (axes, m.x, y, f"{m.words}") for m, y in zip(marks, ys, strict=True)
    ]  # fmt: skip
    return line


def _heights(axes: Axes, known: Sequence[float], unknown: bool) -> float:
    """Leave the values their room, and above a line those without any; returns where they lie."""
    low, high = min(known, default=0.0), max(known, default=1.0)
    log = axes.get_yscale() == "log"
    part = math.log(high / low) if log else high - low
    step = (part or (0.5 if log else abs(high) or 1.0)) / 16

    def above(steps: float) -> float:
        return high * math.exp(steps * step) if log else high + steps * step

    axes.set_ylim(low * math.exp(-step) if log else low - step, above(3.4 if unknown else 1))
    if unknown:
        axes.axhline(above(1.2), color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
        axes.yaxis.set_major_locator(Below(axes.yaxis.get_major_locator(), above(1.2)))
    return above(2.3)


def _widths(axes: Axes, plot: Points, xs: Sequence[float]) -> None:
    if plot.ticks:
        shown = range(len(plot.ticks)) if len(plot.ticks) <= NAMES else ()
        axes.xaxis.set_major_locator(FixedLocator(list(shown)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(shown), [_cut(plot.ticks[i], 44 // len(plot.ticks)) for i in shown])
        axes.set_xlim(-0.5, len(plot.ticks) - 0.5)
        return
    scaled(axes, "x", xs, plot.log[0] and min(xs) > 0)
    if plot.log[0] and min(xs) > 0:
        ends = min(xs) / 1.08, max(xs) * 1.08
    else:
        room = (max(xs) - min(xs) or 1.0) / 24
        ends = min(xs) - room, max(xs) + room
    axes.set_xlim(*ends)


def _cut(name: str, most: int) -> str:
    """A name with its end where it is too long: that of a path tells more than its start."""
    return name if len(name) <= max(most, 3) else f"…{name[-max(most - 1, 2) :]}"
