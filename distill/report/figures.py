"""Figures as files, and as SVG for the page, where they follow its theme and say their values."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from distill.report import forest, points, slopes
from distill.report.best import Bests
from distill.report.comparison import Differences
from distill.report.drawing import Drawing, draw
from distill.report.numbers import Plot
from distill.report.style import LIGHT, STYLE
from distill.report.trials import Points
from distill.system.store import write, write_text

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


def _spread(labels: Sequence[Annotation], gap: float = 13.5) -> None:
    """Move labels apart until each has ``gap`` units of its own."""
    places = [float(label.axes.transData.transform((0, label.xy[1]))[1]) for label in labels]  # type: ignore[union-attr]
    order = np.argsort(places)
    moved = [places[i] for i in order]
    for _ in range(100):
        for k in range(len(moved) - 1):
            if (short := gap - (moved[k + 1] - moved[k])) > 0:
                moved[k], moved[k + 1] = moved[k] - short / 2, moved[k + 1] + short / 2
    for i, place in zip(order, moved, strict=True):
        labels[i].xyann = (6, place - places[i])


def _settle(drawing: Drawing) -> None:
    """Lay the figure out for good, so that places in it are those of every file."""
    for _ in range(2):
        drawing.figure.draw_without_rendering()
    drawing.figure.set_layout_engine("none")
    for axes in drawing.figure.axes:  # the solver's last digits differ from time to time
        axes.set_position(np.round(axes.get_position(original=True).bounds, 5).tolist())
    for labels in drawing.labels:
        _spread(labels)


def _bytes(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _svg(drawing: Drawing, plot: Plot, name: str) -> ElementTree.Element:
    """The figure as SVG, its ids its own on any page, with a title for each value."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    raw = _bytes(drawing.figure, "svg")
    own = re.sub(rb'(\bid="|href="#|url\(#)', lambda m: m[0] + name.encode() + b"-", raw)
    root = ElementTree.fromstring(own)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)  # which holds the date
    root.set("role", "img")
    root.set("aria-label", ". ".join(t for t in (plot.title, plot.setting, plot.caption) if t))
    height = drawing.figure.get_figheight() * 72
    for axes, x, y, words in drawing.values:
        right, up = axes.transData.transform((x, y))
        place = {"cx": f"{right:.2f}", "cy": f"{height - up:.2f}", "r": "7"}
        circle = ElementTree.SubElement(root, f"{{{SVG}}}circle", place)
        circle.attrib |= {"class": "value", "fill": "none", "pointer-events": "all"}
        circle.set("data-tip", words)
        ElementTree.SubElement(circle, f"{{{SVG}}}title").text = words
    return root


def _themed(svg: str) -> str:
    """SVG for the page: its width, font and colours are those of the page."""
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    names = {light: f"var(--{name})" for name, light in LIGHT.items()}
    svg = re.sub("|".join(names), lambda m: names[m[0]], svg)
    return re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)


def _drawn(plot: Plot) -> Drawing:
    if isinstance(plot, Points):
        return points.draw(plot)
    if isinstance(plot, Bests):
        return slopes.draw(plot)
    return forest.draw(plot) if isinstance(plot, Differences) else draw(plot)


def save(plot: Plot, folder: Path, name: str) -> str:
    """Write the figure as ``name``.svg and ``name``.png into ``folder``; returns it for the page.

    The same figure makes the same bytes. The returned SVG takes its colours from variables of the
    page, named as in ``style.COLOURS``, and its font from ``--sans``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        drawing = _drawn(plot)
        _settle(drawing)
        svg = ElementTree.tostring(_svg(drawing, plot, name), encoding="unicode")
        png = _bytes(drawing.figure, "png", dpi=200, metadata={"Software": None})
    write_text(folder / f"{name}.svg", svg + "\n")
    write(folder / f"{name}.png", lambda path: path.write_bytes(png))
    return _themed(svg)
