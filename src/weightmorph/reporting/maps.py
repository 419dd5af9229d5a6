"""The metric over two parameters: a map for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..evaluation import Evaluation, setting_text
from .style import Palette, board

__all__ = ["contrast", "maps"]


def maps(found: Evaluation, axes: Sequence[list[float]], palette: Palette) -> Figure:
    """One map per row, over both parameters, all on one scale of colours."""
    across, down = axes
    columns = min(2, len(found.rows))
    count = math.ceil(len(found.rows) / columns)
    side, tall = 2.75, 2.75 * max(0.5, min(1.0, len(down) / len(across)))
    figure, page = board(1.0 + count * (tall + 0.95), palette)
    first, second = found.grid
    low, high = min(row.worst for row in found.rows), max(max(row.values) for row in found.rows)
    colours = LinearSegmentedColormap.from_list("scores", (palette.paper, palette.series[0]))
    small = max(len(across), len(down)) <= 12
    for step in range(24):  # the scale
        page.add_patch(Rectangle((5.1 + 0.05 * step, 0.72), 0.055, 0.14, facecolor=colours(step / 23), linewidth=0))
    page.add_patch(Rectangle((5.1, 0.72), 1.2, 0.14, fill=False, edgecolor=palette.rule, linewidth=0.8))
    page.text(5.02, 0.79, found.text(low), ha="right", va="center", color=palette.muted, fontsize=8)
    page.text(6.38, 0.79, found.text(high), ha="left", va="center", color=palette.muted, fontsize=8)
    for number, row in enumerate(found.rows):
        left = 0.75 + (number % columns) * (side + 0.6)
        top = 1.35 + (number // columns) * (tall + 0.95)
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
                    color=max((palette.paper, palette.ink), key=lambda text: contrast(text, colours(share))),
                )  # fmt: skip
            if index == row.worst_at:
                page.add_patch(
                    Rectangle((x, y), wide, deep, fill=False, edgecolor=palette.wrong, linewidth=1.8, zorder=3)
                )
        for place in sorted({0, len(across) // 2, len(across) - 1}):
            text = _short(setting_text(found.space, {first: across[place]}))
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
            text = _short(setting_text(found.space, {second: down[place]}))
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
                left - 0.55, top + tall / 4, second, rotation=90, ha="center", va="center", color=palette.muted,
                fontsize=8.5,
            )  # fmt: skip
    return figure


def _short(text: str) -> str:
    return text if len(text) <= 9 else f"{text[:8]}…"


def contrast(one: Any, other: Any) -> float:
    """Of two colours, as WCAG defines it."""

    def luminance(colour: Any) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
