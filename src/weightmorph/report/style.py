"""Colours, lines and lettering of the report's pictures, in a light and a dark version."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluate import Row

__all__ = [
    "DARK",
    "LIGHT",
    "Line",
    "Palette",
    "Picture",
    "board",
    "drawing_order",
    "heading",
    "lines",
    "picture",
    "spread",
]

DPI = 160
WIDTH = 7.2
"""Of every picture, in inches."""


@dataclass(frozen=True)
class Palette:
    """The colours of one version. `series` starts with the conditioned network's; the others' follow in order."""

    paper: str
    ink: str
    muted: str
    rule: str
    wrong: str
    frozen: str
    inverse: str
    series: tuple[str, ...]


# After Okabe and Ito, whose colours remain apart under every common kind of colour blindness; lighter on dark.
LIGHT = Palette(
    paper="#ffffff", ink="#1b1f24", muted="#5b6470", rule="#dfe3e8", wrong="#b3261e", frozen="#6b7280",
    inverse="#d55e00", series=("#0064a8", "#00805d", "#a8508a", "#8a6d00", "#3d3d9e"),
)  # fmt: skip
DARK = Palette(
    paper="#15181c", ink="#e8eaed", muted="#a2abb6", rule="#31373e", wrong="#ff8a80", frozen="#9aa3ae",
    inverse="#f0975a", series=("#6bb8f0", "#45cba0", "#e2a0cb", "#dcc04a", "#a9a9f5"),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """How a row is drawn: no two share both colour and dashes, so that colour is never needed to tell them apart."""

    color: str
    dashes: Any
    width: float
    marker: str

    def options(self) -> dict[str, Any]:
        """For `plot`."""
        return {"color": self.color, "linestyle": self.dashes, "linewidth": self.width, "solid_capstyle": "round"}


DASHES: tuple[Any, ...] = ((0, (7, 1.6, 1.4, 1.6)), (0, (10, 2.5)), (0, (3.2, 1.4)), (0, (5, 1.5, 1.2, 1.5, 1.2, 1.5)))


def drawing_order(rows: Sequence[Row]) -> list[Row]:
    """The solid line first: broken ones on top of it leave it to be seen."""
    return sorted(rows, key=lambda row: row.role != "conditioned")


def lines(rows: Sequence[Row], palette: Palette) -> dict[str, Line]:
    """How each row is drawn, by name."""
    known = {
        "conditioned": Line(palette.series[0], "-", 2.4, "o"),
        "frozen": Line(palette.frozen, (0, (1, 1.5)), 1.9, "x"),
        "inverse": Line(palette.inverse, (0, (4.5, 2.2)), 1.7, "s"),
    }
    found: dict[str, Line] = {}
    for row in rows:
        if row.role != "other":
            found[row.name] = known[row.role]
            continue
        n = sum(1 for name in found if name not in known)
        found[row.name] = Line(
            palette.series[1 + n % (len(palette.series) - 1)], DASHES[n % len(DASHES)], 1.7, "^DvP*"[n % 5]
        )
    return found


@dataclass(frozen=True)
class Picture:
    """A picture in both versions, with what is said of it."""

    name: str
    heading: str
    light: bytes
    dark: bytes
    width: int
    height: int
    alt: str
    caption: str


_drawing = threading.Lock()


def picture(name: str, heading: str, draw: Callable[[Palette], Figure], alt: str, caption: str) -> Picture:
    """Draw both versions, whatever the user's matplotlib style is, and leave that style as it was."""
    # matplotlib's settings are global: two threads in here at once would restore each other's.
    with _drawing, matplotlib.rc_context(_defaults()):
        made: list[bytes] = []
        size = (0, 0)
        for palette in (LIGHT, DARK):
            figure = draw(palette)
            canvas = FigureCanvasAgg(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI, facecolor=palette.paper, metadata={"Software": None})
            made.append(buffer.getvalue())
            size = canvas.get_width_height()
    shown = 100 / figure.dpi  # CSS pixels per pixel of the canvas, at 100 to the inch
    return Picture(name, heading, made[0], made[1], round(size[0] * shown), round(size[1] * shown), alt, caption)


def _defaults() -> Any:
    # The backend is not a matter of style, and rc_context does not restore it.
    plain = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    return {**plain, "font.family": "DejaVu Sans", "font.size": 9.0, "axes.unicode_minus": True}


def board(height: float, palette: Palette, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty figure, and axes over all of it whose units are inches from its top left corner, y downwards."""
    figure = Figure(figsize=(width, height), facecolor=palette.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure, axes


def heading(axes: Axes, palette: Palette, title: str, subtitle: str = "") -> None:
    """Title and subtitle at the top left of a board."""
    axes.text(0.12, 0.27, title, color=palette.ink, fontsize=11.5, fontweight="bold", va="center")
    axes.text(0.12, 0.51, subtitle, color=palette.muted, fontsize=8.5, va="center")


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart: as near to their places as a distance of `gap` and the two ends allow.

    Example:
        >>> spread([1.0, 1.0, 5.0], gap=2.0, low=0.0, high=10.0)
        [0.0, 2.0, 5.0]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    # Groups that touch are centred on the mean of what they want.
    groups: list[list[int]] = []

    def start(group: list[int]) -> float:
        wanted = sum(places[i] - gap * k for k, i in enumerate(group)) / len(group)
        return min(max(wanted, low), max(low, high - gap * (len(group) - 1)))

    for index in order:
        groups.append([index])
        while len(groups) > 1 and start(groups[-1]) < start(groups[-2]) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = list(places)
    for group in groups:
        for k, index in enumerate(group):
            moved[index] = start(group) + gap * k
    return moved
