"""Best temperatures drawn: a bar for each size, its lower end with an interval, and a line."""

from distill.report.best import NEAR, Bests
from distill.report.drawing import LINE, Drawing, framed, scaled
from distill.report.numbers import amount, share, text
from distill.report.style import LIGHT


def draw(plot: Bests) -> Drawing:
    """The figure of ``plot``, in the style that is in force."""
    drawing, (axes,) = framed(plot, 4.2)
    low, high = ([getattr(found, end) for found in plot.least] for end in ("low", "high"))
    least = [found.mean for found in plot.least]
    good = axes.vlines(plot.sizes, least, plot.most, color=LIGHT["muted"], linewidth=1, zorder=1.5)
    axes.fill_between(plot.sizes, low, high, color=LINE[0], alpha=0.12, linewidth=0)
    [marks] = axes.plot(plot.sizes, least, "o", color=LINE[0], markersize=6.5)
    for size, value, located in zip(plot.sizes, least, plot.located, strict=True):
        if not located:
            axes.plot([size], [value], "o", color=LIGHT["card"], markersize=3.5)
    [line] = axes.plot(*zip(*plot.line, strict=True), color=LINE[1], linestyle=(0, (5, 2)))
    near = share(NEAR - 1)
    for size, found, most, told in zip(plot.sizes, plot.least, plot.most, plot.told, strict=True):
        words = [
            f"{plot.x} {text(size)}",
            f"{plot.unit} {told}",
            f"errors within {near} of the fewest: {amount(found.mean)} to {amount(most)}",
            f"95 % interval of the least of them {amount(found.low)} to {amount(found.high)}",
            f"n = {found.n}",
        ]
        drawing.values.append((axes, size, found.mean, "\n".join(words)))
    scaled(axes, "x", plot.sizes, log=True)
    scaled(axes, "y", [*plot.most, *low, *high], log=True)
    axes.set(xlabel=plot.x, ylabel="temperature")
    drawing.figure.legend(
        [marks, line, good],
        ["least, 95 % interval", "slope", f"within {near} of the fewest errors"],
        loc="outside lower left", ncols=2, fontsize=10.5, handletextpad=0.4, columnspacing=1.2,
        handlelength=1.4,
    )  # fmt: skip
    return drawing
