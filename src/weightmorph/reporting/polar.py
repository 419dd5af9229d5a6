"""The metric around the circle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from ..evaluation import Evaluation
from ..parameters import Angle
from .style import TOP, WIDTH, Palette, board, drawing_order, ends, lines, score, tile

__all__ = ["goes_round", "polar"]


def goes_round(parameter: Angle, values: tuple[float, ...]) -> bool:
    """Do the angles go all the way round?"""
    around = sorted({value % parameter.turn for value in values})
    gaps = [b - a for a, b in pairwise([*around, around[0] + parameter.turn])]
    return len(around) >= 8 and max(gaps) <= parameter.turn / 6


def polar(found: Evaluation, parameter: Angle, thumbnails: Mapping[float, np.ndarray], palette: Palette) -> Figure:
    """All the way round, zero at the top and counter-clockwise, as the images turn."""
    side = 0.44 if thumbnails else 0.0
    box = max(side, 0.3), side + 0.18  # around the chart: an image with its angle below, or the angle alone
    radius, away = 1.62, 0.07
    centre = 0.2 + box[0] + away + radius, TOP + 0.06 + box[1] + away + radius
    height = centre[1] + radius + away + box[1] + 0.15
    figure, page = board(height, palette)
    rectangle = (
        (centre[0] - radius) / WIDTH, 1 - (centre[1] + radius) / height, 2 * radius / WIDTH, 2 * radius / height,
    )  # fmt: skip
    axes = figure.add_axes(rectangle, projection="polar", facecolor="none")
    assert isinstance(axes, PolarAxes)
    axes.set_theta_zero_location("N")
    low, high = ends(found, found.rows)
    ticks = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low < tick <= high + 1e-9]
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
            centre[0] - far * math.sin(free), centre[1] - far * math.cos(free), score(found)(tick), fontsize=7.5,
            color=palette.muted, ha="center", va="center", zorder=4,
            bbox={"facecolor": palette.paper, "edgecolor": "none", "pad": 0.4},
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
            tile(page, image, left + (box[0] - side) / 2, top, side, palette)
    left = centre[0] + radius + away + box[0] + 0.45
    apart = min(0.62, (height - TOP - 0.2) / len(found.rows))
    middle = min(centre[1], (height + TOP - apart / 2) / 2)
    for place, row in enumerate(sorted(found.rows, key=lambda row: -row.mean)):  # labels on the lines would collide
        y = middle + apart * (place - (len(found.rows) - 1) / 2)
        page.plot([left, left + 0.42], [y, y], **drawn[row.name].options())
        page.text(
            left + 0.54, y, row.name, color=palette.ink, fontsize=9.5, va="center",
            fontweight="bold" if row.role == "conditioned" else "normal",
        )  # fmt: skip
        facts = (f"mean {found.text(row.mean)}", f"worst {found.text(row.worst)}")
        for line, text in enumerate(facts[: 2 if apart > 0.44 else 1 if apart > 0.3 else 0]):
            page.text(left + 0.54, y + 0.19 + 0.16 * line, text, color=palette.muted, fontsize=8, va="center")
    return figure


def _gap(found: Evaluation, parameter: Angle) -> float:
    """Where, in radians, the labels of the rings hide least: between two spokes, where most room is free of curves."""
    angles = np.asarray(next(iter(found.grid.values()))) * (math.tau / parameter.turn)
    values = np.sort([row.values for row in found.rows], axis=0)
    low, high = ends(found, found.rows)
    between = np.diff(np.vstack([np.full(len(angles), low), values, np.full(len(angles), high)]), axis=0)
    places = (np.arange(8) + 0.5) * math.pi / 4
    room = [between[:, np.cos(angles - place) > math.cos(math.pi / 7)].min(1).max() for place in places]
    return float(places[np.argmax(room)])
