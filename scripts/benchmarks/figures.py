"""Figures that can be read: axes with units, and colours that colour-blind people tell apart."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

# Okabe and Ito's palette, black last but one for what others are compared with.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
BASELINE_COLOUR = "#000000"


def new_figure(rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; no window, no state of pyplot's."""
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), constrained_layout=True)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for each in axes:
        each.grid(alpha=0.3, which="major")
    return figure, axes


def logarithmic(axes: Axes, xs: list[float]) -> None:
    """Both axes logarithmic, with a tick at each x."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(set(xs)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
