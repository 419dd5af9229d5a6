"""Colours, lines and lettering of the report's pictures, in a light and a dark version."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter
from PIL import Image  # which matplotlib brings along

from ..evaluation import Evaluation, Row

__all__ = [
    "DARK", "LIGHT", "TOP", "WIDTH", "Line", "Palette", "Picture", "board", "drawing_order", "ends", "lines", "picture",
    "score", "spread", "tile",
]  # fmt: skip

DPI = 160
CSS = 100
"""CSS pixels to the inch, on the page."""
WIDTH, TOP = 7.2, 0.66
"""Of every picture, and of its title, in inches."""


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
    """How a row is drawn: by its dashes and marks as well as its colour, so that colour is not needed to tell it."""

    color: str
    dashes: Any
    width: float
    marker: str

    def options(self) -> dict[str, Any]:
        """For `plot`."""
        return {"color": self.color, "linestyle": self.dashes, "linewidth": self.width, "solid_capstyle": "round"}


# Five, which do not keep step with the four colours: twenty rows before two are alike.
DASHES: tuple[Any, ...] = (
    (0, (7, 1.6, 1.4, 1.6)),
    (0, (10, 2.5)),
    (0, (3.2, 1.4)),
    (0, (5, 1.5, 1.2, 1.5, 1.2, 1.5)),
    (0, (12, 1.6, 4, 1.6)),
)


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
        if row.role in known:
            found[row.name] = known[row.role]
            continue
        n = sum(1 for name in found if name not in known)
        found[row.name] = Line(
            palette.series[1 + n % (len(palette.series) - 1)], DASHES[n % len(DASHES)], 1.7, "^DvP*"[n % 5]
        )
    return found


@dataclass(frozen=True)
class Picture:
    """A picture, light and dark, with what is said of it.

    `png` and `png_dark` are to stand alone, with the title on them; `inner` and `inner_dark` are the same without it,
    for a page that says it in its own letters. `size` is that of the latter, in CSS pixels.
    """

    name: str
    title: str
    subtitle: str
    caption: str
    alt: str
    png: bytes
    png_dark: bytes
    inner: bytes
    inner_dark: bytes
    size: tuple[int, int]


_drawing = threading.Lock()


def picture(
    name: str, title: str, draw: Callable[[Palette], Figure], *, subtitle: str = "", caption: str = "", alt: str
) -> Picture:
    """Draw both versions, whatever the user's matplotlib style is, and leave that style as it was.

    Args:
        name: of the file.
        title: stands on the picture's top.
        draw: gives a `board` that has left its upper `TOP` inches free.
        subtitle: below the title.
        caption: what the page says below it.
        alt: what it shows, in words.
    """
    made: list[bytes] = []
    # matplotlib's settings are global: two threads in here at once would restore each other's.
    with _drawing, matplotlib.rc_context(_defaults()):
        for palette in (LIGHT, DARK):
            figure = draw(palette)
            page = figure.axes[0]
            page.text(0.12, 0.27, title, color=palette.ink, fontsize=11.5, fontweight="bold", va="center")
            page.text(0.12, 0.51, subtitle, color=palette.muted, fontsize=8.5, va="center")
            canvas: Any = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            made += [_png(pixels), _png(pixels[round(TOP * DPI) :])]
    height, width = pixels.shape[0] / DPI - TOP, pixels.shape[1] / DPI
    size = round(width * CSS), round(height * CSS)
    return Picture(name, title, subtitle, caption, alt, made[0], made[2], made[1], made[3], size)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _defaults() -> Any:
    # The backend is not a matter of style, and rc_context does not restore it.
    plain = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    return {**plain, "font.family": "DejaVu Sans", "font.size": 9.0, "text.parse_math": False}


def board(height: float, palette: Palette) -> tuple[Figure, Axes]:
    """An empty figure, and axes over all of it whose units are inches from its top left corner, y downwards.

    Its upper `TOP` inches are the title's.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=palette.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    return figure, axes


def tile(
    page: Axes, image: np.ndarray, x: float, y: float, side: float, palette: Palette, colours: Any = "gray",
    low: float = 0.0, high: float = 1.0,
) -> None:  # fmt: skip
    """Put an image, whole, into the middle of a square of a board, in a frame."""
    tall, wide = image.shape[:2]
    w, h = side * wide / max(tall, wide), side * tall / max(tall, wide)
    x, y = x + (side - w) / 2, y + (side - h) / 2
    ends = page.get_xlim(), page.get_ylim()  # which imshow would change
    page.imshow(image, cmap=colours, vmin=low, vmax=high, extent=(x, x + w, y + h, y), interpolation="nearest")
    page.set(xlim=ends[0], ylim=ends[1])
    page.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=palette.rule, linewidth=0.8, zorder=3))


def ends(found: Evaluation, rows: Sequence[Row]) -> tuple[float, float]:
    """A sensible range of the metric: for an accuracy from 0, or from a multiple of 10 % where all are well above."""
    low, high = min(row.worst for row in rows), max(max(row.values) for row in rows)
    if found.metric == "accuracy":
        floor = math.floor(10 * low - 0.5) / 10
        return (floor if floor >= 0.3 else 0.0), 1.0
    pad = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def score(found: Evaluation) -> FuncFormatter:
    """The metric on an axis."""
    return FuncFormatter(lambda value, _: f"{100 * value:.4g} %" if found.metric == "accuracy" else f"{value:.4g}")


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
