"""The metric over θ: round for an angle, straight for a range, as maps for two parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..evaluate import Evaluation, Row, setting_text
from ..parameters import Angle, Categorical, LogInterval, Parameter
from .style import WIDTH, Line, Palette, Picture, board, drawing_order, heading, lines, picture, spread

__all__ = ["pictures"]


def pictures(found: Evaluation, thumbnails: Mapping[float, np.ndarray] | None = None) -> list[Picture]:
    """The metric over the grid, and, where rows are too near each other to see, a closer look at those.

    Args:
        found: the evaluation.
        thumbnails: angle to an image `(h, w)` or `(h, w, 3)` in [0, 1] seen at that angle, drawn around a round chart.
    """
    over = " and ".join(found.grid)
    metric = found.metric[:1].upper() + found.metric[1:]
    alt = f"{metric} over {over}. " + "; ".join(
        f"{row.name}: mean {found.text(row.mean)}, from {found.text(row.worst)} to {found.text(max(row.values))}"
        for row in found.rows
    )
    title = f"{metric} over {over}"
    if len(found.grid) == 1:
        (name, values), (parameter, *_) = next(iter(found.grid.items())), found.space.values()
        if isinstance(parameter, Categorical):
            return [picture("curve", title, lambda p: _categories(found, parameter, p), alt, _low_caption(found))]
        if isinstance(parameter, Angle) and _round(parameter, values):
            draw: Callable[[Palette], Figure] = lambda p: _polar(found, parameter, p, thumbnails or {})  # noqa: E731
        else:
            draw = lambda p: _straight(found, name, parameter, p, found.rows, title, "")  # noqa: E731
        made = [picture("curve", title, draw, alt, _low_caption(found))]
        close = _close(found)
        if close:
            names = ", ".join(row.name for row in close)
            made.append(
                picture(
                    "close",
                    "A closer look",
                    lambda p: _straight(found, name, parameter, p, close, "A closer look", f"{names} alone"),
                    f"The same for {names} alone, on an axis that does not start at zero.",
                    "The axis does not start at zero.",
                )
            )
        return made
    axes = [sorted(set(values)) for values in found.grid.values()]
    if len(axes) == 2 and math.prod(map(len, axes)) == len(found.settings) == len(
        set(zip(*found.grid.values(), strict=True))
    ):
        caption = "The box marks the worst setting of each."
        return [picture("curve", title, lambda p: _maps(found, axes, p), alt, caption)]
    caption = "For each row, its settings sorted from the worst to the best."
    return [picture("curve", title, lambda p: _sorted(found, p), alt, caption)]


def _round(parameter: Angle, values: Sequence[float]) -> bool:
    """Do the angles go all the way round?"""
    around = sorted({value % parameter.turn for value in values})
    gaps = [b - a for a, b in pairwise([*around, around[0] + parameter.turn])]
    return len(around) >= 8 and max(gaps) <= parameter.turn / 6


def _close(found: Evaluation) -> list[Row]:
    """Rows that stay in the top eighth of what the chart spans, if that leaves some out."""
    low, high = min(row.worst for row in found.rows), max(max(row.values) for row in found.rows)
    near = [row for row in found.rows if row.worst >= high - (high - low) / 8]
    return near if len(near) < len(found.rows) else []


def _ends(found: Evaluation, rows: Sequence[Row]) -> tuple[float, float]:
    """A sensible range of the metric: for an accuracy from 0, or from a multiple of 10 % where all are well above."""
    low, high = min(row.worst for row in rows), max(max(row.values) for row in rows)
    if found.metric == "accuracy":
        floor = math.floor(10 * low - 0.5) / 10
        return (floor if floor >= 0.3 else 0.0), 1.0
    pad = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _low_caption(found: Evaluation) -> str:
    low, _ = _ends(found, found.rows)
    return f"The axis starts at {found.text(low)}." if low else ""


def _score(found: Evaluation) -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{100 * value:.4g} %" if found.metric == "accuracy" else f"{value:.4g}")


def _subtitle(found: Evaluation) -> str:
    return f"{found.images:,} images, {len(found.settings):,} settings"


def _polar(found: Evaluation, parameter: Angle, palette: Palette, thumbnails: Mapping[float, np.ndarray]) -> Figure:
    """All the way round, zero at the top and counter-clockwise, as the images turn."""
    side = 0.44 if thumbnails else 0.0
    box = max(side, 0.3), side + 0.18  # around the chart: an image with its angle below, or the angle alone
    radius, away = 1.62, 0.07
    centre = 0.2 + box[0] + away + radius, 0.72 + box[1] + away + radius
    height = centre[1] + radius + away + box[1] + 0.15
    figure, page = board(height, palette)
    heading(page, palette, f"{found.metric.capitalize()} over {next(iter(found.grid))}", _subtitle(found))
    rectangle = (
        (centre[0] - radius) / WIDTH, 1 - (centre[1] + radius) / height, 2 * radius / WIDTH, 2 * radius / height,
    )  # fmt: skip
    axes = figure.add_axes(rectangle, projection="polar", facecolor="none")
    assert isinstance(axes, PolarAxes)
    axes.set_theta_zero_location("N")
    low, high = _ends(found, found.rows)
    ticks = [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low < tick <= high + 1e-9]
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, [""] * len(ticks))
    axes.set_xticks(np.arange(8) * math.pi / 4, [""] * 8)
    axes.grid(color=palette.rule, linewidth=0.7, linestyle="-")
    axes.spines["polar"].set(color=palette.rule, linewidth=1.0)
    drawn = lines(found.rows, palette)
    angles = np.asarray(next(iter(found.grid.values()))) * (math.tau / parameter.turn)
    order = np.argsort(angles % math.tau)
    for row in drawing_order(found.rows):
        values = np.asarray(row.values)[order]
        axes.plot([*angles[order], angles[order[0]]], [*values, values[0]], clip_on=False, **drawn[row.name].options())
    free = _gap(found, parameter)
    for tick in ticks:
        # The outermost stands outside, where no curve can cover it.
        far = radius + 0.13 if tick > high - 0.01 * (high - low) else radius * (tick - low) / (high - low)
        page.text(
            centre[0] - far * math.sin(free), centre[1] - far * math.cos(free), _score(found)(tick), fontsize=7.5,
            color=palette.muted, ha="center", va="center", zorder=4,
        )  # fmt: skip
    for step in range(8):
        around = step * math.pi / 4
        x, y = -math.sin(around), -math.cos(around)
        far = radius + away + abs(x) * box[0] / 2 + abs(y) * box[1] / 2
        left, top = centre[0] + far * x - box[0] / 2, centre[1] + far * y - box[1] / 2
        value = step * parameter.turn / 8
        radians = ("0", "π/4", "π/2", "3π/4", "π", "5π/4", "3π/2", "7π/4")[step]
        page.text(
            left + box[0] / 2, top + box[1] - 0.06, f"{value:g}°" if parameter.unit == "deg" else radians, ha="center",
            va="center", color=palette.muted, fontsize=8.5,
        )  # fmt: skip
        image = next((im for at, im in thumbnails.items() if math.isclose(at, value, abs_tol=1e-4)), None)
        if image is not None:
            _thumbnail(page, image, left + (box[0] - side) / 2, top, side, palette)
    _names(page, found, found.rows, drawn, palette, left=centre[0] + radius + away + box[0] + 0.45, top=centre[1])
    return figure


def _gap(found: Evaluation, parameter: Angle) -> float:
    """Where, in radians, the labels of the rings hide least: between two spokes, where most room is free of curves."""
    angles = np.asarray(next(iter(found.grid.values()))) * (math.tau / parameter.turn)
    values = np.sort([row.values for row in found.rows], axis=0)
    low, high = _ends(found, found.rows)
    between = np.diff(np.vstack([np.full(len(angles), low), values, np.full(len(angles), high)]), axis=0)
    places = (np.arange(8) + 0.5) * math.pi / 4
    room = [between[:, np.cos(angles - place) > math.cos(math.pi / 7)].min(1).max() for place in places]
    return float(places[np.argmax(room)])


def _thumbnail(page: Axes, image: np.ndarray, x: float, y: float, side: float, palette: Palette) -> None:
    page.imshow(
        image, cmap="gray", vmin=0, vmax=1, extent=(x, x + side, y + side, y), interpolation="nearest", zorder=2
    )
    page.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=palette.rule, linewidth=0.8, zorder=3))
    page.set(xlim=(0, WIDTH), ylim=(page.get_ylim()[0], 0))


def _names(
    page: Axes,
    found: Evaluation,
    rows: Sequence[Row],
    drawn: Mapping[str, Line],
    palette: Palette,
    left: float,
    top: float,
) -> None:
    """The rows by mean, each with a piece of its line: for a chart in which labels on the lines would collide."""
    ranked = sorted(rows, key=lambda row: -row.mean)
    step = 0.62
    for place, row in enumerate(ranked):
        y = top + (place - (len(ranked) - 1) / 2) * step
        page.plot([left, left + 0.42], [y, y], **drawn[row.name].options())
        page.text(
            left + 0.54, y, row.name, color=palette.ink, fontsize=9.5, va="center",
            fontweight="bold" if row.role == "conditioned" else "normal",
        )  # fmt: skip
        page.text(left + 0.54, y + 0.19, f"mean {found.text(row.mean)}", color=palette.muted, fontsize=8, va="center")
        page.text(left + 0.54, y + 0.35, f"worst {found.text(row.worst)}", color=palette.muted, fontsize=8, va="center")


def _chart(palette: Palette, title: str, subtitle: str, height: float = 3.9) -> tuple[Figure, Axes, Axes]:
    """A board with one chart on it, and room on its right for names."""
    figure, page = board(height, palette)
    heading(page, palette, title, subtitle)
    axes = figure.add_axes((0.62 / WIDTH, 0.55 / height, 5.0 / WIDTH, (height - 1.35) / height), facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=palette.muted, linewidth=0.8)
    axes.grid(axis="y", color=palette.rule, linewidth=0.7, linestyle="-")
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", colors=palette.muted, labelsize=8.5, length=0)
    axes.tick_params(axis="x", length=3)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
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


def _straight(
    found: Evaluation,
    name: str,
    parameter: Parameter,
    palette: Palette,
    rows: Sequence[Row],
    title: str,
    subtitle: str,
) -> Figure:
    """A range from left to right."""
    figure, _, axes = _chart(palette, title, subtitle or _subtitle(found))
    drawn = lines(found.rows, palette)
    values = np.asarray(found.grid[name])
    order = np.argsort(values, kind="stable")
    x = values[order]
    turn = parameter.turn if isinstance(parameter, Angle) and _round(parameter, found.grid[name]) else None
    x = np.append(x, x[0] + turn) if turn else x
    last = []
    for row in drawing_order(rows):
        y = np.asarray(row.values)[order]
        y = np.append(y, y[0]) if turn else y
        axes.plot(x, y, **drawn[row.name].options())
        last.append(float(y[-1]))
    if len(rows) == len(found.rows):
        low, high = _ends(found, rows)
    else:
        low, high = min(row.worst for row in rows), max(max(row.values) for row in rows)
        pad = 0.08 * (high - low) or 0.01
        low, high = low - pad, high + pad
        high = min(high, 1.0) if found.metric == "accuracy" and high > 1 else high
    axes.set_ylim(low, high + 0.01 * (high - low))
    axes.set_xlim(x[0], x[-1] if x[-1] > x[0] else x[0] + 1)
    _x_axis(axes, name, parameter, x, palette)
    axes.yaxis.set_major_formatter(_score(found))
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
    figure, page, axes = _chart(palette, f"{found.metric.capitalize()} by {next(iter(found.grid))}", _subtitle(found))
    drawn = lines(found.rows, palette)
    places = np.arange(len(found.settings))
    for row in reversed(found.rows):
        line = drawn[row.name]
        shift = (found.rows.index(row) - (len(found.rows) - 1) / 2) * 0.12
        axes.plot(places + shift, row.values, linestyle="none", marker=line.marker, color=line.color, markersize=7)
    low, high = _ends(found, found.rows)
    axes.set_ylim(low, high + 0.02 * (high - low))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks(places, [found.at(i) for i in range(len(places))])
    axes.yaxis.set_major_formatter(_score(found))
    for place, row in enumerate(sorted(found.rows, key=lambda row: -row.mean)):
        line, y = drawn[row.name], 1.1 + 0.42 * place
        page.plot(5.86, y, marker=line.marker, color=line.color, markersize=7)
        page.text(6.02, y, row.name, color=palette.ink, fontsize=9, va="center")
        page.text(6.02, y + 0.17, f"mean {found.text(row.mean)}", color=palette.muted, fontsize=7.5, va="center")
    return figure


def _maps(found: Evaluation, axes: Sequence[Sequence[float]], palette: Palette) -> Figure:
    """One map per row, over both parameters, all on one scale of colours."""
    across, down = axes
    columns = min(2, len(found.rows))
    count = math.ceil(len(found.rows) / columns)
    side, tall = 2.75, 2.75 * max(0.5, min(1.0, len(down) / len(across)))
    figure, page = board(0.75 + count * (tall + 0.95), palette)
    first, second = found.grid
    heading(page, palette, f"{found.metric.capitalize()} over {first} and {second}", _subtitle(found))
    low, high = min(row.worst for row in found.rows), max(max(row.values) for row in found.rows)
    colours = LinearSegmentedColormap.from_list("scores", (palette.paper, palette.series[0]))
    small = max(len(across), len(down)) <= 12
    for step in range(24):  # the scale
        page.add_patch(Rectangle((5.1 + 0.05 * step, 0.2), 0.055, 0.14, facecolor=colours(step / 23), linewidth=0))
    page.add_patch(Rectangle((5.1, 0.2), 1.2, 0.14, fill=False, edgecolor=palette.rule, linewidth=0.8))
    page.text(5.02, 0.27, found.text(low), ha="right", va="center", color=palette.muted, fontsize=8)
    page.text(6.38, 0.27, found.text(high), ha="left", va="center", color=palette.muted, fontsize=8)
    for number, row in enumerate(found.rows):
        left = 0.75 + (number % columns) * (side + 0.6)
        top = 1.15 + (number // columns) * (tall + 0.95)
        page.text(left, top - 0.14, row.name, color=palette.ink, fontsize=9.5, fontweight="bold")
        page.text(
            left + side, top - 0.14, f"mean {found.text(row.mean)}", color=palette.muted, fontsize=8.5, ha="right"
        )
        wide, deep = side / len(across), tall / len(down)
        for index, (theta, value) in enumerate(zip(found.settings, row.values, strict=True)):
            x, y = left + across.index(theta[first]) * wide, top + tall - (down.index(theta[second]) + 1) * deep
            share = (value - low) / (high - low) if high > low else 1.0
            page.add_patch(
                Rectangle((x, y), wide, deep, facecolor=colours(share), edgecolor=palette.paper, linewidth=0.6)
            )
            if small:
                text = f"{100 * value:.0f}" if found.metric == "accuracy" else f"{value:.2g}"
                page.text(
                    x + wide / 2, y + deep / 2, text, ha="center", va="center", fontsize=min(8.0, 30 * wide),
                    color=max((palette.paper, palette.ink), key=lambda text: _contrast(text, colours(share))),
                )  # fmt: skip
            if index == row.worst_at:
                page.add_patch(
                    Rectangle((x, y), wide, deep, fill=False, edgecolor=palette.wrong, linewidth=1.8, zorder=3)
                )
        for place in sorted({0, len(across) // 2, len(across) - 1}):
            text = setting_text(found.space, {first: across[place]})
            page.text(
                left + (place + 0.5) * wide,
                top + tall + 0.11,
                text,
                ha="center",
                va="center",
                color=palette.muted,
                fontsize=8,
            )
        for place in sorted({0, len(down) // 2, len(down) - 1}):
            text = setting_text(found.space, {second: down[place]})
            page.text(
                left - 0.06,
                top + tall - (place + 0.5) * deep,
                text,
                ha="right",
                va="center",
                color=palette.muted,
                fontsize=8,
            )
        page.text(left + side / 2, top + tall + 0.3, first, ha="center", va="center", color=palette.muted, fontsize=8.5)
        if number % columns == 0:
            page.text(
                left - 0.55,
                top + tall / 2,
                second,
                rotation=90,
                ha="center",
                va="center",
                color=palette.muted,
                fontsize=8.5,
            )
    return figure


def _contrast(one: Any, other: Any) -> float:
    """Of two colours, as WCAG defines it."""

    def luminance(colour: Any) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _sorted(found: Evaluation, palette: Palette) -> Figure:
    """Any number of parameters: each row's settings from its worst to its best."""
    figure, _, axes = _chart(
        palette, f"{found.metric.capitalize()} from the worst setting to the best", _subtitle(found)
    )
    drawn = lines(found.rows, palette)
    share = np.linspace(0, 1, len(found.settings)) if len(found.settings) > 1 else np.zeros(1)
    for row in drawing_order(found.rows):
        axes.plot(share, sorted(row.values), **drawn[row.name].options())
    low, high = _ends(found, found.rows)
    axes.set_ylim(low, high + 0.01 * (high - low))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the settings", color=palette.muted, fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    axes.yaxis.set_major_formatter(_score(found))
    _label_ends(axes, found, found.rows, drawn, palette, [max(row.values) for row in found.rows])
    return figure
