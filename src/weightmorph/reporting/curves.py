"""The metric over θ: round for an angle, straight for a range, as maps for two parameters."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetBox, OffsetImage, TextArea, VPacker
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from ..evaluation import Evaluation, Row, listing
from ..parameters import Parameter
from . import maps
from .style import Palette, Picture, axis_range, metric_format, picture, row_styles

__all__ = ["pictures"]


def pictures(evaluation: Evaluation, thumbnails: Mapping[float, np.ndarray] | None = None) -> list[Picture]:
    """The metric over the grid, and a closer look at rows that are too near each other to see.

    Args:
        evaluation: the values.
        thumbnails: angle to an image `(h, w)` or `(h, w, 3)` in [0, 1] seen at that angle, drawn around a round chart.
    """
    # Rows with a wrong θ have the first row's curve, only lower: the table is enough.
    rows = tuple(row for row in evaluation.rows if row.role != "offset")
    evaluation = dataclasses.replace(evaluation, rows=rows)
    metric = evaluation.metric[:1].upper() + evaluation.metric[1:]
    over = listing(evaluation.grid)
    alt = f"{metric} over {over}. " + "; ".join(
        f"{row.name}: mean {evaluation.text(row.mean)}, from {evaluation.text(row.worst)} to "
        f"{evaluation.text(max(row.values))}"
        for row in rows
    )
    curve = partial(
        picture, "curve", f"{metric} over {over}", alt=alt, height=max(3.3, 0.4 * len(rows) + 0.3),
        subtitle=f"{evaluation.images:,} test images, {len(evaluation.settings):,} settings",
    )  # fmt: skip
    low, _ = axis_range(evaluation, rows)
    start = f"The axis starts at {evaluation.text(low)}." if low else ""
    if len(evaluation.grid) > 1:
        grid = [sorted(set(values)) for values in evaluation.grid.values()]
        distinct = {tuple(theta.values()) for theta in evaluation.settings}
        if len(grid) == 2 and math.prod(map(len, grid)) == len(evaluation.settings) == len(distinct):
            draw = partial(maps.maps, evaluation=evaluation, grid=grid)
            height = maps.height(evaluation, grid)
            return [curve(draw, height=height, h_pad=0.08, caption="The box marks the worst setting of each.")]
        sort = "For each row, the settings sorted from the worst to the best."
        return [curve(partial(_sorted, evaluation=evaluation), caption=f"{sort} {start}".strip())]
    ((name, parameter),) = evaluation.space.items()
    if parameter.discrete:
        return [curve(partial(_categories, evaluation=evaluation), caption=start)]
    straight = partial(_straight, evaluation=evaluation, name=name)
    if _goes_round(parameter, evaluation.grid[name]):
        polar = partial(_polar, evaluation=evaluation, parameter=parameter, thumbnails=thumbnails or {})
        chart = curve(polar, height=4.6, caption=start.replace("axis", "radius"))
    else:
        chart = curve(straight, caption=start)
    near = _nearest_the_top(rows)
    if not near:
        return [chart]
    subtitle = f"{', '.join(row.name for row in near)} alone, on an axis that does not start at zero"
    draw, alt = partial(straight, only=near), f"The same for {subtitle}."
    return [chart, picture("close", "A closer look", draw, height=3.3, subtitle=subtitle, alt=alt)]


def _nearest_the_top(rows: Sequence[Row]) -> list[Row]:
    """Rows that stay in the top eighth of the chart, if that leaves some out and their values differ visibly."""
    low, high = min(row.worst for row in rows), max(max(row.values) for row in rows)
    near = [row for row in rows if row.worst >= high - (high - low) / 8]
    # A smaller difference is rounding noise.
    differ = bool(near) and high - min(row.worst for row in near) > 1e-6 * max(abs(low), abs(high))
    return near if differ and len(near) < len(rows) else []


def _goes_round(parameter: Parameter, values: Sequence[float]) -> bool:
    """Do the values go all the way round a circle?"""
    if parameter.turn is None:
        return False
    around = sorted({value % parameter.turn for value in values})
    gaps = [b - a for a, b in pairwise([*around, around[0] + parameter.turn])]
    return len(around) >= 8 and max(gaps) <= parameter.turn / 6


def _plot(
    axes: Axes, palette: Palette, evaluation: Evaluation, rows: Sequence[Row], x: np.ndarray, order: np.ndarray
) -> None:
    """A line for each row; `order` gives the settings as indices into the grid."""
    styles = row_styles(evaluation.rows, palette)
    # The solid line first: broken ones on top of it leave it visible.
    for row in sorted(rows, key=lambda row: row.role != "conditioned"):
        options = styles[row.name] | ({"marker": ""} if len(x) > 1 else {})
        axes.plot(x, np.asarray(row.values)[order], label=row.name, clip_on=False, **options)


def _finish(figure: Figure, axes: Axes, evaluation: Evaluation, low: float, high: float) -> None:
    """The metric's axis, and a legend of the rows with their figures, the best first."""
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(metric_format(evaluation))
    axes.grid(True, axis="y")
    lines, names = axes.get_legend_handles_labels()
    handles = dict(zip(names, lines, strict=True))
    rows = sorted((evaluation[str(name)] for name in handles), key=lambda row: -row.mean)
    texts = [f"{textwrap.fill(row.name, 24)}\nmean {evaluation.text(row.mean)}" for row in rows]
    if axes.name == "polar":  # which leaves room on its right
        texts = [f"{text}, worst {evaluation.text(row.worst)}" for text, row in zip(texts, rows, strict=True)]
    legend = figure.legend([handles[row.name] for row in rows], texts, loc="outside right center")
    for row, text in zip(rows, legend.get_texts(), strict=True):
        text.set_fontweight("bold" if row.role == "conditioned" else "normal")


def _straight(
    figure: Figure, palette: Palette, *, evaluation: Evaluation, name: str, only: Sequence[Row] | None = None
) -> None:
    """A range from left to right."""
    axes = figure.subplots()
    parameter, grid = evaluation.space[name], np.asarray(evaluation.grid[name])
    order = np.argsort(grid, kind="stable")
    x = grid[order]
    if parameter.turn is not None and _goes_round(parameter, evaluation.grid[name]):
        order, x = np.append(order, order[0]), np.append(x, x[0] + parameter.turn)
    rows = only or evaluation.rows
    _plot(axes, palette, evaluation, rows, x, order)
    axes.set_xlabel(f"{name} ({parameter.unit})" if parameter.unit else name)
    if parameter.log_scale:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif parameter.turn is not None and x[-1] - x[0] >= parameter.turn / 4:
        axes.xaxis.set_major_locator(MultipleLocator(parameter.turn / 8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: parameter.format(value, unit=False)))
    if len(x) > 1:
        axes.set_xlim(x[0], x[-1])
    if x[0] < parameter.anchor_value < x[-1]:
        axes.axvline(parameter.anchor_value, color=palette.muted, linewidth=0.8, linestyle=":", zorder=0)
        where = parameter.anchor_value, 0.02
        axes.text(*where, " anchor", transform=axes.get_xaxis_transform(), color=palette.muted, fontsize=7.5)
    _finish(figure, axes, evaluation, *axis_range(evaluation, rows, close=only is not None))


def _categories(figure: Figure, palette: Palette, *, evaluation: Evaluation) -> None:
    """A column of marks per category."""
    axes = figure.subplots()
    places = np.arange(len(evaluation.settings))
    styles = row_styles(evaluation.rows, palette)
    for number, row in enumerate(evaluation.rows):
        shift = (number - (len(evaluation.rows) - 1) / 2) * min(0.12, 0.8 / len(evaluation.rows))
        axes.plot(places + shift, row.values, **styles[row.name] | {"linestyle": "none", "label": row.name})
    axes.set_xticks(places, [textwrap.fill(evaluation.at(i), 14) for i in places.tolist()])
    axes.set_xlim(-0.5, len(places) - 0.5)
    low, high = axis_range(evaluation, evaluation.rows)
    _finish(figure, axes, evaluation, low, high + 0.02 * (high - low))


def _sorted(figure: Figure, palette: Palette, *, evaluation: Evaluation) -> None:
    """Any number of parameters: each row's settings from its worst to its best."""
    axes = figure.subplots()
    share = np.linspace(0, 1, len(evaluation.settings))
    rows = [dataclasses.replace(row, values=tuple(sorted(row.values))) for row in evaluation.rows]
    _plot(axes, palette, evaluation, rows, share, np.arange(len(share)))
    axes.set(xlim=(0, 1), xlabel="share of the settings")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    _finish(figure, axes, evaluation, *axis_range(evaluation, evaluation.rows))


def _polar(
    figure: Figure,
    palette: Palette,
    *,
    evaluation: Evaluation,
    parameter: Parameter,
    thumbnails: Mapping[float, np.ndarray],
) -> None:
    """All the way round, zero at the top and counter-clockwise, as the images turn."""
    axes = cast(PolarAxes, figure.subplots(subplot_kw={"projection": "polar"}))
    axes.set_theta_zero_location("N")
    to_radians = math.tau / cast(float, parameter.turn)
    angles = np.asarray(next(iter(evaluation.grid.values()))) * to_radians
    order = np.argsort(angles % math.tau)
    order = np.append(order, order[0])
    _plot(axes, palette, evaluation, evaluation.rows, angles[order], order)
    low, high = axis_range(evaluation, evaluation.rows)
    _finish(figure, axes, evaluation, low, high)
    axes.grid(True, axis="x")

    def put_outside(box: OffsetBox, angle: float, points: float) -> None:
        """Beyond the rim, where it covers no curve."""
        offset = -points * math.sin(angle), points * math.cos(angle)
        axes.add_artist(AnnotationBbox(box, (angle, high), offset, boxcoords="offset points", frameon=False))

    # The rings' labels between two spokes, the highest outside.
    axes.set_rlabel_position(22.5)
    axes.tick_params(axis="y", labelsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], prune="upper"))
    top = TextArea(metric_format(evaluation)(high), textprops={"color": palette.muted, "fontsize": 7})
    put_outside(top, math.pi / 8, 8)
    axes.set_xticks(np.arange(8) * math.pi / 4, [""] * 8)
    for value in parameter.spaced(8).tolist():
        parts: list[Artist] = [TextArea(parameter.format(value, 3), textprops={"color": palette.muted})]
        if value in thumbnails:
            zoom = 32 / max(thumbnails[value].shape[:2])
            parts.insert(0, OffsetImage(thumbnails[value], zoom=zoom, cmap="gray", interpolation="nearest"))
        box = VPacker(children=parts, align="center", pad=0, sep=2)
        put_outside(box, value * to_radians, 33 if thumbnails else 14)
