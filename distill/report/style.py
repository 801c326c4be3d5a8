"""Colours and style of figures and of the page."""

from typing import Any

from matplotlib.typing import RcKeyType

# name: (light, dark). Figures are drawn in the light ones; the page replaces them with variables.
# Lines keep a contrast of 4.5 with their ground, and differ in shape besides.
COLOURS = {
    "card": ("#fffffe", "#1c1f24"),
    "ink": ("#1d2126", "#e8eaed"),
    "muted": ("#5c636d", "#a3abb6"),
    "rule": ("#d9dce0", "#3a4049"),
    "line-0": ("#0067a5", "#5ab4ee"),
    "line-1": ("#c24a08", "#f2924f"),
    "line-2": ("#00795a", "#35c79a"),
    "line-3": ("#9a3b80", "#e58fca"),
    "line-4": ("#786800", "#d8c64c"),
    "line-5": ("#48566b", "#aab6c8"),
    "line-6": ("#b3123f", "#ff8095"),
    "line-7": ("#007a8e", "#4fd0e0"),
    "heat-0": ("#fef6e9", "#23272c"),
    "heat-1": ("#fde6c4", "#3a3022"),
    "heat-2": ("#fcd196", "#543f1d"),
    "heat-3": ("#f9b668", "#704c18"),
    "heat-4": ("#f29b4b", "#8c5616"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}

STYLE: dict[RcKeyType, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
    "font.size": 11.5,
    "figure.constrained_layout.w_pad": 0.08,  # inches
    "figure.constrained_layout.h_pad": 0.08,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["rule"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "figure.facecolor": LIGHT["card"],
    "figure.dpi": 72,  # a pixel is a unit of SVG
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "distill",
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}
