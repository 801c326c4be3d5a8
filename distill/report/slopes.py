"""Best temperatures drawn: a mark for each size with its interval, and the line through them."""

from distill.report.best import NEAR, Bests
from distill.report.drawing import LINE, Drawing, framed, scaled
from distill.report.numbers import amount, share, text
from distill.report.style import LIGHT


def draw(plot: Bests) -> Drawing:
    """The figure of ``plot``, in the style that is in force."""
    drawing, (axes,) = framed(plot, 4.2)
    low, high = ([getattr(found, end) for found in plot.found] for end in ("low", "high"))
    bests = [found.mean for found in plot.found]
    good = [(size, t) for size, near in zip(plot.sizes, plot.near, strict=True) for t in near]
    [near] = axes.plot(*zip(*good, strict=True), "_", color=LIGHT["muted"], markersize=6)
    axes.vlines(
        plot.sizes, [t[0] for t in plot.near], [t[-1] for t in plot.near],
        color=LIGHT["muted"], linewidth=1, zorder=1.5,
    )  # fmt: skip
    axes.fill_between(plot.sizes, low, high, color=LINE[0], alpha=0.12, linewidth=0)
    [marks] = axes.plot(plot.sizes, bests, "o", color=LINE[0], markersize=6.5)
    for size, value, bound in zip(plot.sizes, bests, plot.bound, strict=True):
        if bound:
            axes.plot([size], [value], "o", color=LIGHT["card"], markersize=3.5)
    [line] = axes.plot(*zip(*plot.line, strict=True), color=LINE[1], linestyle=(0, (5, 2)))
    for size, found, bound, same in zip(plot.sizes, plot.found, plot.bound, plot.near, strict=True):
        words = [
            f"{plot.x} {text(size)}",
            f"{plot.unit} {bound}{amount(found.mean)}",
            f"95 % interval {amount(found.low)} to {amount(found.high)}",
            f"within {share(NEAR - 1)} of the fewest errors: {', '.join(map(text, same))}",
            f"n = {found.n}",
        ]
        drawing.values.append((axes, size, found.mean, "\n".join(words)))
    scaled(axes, "x", plot.sizes, log=True)
    scaled(axes, "y", [t for _, t in good] + low + high, log=True)
    axes.set(xlabel=plot.x, ylabel="temperature")
    drawing.figure.legend(
        [marks, line, near],
        ["best, 95 % interval", "slope", f"errors within {share(NEAR - 1)} of the fewest"],
        loc="outside lower left", ncols=2, fontsize=10.5, handletextpad=0.4, columnspacing=1.2,
        handlelength=1.4,
    )  # fmt: skip
    return drawing
