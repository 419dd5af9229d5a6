"""Colours, matplotlib settings and row styles of the report's pictures, in a light and a dark version."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from PIL import Image  # a dependency of matplotlib

from ..evaluation import Evaluation, Row

__all__ = ["DARK", "LIGHT", "WIDTH", "Palette", "Picture", "axis_range", "metric_format", "picture", "row_styles"]

DPI = 160
CSS = 100
"""CSS pixels to the inch, on the page."""
WIDTH, TITLE = 7.2, 0.66
"""The width of every picture, and the height of its title, in inches."""


@dataclass(frozen=True)
class Palette:
    """The colours of one version. `series` starts with the conditioned network's; the others follow in order."""

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

# Five, while four colours take turns: twenty rows before two are the same.
DASHES: tuple[Any, ...] = (
    (0, (7, 1.6, 1.4, 1.6)),
    (0, (10, 2.5)),
    (0, (3.2, 1.4)),
    (0, (5, 1.5, 1.2, 1.5, 1.2, 1.5)),
    (0, (12, 1.6, 4, 1.6)),
)


def settings(palette: Palette) -> Any:
    """Matplotlib's rcParams for one version, whatever the user's are."""
    # The backend is not a matter of style, and rc_context does not restore it.
    plain = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    return plain | {
        "font.family": "DejaVu Sans", "font.size": 8.5, "text.parse_math": False, "text.color": palette.ink,
        "figure.dpi": DPI, "figure.facecolor": palette.paper, "figure.constrained_layout.w_pad": 0.08,
        "axes.facecolor": "none", "axes.edgecolor": palette.rule, "axes.labelcolor": palette.muted,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.titlesize": 8.5, "grid.color": palette.rule, "grid.linewidth": 0.7,
        "xtick.color": palette.rule, "xtick.labelcolor": palette.muted, "ytick.labelcolor": palette.muted,
        "ytick.major.size": 0, "lines.solid_capstyle": "round",
        "legend.frameon": False, "legend.handlelength": 3.4, "legend.labelspacing": 0.9,
    }  # fmt: skip


def row_styles(rows: Sequence[Row], palette: Palette) -> dict[str, dict[str, Any]]:
    """Options of `plot` by row: dashes and marks differ as well as colours, so that no reader depends on colour."""
    known: dict[str, tuple[str, Any, float, str]] = {
        "conditioned": (palette.series[0], "-", 2.4, "o"),
        "frozen": (palette.frozen, (0, (1, 1.5)), 1.9, "x"),
        "inverse": (palette.inverse, (0, (4.5, 2.2)), 1.7, "s"),
    }
    names = ("color", "linestyle", "linewidth", "marker")
    others = [row.name for row in rows if row.role not in known]
    styles = {row.name: dict(zip(names, known[row.role], strict=True)) for row in rows if row.role in known}
    for n, name in enumerate(others):
        color = palette.series[1 + n % (len(palette.series) - 1)]
        styles[name] = dict(zip(names, (color, DASHES[n % len(DASHES)], 1.7, "^DvP*"[n % 5]), strict=True))
    return styles


@dataclass(frozen=True)
class Picture:
    """A picture, light and dark, with the words that go with it.

    `png` and `png_dark` have the title on them, to stand alone; `inner` and `inner_dark` lack it, for a page that has
    the title as text. `size` is that of the latter, in CSS pixels.
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
    name: str,
    title: str,
    draw: Callable[[Figure, Palette], None],
    *,
    height: float,
    subtitle: str = "",
    caption: str = "",
    alt: str,
    **layout: Any,
) -> Picture:
    """Draw both versions, and leave the user's matplotlib settings as they were.

    Args:
        name: of the file.
        title: of the picture.
        draw: fills an empty figure.
        height: of the figure below the title, in inches; empty rows at its ends are cut off.
        subtitle: below the title.
        caption: the page's text below the picture.
        alt: the content in words.
        **layout: options of matplotlib's `ConstrainedLayoutEngine`.
    """
    images: list[np.ndarray] = []
    total, top = height + TITLE, round(TITLE * DPI)
    for palette in (LIGHT, DARK):
        # matplotlib's settings are global: two threads in here at once would restore each other's.
        with _drawing, matplotlib.rc_context(settings(palette)):
            engine = ConstrainedLayoutEngine(rect=(0, 0, 1, height / total), **layout)
            figure = Figure((WIDTH, total), layout=engine)
            draw(figure, palette)
            figure.text(0.017, 1 - 0.27 / total, title, fontsize=11.5, fontweight="bold", va="center")
            figure.text(0.017, 1 - 0.51 / total, subtitle, color=palette.muted, va="center")
            canvas: Any = FigureCanvasAgg(figure)
            canvas.draw()
            images.append(np.asarray(canvas.buffer_rgba())[..., :3])
    rows = np.flatnonzero((images[0][top:] != images[0][-1, -1]).any((1, 2)))  # those that are not empty
    content = slice(max(top + rows[0] - DPI // 20, top), top + rows[-1] + DPI // 10)
    size = round(WIDTH * CSS), round((content.stop - content.start) * CSS / DPI)
    png, png_dark = (_png(np.concatenate((image[:top], image[content]))) for image in images)
    inner, inner_dark = (_png(image[content]) for image in images)
    return Picture(name, title, subtitle, caption, alt, png, png_dark, inner, inner_dark, size)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def axis_range(evaluation: Evaluation, rows: Sequence[Row], *, close: bool = False) -> tuple[float, float]:
    """The ends of the metric's axis.

    An accuracy has 0 to 1, or starts at a multiple of 10 % where all rows are well above. Any other metric, and a
    closer look, has the range of its values.
    """
    low, high = min(row.worst for row in rows), max(max(row.values) for row in rows)
    accuracy = evaluation.metric == "accuracy"
    if accuracy and not close:
        floor = math.floor(10 * low - 0.5) / 10
        return (floor if floor >= 0.3 else 0.0), 1.0
    pad = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - pad, min(high + pad, 1.0) if accuracy else high + pad


def metric_format(evaluation: Evaluation) -> FuncFormatter:
    """The metric's values as an axis shows them."""
    return FuncFormatter(lambda value, _: f"{100 * value:.4g} %" if evaluation.metric == "accuracy" else f"{value:.4g}")
