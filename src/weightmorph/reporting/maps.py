"""The metric over two parameters: a map for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..evaluation import Evaluation, Row
from .style import Palette, metric_format

__all__ = ["height", "maps"]

COLUMNS = 2
NUMBERED = 12
"""Each cell shows its number where no parameter has more values than this."""


def height(evaluation: Evaluation, grid: Sequence[Sequence[float]]) -> float:
    """The figure's height in inches; `grid` holds the values of the first and of the second parameter."""
    across, down = grid
    return math.ceil(len(evaluation.rows) / COLUMNS) * (0.8 + 2.5 * max(0.5, min(1.0, len(down) / len(across))))


def maps(figure: Figure, palette: Palette, *, evaluation: Evaluation, grid: Sequence[Sequence[float]]) -> None:
    """One map per row, over both parameters, all on one scale of colours."""
    lines = math.ceil(len(evaluation.rows) / COLUMNS)
    grid_of_axes = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False)
    values = [value for row in evaluation.rows for value in row.values]
    colours = LinearSegmentedColormap.from_list("scores", (palette.paper, palette.series[0]))
    norm = Normalize(min(values), max(values))
    for number, (axes, row) in enumerate(zip(grid_of_axes.flat, evaluation.rows, strict=False)):
        table = _table(evaluation, row, grid)
        mesh = axes.pcolormesh(table, cmap=colours, norm=norm, edgecolors=palette.paper, linewidth=0.6)
        axes.set_title(row.name, loc="left", fontweight="bold")
        axes.set_title(f"mean {evaluation.text(row.mean)}", loc="right", color=palette.muted)
        for (y, x), value in np.ndenumerate(table if max(table.shape) <= NUMBERED else np.empty((0, 0))):
            text = f"{100 * value:.0f}" if evaluation.metric == "accuracy" else f"{value:.2g}"
            color = palette.paper if norm(value) > 0.6 else palette.ink
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=color, fontsize=7)
        y, x = divmod(int(table.argmin()), table.shape[1])
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=palette.wrong, linewidth=1.8, clip_on=False))
        _name_axes(axes, evaluation, grid)
        axes.yaxis.label.set_visible(number % COLUMNS == 0)
    for axes in grid_of_axes.flat[len(evaluation.rows) :]:
        axes.set_visible(False)
    bar = figure.colorbar(mesh, ax=grid_of_axes, format=metric_format(evaluation), shrink=0.6, aspect=30, pad=0.03)
    bar.outline.set(edgecolor=palette.rule)


def _table(evaluation: Evaluation, row: Row, grid: Sequence[Sequence[float]]) -> np.ndarray:
    """A row's values, one line of the table per value of the second parameter."""
    across, down = grid
    table = np.empty((len(down), len(across)))
    for theta, value in zip(evaluation.settings, row.values, strict=True):
        first, second = theta.values()
        table[down.index(second), across.index(first)] = value
    return table


def _name_axes(axes: Axes, evaluation: Evaluation, grid: Sequence[Sequence[float]]) -> None:
    """The parameters' names, and their first, middle and last value."""
    for axis, name, values in zip((axes.xaxis, axes.yaxis), evaluation.grid, grid, strict=True):
        places = sorted({0, len(values) // 2, len(values) - 1})
        texts = [evaluation.space[name].format(values[place], 3) for place in places]
        axis.set_ticks([place + 0.5 for place in places], [t if len(t) <= 12 else f"{t[:11]}…" for t in texts])
        axis.set_label_text(name)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
