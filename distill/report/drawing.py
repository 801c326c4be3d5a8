"""Plots drawn: 360 units wide, so that their text can be read on a phone, where they fill it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from distill.report.numbers import Gallery, Grid, Line, Lines, Plot, amount, share, text
from distill.report.statistics import Interval
from distill.report.style import LIGHT

LINE = [LIGHT[f"line-{i}"] for i in range(8)]
COMPARED = ("temperature", "learning-rate")  # each line with its best, where they lie far apart
MARKERS = "os^Dv>P<"
STEPS = (0.02, 0.05, 0.15, 0.4)  # excess at which the next shade begins

WIDTH = 360 / 72  # inches
TICKS = 10  # of classes, at most


@dataclass
class Drawing:
    """A figure, what it says at places in it (axes, x, y, words), and labels to be kept apart."""

    figure: Figure
    values: list[tuple[Axes, float, float, str]] = field(default_factory=list)
    labels: list[list[Annotation]] = field(default_factory=list)


def framed(plot: Plot, height: float, rows: int = 1) -> tuple[Drawing, list[Axes]]:
    """A figure with its title, and rows of axes."""
    held = wrap(plot.setting, 50)
    figure = Figure(figsize=(WIDTH, height + 0.2 * len(held)), layout="constrained")
    axes = list(figure.subplots(rows, 1, squeeze=False)[:, 0])
    axes[0].set_title("\n".join([_capital(plot.title), *[" "] * len(held)]), linespacing=1.4)
    axes[0].annotate(
        "\n".join(held), (0, 1), (0, 7), "axes fraction", "offset points", color=LIGHT["muted"]
    )
    return Drawing(figure), axes


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def scaled(axes: Axes, name: str, values: Sequence[float], log: bool) -> None:
    """Ticks in plain numbers; on a log axis within a decade as evenly as on a linear one."""
    axes.set(**{f"{name}scale": "log" if log else "linear"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    far = log and max(values) / min(values) > 10
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5)) if far else MaxNLocator(5, steps=[1, 2, 5, 10])
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _ticks_at(axes: Axes, values: Sequence[float], log: bool) -> None:
    """A tick at each value on the x axis, but for those too near to the one before."""
    places = np.log(values) if log else np.array(values)
    room = (7.5 * max(len(text(v)) for v in values) + 6) / 260 * np.ptp(places)
    kept: list[int] = []
    for i, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= room:
            kept.append(i)
    axes.xaxis.set_major_locator(FixedLocator([values[i] for i in kept]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text(float(v))))


def _limits(axes: Axes, lines: Sequence[Line], log: bool) -> None:
    """Limits that show every mean, and bands as far as they leave the means their room."""
    means = [y.mean for line in lines for y in line.y]
    ends = [(y.low, y.high) for line in lines for y in line.y if not math.isnan(y.low)]
    low = min([*means, *(max(e[0], min(means) * 0.7) for e in ends)])
    high = max([*means, *(min(e[1], max(means) * 1.4) for e in ends)])
    if log:
        axes.set_ylim(low / 1.06, high * 1.06)
    else:
        axes.set_ylim(low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))


def _draw_line(axes: Axes, line: Line, number: int, dense: bool) -> None:
    colour, marker = LINE[number], "" if dense else MARKERS[number]
    axes.plot(line.x, [y.mean for y in line.y], color=colour, marker=marker)
    floor = min(y.mean for y in line.y) / 100  # a band may reach below 0, where no log is
    low, high = ([getattr(y, end) for y in line.y] for end in ("low", "high"))
    axes.fill_between(
        line.x, np.maximum(low, floor), high, color=colour, alpha=0.12, linewidth=0
    )  # fmt: skip


def _listed(names: Sequence[str]) -> int:
    """The length of the longest of names too long to stand beside their lines; 0 if none is."""
    longest = max(map(len, names))
    return longest * (longest > 13)


def _name_lines(drawing: Drawing, axes: Axes, lines: Sequence[Line]) -> None:
    """Names beside the lines where they are short, or else in a list below them."""
    names = [line.label for line in lines]
    if longest := _listed(names):
        if not drawing.figure.legends:
            handles = axes.get_lines()[: len(lines)]
            drawing.figure.legend(
                handles, names, loc="outside lower left", ncols=1 + (longest < 24), fontsize=10.5
            )
        return
    drawing.labels.append(
        [
            axes.annotate(
                line.label, (1, line.y[-1].mean), (6, 0), ("axes fraction", "data"),
                "offset points", va="center", color=LINE[i],
            )
            for i, line in enumerate(lines)
        ]
    )  # fmt: skip


def _relative(line: Line) -> Line:
    """A line in shares of its best mean."""
    best = min(y.mean for y in line.y)
    ys = (Interval(y.n, y.mean / best, y.low / best, y.high / best) for y in line.y)
    return Line(line.label, line.x, tuple(ys))


def _told(plot: Plot, name: str, x: str, y: Interval) -> str:
    words = [name, x, f"{amount(y.mean)} {plot.unit}"]
    if not math.isnan(y.low):
        words.append(f"95 % interval {amount(y.low)} to {amount(y.high)}")
    words.append(f"n = {y.n}")
    return "\n".join(w for w in words if w)


def _panel(
    drawing: Drawing, axes: Axes, plot: Lines, lines: Sequence[Line], log: tuple[bool, bool]
) -> None:
    dense = plot.kind == "curves"
    xs = sorted({x for line in lines for x in line.x})
    for number, (line, original) in enumerate(zip(lines, plot.lines, strict=True)):
        _draw_line(axes, line, number, dense)
        drawing.values += [
            (axes, x, y.mean, _told(plot, line.label, f"{plot.x} {text(x)}", told))
            for x, y, told in zip(line.x, line.y, original.y, strict=True)
        ]
    scaled(axes, "x", xs, log[0])
    if not dense:
        _ticks_at(axes, xs, log[0])
    scaled(axes, "y", [y.mean for line in lines for y in line.y], log[1])
    _limits(axes, lines, log[1])
    _name_lines(drawing, axes, lines)


def _draw_lines(plot: Lines) -> Drawing:
    """Lines with their bands; where they lie far apart, also each against its own best."""
    means = [[y.mean for y in line.y] for line in plot.lines]
    flat, bests = [m for row in means for m in row], [min(row) for row in means]
    xs = [x for line in plot.lines for x in line.x]
    spread = plot.kind in COMPARED and min(flat) > 0 and max(bests) / min(bests) > 1.5
    log_y = min(flat) > 0 and (plot.kind == "curves" or max(flat) / min(flat) > 3 or spread)
    log_x = plot.kind != "curves" and min(xs) > 0 and max(xs) / min(xs) > 4
    listed = _listed([line.label for line in plot.lines])
    below = 0.25 * len(plot.lines) / (1 + (listed < 24)) * bool(listed)
    drawing, axes = framed(plot, (6.2 if spread else 3.9) + below, 1 + spread)
    _panel(drawing, axes[0], plot, plot.lines, (log_x, log_y))
    if plot.teacher is not None and plot.teacher > 0 and plot.kind != "curves":
        _teacher(axes[0], plot.teacher)
    if spread:
        axes[1].set_title("Against the best of each")
        lines = [_relative(line) for line in plot.lines]
        _panel(drawing, axes[1], plot, lines, (log_x, False))
        axes[1].yaxis.set_major_formatter(
            FuncFormatter(lambda v, _: share(v - 1, "+") if round(v - 1, 6) else "best")
        )
    axes[-1].set_xlabel(plot.x)
    return drawing


def _teacher(axes: Axes, errors: float) -> None:
    low, high = axes.get_ylim()
    if errors < low / 2 or errors > high * 2:
        return
    axes.set_ylim(min(low, errors * 0.9), max(high, errors * 1.1))
    axes.axhline(errors, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"teacher {amount(errors)}", (0, errors), (2, 3), ("axes fraction", "data"),
        "offset points", color=LIGHT["muted"], fontsize=10.5,
    )  # fmt: skip


def _draw_shift(plot: Lines) -> Drawing:
    """A mark for each class and state, and a stroke from before to after."""
    drawing, (axes,) = framed(plot, 3.9)
    before, after = plot.lines[:2]
    for x, was, now in zip(before.x, before.y, after.y, strict=True):
        axes.plot([x, x], [was.mean, now.mean], color=LIGHT["muted"], linewidth=1, zorder=1)
    for number, line in enumerate(plot.lines):
        face = LIGHT["card"] if number == 0 else LINE[number]
        beside = [x + 0.25 * (number == 2) for x in line.x]
        axes.plot(
            beside, [y.mean for y in line.y], MARKERS[number], color=LINE[number],
            markerfacecolor=face, markersize=7 - 2 * (number == 2), label=line.label,
        )  # fmt: skip
        drawing.values += [
            (axes, at, y.mean, _told(plot, line.label, f"class {text(x)}", y))
            for x, at, y in zip(line.x, beside, line.y, strict=True)
        ]
    means = [y.mean for line in plot.lines for y in line.y]
    if max(means) > 10 * (np.median(means) or 1):
        axes.set_yscale("symlog", linthresh=10)
        axes.yaxis.set_major_locator(
            FixedLocator([0, 5, *(m * 10**k for k in (1, 2, 3) for m in (1, 2, 5))])
        )
        axes.set_ylim(0, max(means) * 1.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_major_locator(FixedLocator(before.x))
    axes.set_xlabel(plot.x)
    drawing.figure.legend(
        loc="outside lower left", ncols=3, fontsize=10.5, handletextpad=0.2, columnspacing=1
    )
    return drawing


def _shade(excess: float) -> str:
    return LIGHT[f"heat-{sum(excess >= step for step in STEPS)}"]


def _draw_grid(plot: Grid) -> Drawing:
    """A cell for each pair, its mean written in it, its shade how far it lies from the best."""
    rows, columns = len(plot.row_values), len(plot.column_values)
    drawing, (axes,) = framed(plot, 1.35 + 0.36 * rows)
    size = min(11.5, 82 / columns)
    for i, j in np.ndindex(rows, columns):
        if (cell := plot.cells[i][j]) is None:
            continue
        excess = plot.excess[i][j]
        axes.add_patch(
            Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, color=_shade(excess), linewidth=0)
        )
        weight = "bold" if excess == 0 else "normal"
        written = amount(cell.mean) if size > 6 else ""
        axes.text(j, i, written, ha="center", va="center", fontsize=size, fontweight=weight)
        names = (
            f"{plot.rows} {text(plot.row_values[i])}, {plot.columns} {text(plot.column_values[j])}"
        )
        drawing.values.append(
            (axes, j, i, _told(plot, names, f"{share(excess, '+')} against the best", cell))
        )
    axes.set(
        xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel=plot.columns, ylabel=plot.rows
    )
    axes.set_xticks(range(columns), [text(v) for v in plot.column_values])
    axes.set_yticks(range(rows), [text(v) for v in plot.row_values])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _key(drawing.figure)
    return drawing


def _key(figure: Figure) -> None:
    """What the shades mean."""
    names = [f"below +{share(STEPS[0])}", *(share(step, "+") for step in STEPS)]
    handles = [Rectangle((0, 0), 1, 1, color=LIGHT[f"heat-{i}"]) for i in range(len(names))]
    figure.legend(
        handles, names, loc="outside lower left", ncols=len(names), fontsize=10,
        handlelength=1.2, handleheight=1.2, handletextpad=0.4, columnspacing=1,
    )  # fmt: skip


def _draw_gallery(plot: Gallery) -> Drawing:
    """One row for each digit: its picture, and for each temperature one bar for each class."""
    rows, columns = len(plot.digits), len(plot.temperatures)
    figure = Figure(figsize=(WIDTH, 0.6 + 0.85 * rows), layout="constrained")
    figure.suptitle(_capital(plot.title), x=0.02, ha="left", fontsize=12.5, fontweight="bold")
    drawing = Drawing(figure)
    axes = figure.subplots(rows, 1 + columns, squeeze=False, width_ratios=[0.8, *[1] * columns])
    for row, digit, probabilities in zip(axes, plot.digits, plot.probabilities, strict=True):
        row[0].imshow(digit.pixels, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        row[0].set_axis_off()
        for panel, temperature, values in zip(
            row[1:], plot.temperatures, probabilities, strict=True
        ):
            _bars(drawing, panel, values, digit.label, temperature)
    for panel, temperature in zip(axes[0, 1:], plot.temperatures, strict=True):
        panel.set_title(f"T = {temperature:g}", fontsize=11.5, fontweight="normal")
    classes = len(plot.probabilities[0][0])
    for panel in axes[-1, 1:]:
        panel.set_xticks(range(0, classes, math.ceil(classes / TICKS)))
        panel.tick_params(labelbottom=True, labelsize=9, pad=1)
    return drawing


def _bars(
    drawing: Drawing, axes: Axes, values: Sequence[float], label: int, temperature: float
) -> None:
    colours = [LINE[1] if c == label else LINE[0] for c in range(len(values))]
    axes.bar(range(len(values)), values, 0.75, color=colours)
    axes.set(ylim=(0, 1), xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[["left"]].set_visible(False)
    for c, value in enumerate(values):
        name = f"class {c}{' (its label)' if c == label else ''}"
        words = f"{name}\ntemperature {temperature:g}\nprobability {value:.2g}"
        drawing.values.append((axes, c, value / 2, words))


def draw(plot: Plot) -> Drawing:
    """The figure of ``plot``, in the style that is in force."""
    if isinstance(plot, Grid):
        return _draw_grid(plot)
    if isinstance(plot, Gallery):
        return _draw_gallery(plot)
    assert isinstance(plot, Lines)
    return _draw_shift(plot) if plot.kind == "bias-shift" else _draw_lines(plot)
