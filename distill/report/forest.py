"""Differences drawn: a row for each candidate, its mean and its interval beside a line at 0."""

import math

from matplotlib.ticker import FuncFormatter, MaxNLocator

from distill.report.comparison import BETTER, WORSE, Differences
from distill.report.drawing import LINE, Drawing, framed
from distill.report.numbers import amount
from distill.report.style import LIGHT

COLOURS = {BETTER: LINE[0], WORSE: LINE[6]}


def draw(plot: Differences) -> Drawing:
    """The figure of ``plot``, in the style that is in force; the best stands first."""
    drawing, (axes,) = framed(plot, 1.4 + 0.36 * len(plot.rows))
    axes.axvline(0, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, (name, difference) in enumerate(plot.rows):
        found, colour = difference.found, COLOURS.get(difference.verdict, LIGHT["muted"])
        low, high = (found.mean if math.isnan(v) else v for v in (found.low, found.high))
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([found.mean], [place], "o", color=colour, markersize=6.5)
        words = [
            name,
            f"{amount(found.mean)} {plot.unit}",
            f"95 % interval {amount(found.low)} to {amount(found.high)}",
            f"p = {difference.p:.2g} (Holm), n = {found.n}: {difference.verdict}",
        ]
        drawing.values.append((axes, found.mean, place, "\n".join(words)))
    axes.set_yticks(range(len(plot.rows)), [name for name, _ in plot.rows])
    axes.set_ylim(len(plot.rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(plot.unit)
    return drawing
