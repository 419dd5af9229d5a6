"""The metric over θ: round for an angle, straight for a range, as maps for two parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..evaluation import Evaluation, Row, listing
from ..parameters import Angle, Categorical, LogInterval, Parameter
from .maps import maps
from .polar import goes_round, polar
from .style import WIDTH, Line, Palette, Picture, board, drawing_order, ends, lines, picture, score, spread

__all__ = ["pictures"]


def pictures(found: Evaluation, thumbnails: Mapping[float, np.ndarray] | None = None) -> list[Picture]:
    """The metric over the grid, and, where rows are too near each other to see, a closer look at those.

    Args:
        found: the evaluation.
        thumbnails: angle to an image `(h, w)` or `(h, w, 3)` in [0, 1] seen at that angle, drawn around a round chart.
    """
    # Rows that were told a wrong θ have the first row's curve, only lower: they are in the table.
    found = dataclasses.replace(found, rows=tuple(row for row in found.rows if row.role != "offset"))
    over = listing(found.grid)
    metric = found.metric[:1].upper() + found.metric[1:]
    alt = f"{metric} over {over}. " + "; ".join(
        f"{row.name}: mean {found.text(row.mean)}, from {found.text(row.worst)} to {found.text(max(row.values))}"
        for row in found.rows
    )
    curve = partial(
        picture, "curve", f"{metric} over {over}", alt=alt,
        subtitle=f"{found.images:,} test images, {len(found.settings):,} settings",
    )  # fmt: skip
    low, _ = ends(found, found.rows)
    starts = f"The axis starts at {found.text(low)}." if low else ""
    if len(found.grid) > 1:
        axes = [sorted(set(values)) for values in found.grid.values()]
        distinct = {tuple(theta.values()) for theta in found.settings}
        if len(axes) == 2 and math.prod(map(len, axes)) == len(found.settings) == len(distinct):
            return [curve(partial(maps, found, axes), caption="The box marks the worst setting of each.")]
        sort = "For each row, the settings sorted from the worst to the best."
        return [curve(partial(_sorted, found), caption=f"{sort} {starts}".strip())]
    ((name, parameter),) = found.space.items()
    if isinstance(parameter, Categorical):
        return [curve(partial(_categories, found, parameter), caption=starts)]
    if isinstance(parameter, Angle) and goes_round(parameter, found.grid[name]):
        made = [curve(partial(polar, found, parameter, thumbnails or {}), caption=starts.replace("axis", "radius"))]
    else:
        made = [curve(partial(_straight, found, name, parameter, found.rows), caption=starts)]
    close = _close(found)
    if close:
        names = ", ".join(row.name for row in close)
        draw = partial(_straight, found, name, parameter, close)
        told = f"{names} alone, on an axis that does not start at zero"
        made.append(picture("close", "A closer look", draw, subtitle=told, alt=f"The same for {told}."))
    return made


def _close(found: Evaluation) -> list[Row]:
    """Rows that stay in the top eighth of what the chart spans, if that leaves some out."""
    low, high = min(row.worst for row in found.rows), max(max(row.values) for row in found.rows)
    near = [row for row in found.rows if row.worst >= high - (high - low) / 8]
    return near if len(near) < len(found.rows) else []


def _chart(found: Evaluation, palette: Palette, height: float = 3.9) -> tuple[Figure, Axes, Axes]:
    """A board with one chart on it, and room on its right for names."""
    figure, page = board(height, palette)
    axes = figure.add_axes((0.62 / WIDTH, 0.55 / height, 5.0 / WIDTH, (height - 1.35) / height), facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=palette.muted, linewidth=0.8)
    axes.grid(axis="y", color=palette.rule, linewidth=0.7, linestyle="-")
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", colors=palette.muted, labelsize=8.5, length=0)
    axes.tick_params(axis="x", length=3)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(score(found))
    return figure, page, axes


def _label_ends(
    axes: Axes,
    found: Evaluation,
    rows: Sequence[Row],
    drawn: Mapping[str, Line],
    palette: Palette,
    last: Sequence[float],
) -> None:
    """Name every line at its end."""
    low, high = axes.get_ylim()
    inches = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    gap = 0.33 * (high - low) / inches
    for row, end, place in zip(rows, last, spread(last, gap, low, high), strict=True):
        axes.annotate(
            "", (1.0, end), (1.035, place), xycoords=axes.get_yaxis_transform(), textcoords=axes.get_yaxis_transform(),
            arrowprops={"arrowstyle": "-", "color": drawn[row.name].color, "lw": 0.9, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        axes.text(
            1.045, place, row.name, transform=axes.get_yaxis_transform(), color=drawn[row.name].color, fontsize=9,
            va="bottom", fontweight="bold" if row.role == "conditioned" else "normal",
        )  # fmt: skip
        axes.text(
            1.045, place, f"mean {found.text(row.mean)}", transform=axes.get_yaxis_transform(), color=palette.muted,
            fontsize=7.5, va="top",
        )  # fmt: skip


def _straight(found: Evaluation, name: str, parameter: Parameter, rows: Sequence[Row], palette: Palette) -> Figure:
    """A range from left to right."""
    figure, _, axes = _chart(found, palette)
    drawn = lines(found.rows, palette)
    values = np.asarray(found.grid[name])
    order = np.argsort(values, kind="stable")
    x = values[order]
    turn = parameter.turn if isinstance(parameter, Angle) and goes_round(parameter, found.grid[name]) else None
    x = np.append(x, x[0] + turn) if turn else x
    last = []
    for row in drawing_order(rows):
        y = np.asarray(row.values)[order]
        y = np.append(y, y[0]) if turn else y
        axes.plot(x, y, **drawn[row.name].options())
        last.append(float(y[-1]))
    if len(rows) == len(found.rows):
        low, high = ends(found, rows)
    else:
        low, high = min(row.worst for row in rows), max(max(row.values) for row in rows)
        pad = 0.08 * (high - low) or 0.01
        low, high = low - pad, high + pad
        high = min(high, 1.0) if found.metric == "accuracy" and high > 1 else high
    axes.set_ylim(low, high + 0.01 * (high - low))
    axes.set_xlim(x[0], x[-1] if x[-1] > x[0] else x[0] + 1)
    _x_axis(axes, name, parameter, x, palette)
    if x[0] < parameter.anchor_value < x[-1]:
        axes.axvline(parameter.anchor_value, color=palette.muted, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        axes.text(
            parameter.anchor_value, 0.02, " anchor", transform=axes.get_xaxis_transform(), color=palette.muted,
            fontsize=7.5,
        )  # fmt: skip
    _label_ends(axes, found, drawing_order(rows), drawn, palette, last)
    return figure


def _x_axis(axes: Axes, name: str, parameter: Parameter, x: np.ndarray, palette: Palette) -> None:
    unit = f" ({parameter.unit})" if parameter.unit and parameter.unit != "deg" else ""
    axes.set_xlabel(f"{name}{unit}", color=palette.muted, fontsize=9)
    if isinstance(parameter, Angle):
        eighth = parameter.turn / 8
        axes.xaxis.set_major_locator(
            FixedLocator((np.arange(math.ceil(x[0] / eighth), x[-1] / eighth + 1e-6) * eighth).tolist())
        )
    elif isinstance(parameter, LogInterval):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}{'°' if parameter.unit == 'deg' else ''}"))


def _categories(found: Evaluation, parameter: Categorical, palette: Palette) -> Figure:
    """A column of marks per category."""
    figure, page, axes = _chart(found, palette)
    drawn = lines(found.rows, palette)
    places = np.arange(len(found.settings))
    for row in reversed(found.rows):
        line = drawn[row.name]
        shift = (found.rows.index(row) - (len(found.rows) - 1) / 2) * 0.12
        axes.plot(places + shift, row.values, linestyle="none", marker=line.marker, color=line.color, markersize=7)
    low, high = ends(found, found.rows)
    axes.set_ylim(low, high + 0.02 * (high - low))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks(places, [found.at(i) for i in range(len(places))])
    for place, row in enumerate(sorted(found.rows, key=lambda row: -row.mean)):
        line, y = drawn[row.name], 1.1 + 0.42 * place
        page.plot(5.86, y, marker=line.marker, color=line.color, markersize=7)
        page.text(6.02, y, row.name, color=palette.ink, fontsize=9, va="center")
        page.text(6.02, y + 0.17, f"mean {found.text(row.mean)}", color=palette.muted, fontsize=7.5, va="center")
    return figure


def _sorted(found: Evaluation, palette: Palette) -> Figure:
    """Any number of parameters: each row's settings from its worst to its best."""
    figure, _, axes = _chart(found, palette)
    drawn = lines(found.rows, palette)
    share = np.linspace(0, 1, len(found.settings)) if len(found.settings) > 1 else np.zeros(1)
    for row in drawing_order(found.rows):
        axes.plot(share, sorted(row.values), **drawn[row.name].options())
    low, high = ends(found, found.rows)
    axes.set_ylim(low, high + 0.01 * (high - low))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the settings", color=palette.muted, fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    _label_ends(axes, found, found.rows, drawn, palette, [max(row.values) for row in found.rows])
    return figure
