"""What θ does, to see: filters that turn with it, and inputs with what both networks make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation import setting_text
from ..inputs import InputTransform
from ..model import Conditioned
from ..parameters import Angle, Categorical, Parameter, ParameterSpace
from .style import TOP, WIDTH, Palette, Picture, board, picture, tile

__all__ = ["filters", "inputs", "thumbnails"]

LEFT = 1.02
"""Room for names on the left of a strip, in inches."""
SHOWN = 4
"""Filters, or images, per parameter."""


def stops(parameter: Parameter) -> list[float]:
    """Up to eight values over the range, the anchor among them.

    Example:
        >>> stops(Angle("deg"))
        [0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0]
    """
    if isinstance(parameter, Categorical):
        return [float(v) for v in parameter.grid(8)[:8]]
    if isinstance(parameter, Angle):
        return [float(v) for v in parameter.grid(8)]
    values = [float(v) for v in parameter.grid(7)]
    nearest = min(range(len(values)), key=lambda i: abs(values[i] - parameter.anchor_value))
    values[nearest] = parameter.anchor_value
    return values


def _ways(space: ParameterSpace) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each of the first two parameters, settings that vary it and leave the others at their anchors."""
    return [(name, [space.anchor | {name: value} for value in stops(space[name])]) for name in list(space)[:2]]


def filters(model: Conditioned) -> Picture | None:
    """Filters of the first conditioned layer with two-dimensional kernels; None if there is no such layer."""
    slot = next((s for s in model.slots.values() if s.spatial == 2 and s.n_taps > 1), None)
    if slot is None:
        return None
    ways = _ways(model.space)
    with torch.no_grad():
        made = [[_kernels(model.weights(**theta)[slot.name], slot.kind, slot.kernel) for theta in w] for _, w in ways]
        home = _kernels(model.weights(**model.space.anchor)[slot.name], slot.kind, slot.kernel)
    best = [_liveliest(home, k) for k in _order(home)[: SHOWN if len(ways) == 1 else SHOWN - 1]]

    def draw(palette: Palette) -> Figure:
        side = (WIDTH - LEFT - 0.1) / max(len(w) for _, w in ways)
        figure, page = board(TOP - 0.06 + len(ways) * (len(best) * side + 0.5), palette)
        colours = LinearSegmentedColormap.from_list("signed", (palette.inverse, palette.paper, palette.series[0]))
        top = TOP + 0.1
        for (name, way), kernels in zip(ways, made, strict=True):
            _headings(page, palette, model.space, name, way, top, side)
            for place, (number, channel) in enumerate(best):
                y = top + 0.3 + place * side
                page.text(LEFT - 0.14, y + side / 2, f"filter {number}", ha="right", va="center", color=palette.muted)
                reach = max(float(k[number, channel].abs().max()) for k in kernels) or 1.0
                for column, kernel in enumerate(kernels):
                    image = kernel[number, channel].cpu().numpy()
                    tile(page, image, LEFT + column * side, y, side - 0.08, palette, colours, -reach, reach)
            top += len(best) * side + 0.5
        return figure

    over = " and ".join(name for name, _ in ways)
    alt = (
        f"{len(best)} filters of the layer {slot.layer!r}, {slot.kernel[0]} by {slot.kernel[1]} taps, at settings of "
        f"{over} from {setting_text(model.space, ways[0][1][0])} to {setting_text(model.space, ways[0][1][-1])}."
    )
    layer = f" of {slot.layer}" if slot.layer else ""
    return picture(
        "filters",
        f"Filters{layer} {'turn with' if _turns(model.space) else 'follow'} {over}",
        draw,
        subtitle="Made by the weight transform; each filter on one scale, zero in between",
        caption="At the anchor, in bold, a filter is the frozen network's own.",
        alt=alt,
    )


def _turns(space: ParameterSpace) -> bool:
    return all(isinstance(parameter, Angle) for parameter in space.values())


def _kernels(weight: Tensor, kind: str, kernel: Sequence[int]) -> Tensor:
    """Weights as `(outputs, inputs, h, w)`."""
    if kind == "conv_transpose":
        return weight.transpose(0, 1)
    return weight if kind == "conv" else weight.reshape(weight.shape[0], -1, *kernel)


def _order(kernels: Tensor) -> list[int]:
    """Output channels by how much their taps vary, for those that do not hardly show a turn."""
    varied = kernels - kernels.mean((-2, -1), keepdim=True)
    order: list[int] = varied.square().sum((-2, -1)).amax(1).argsort(descending=True, stable=True).tolist()
    return order


def _liveliest(kernels: Tensor, number: int) -> tuple[int, int]:
    """An output channel with the input channel that it reads with most variation."""
    varied = kernels[number] - kernels[number].mean((-2, -1), keepdim=True)
    return number, int(varied.square().sum((-2, -1)).argmax())


def inputs(
    model: Conditioned,
    transform: InputTransform,
    x: Tensor,
    y: Tensor,
    labels: Sequence[str] | None = None,
) -> Picture:
    """Images at several θ, and under each what the frozen network and the conditioned one say, right or wrong."""
    ways = _ways(model.space)
    chosen = _distinct(y, SHOWN if len(ways) == 1 else SHOWN - 2)
    x, y = x[chosen].to(model.device), y[chosen]
    shown: list[list[np.ndarray]] = []
    said: list[list[tuple[Tensor | None, Tensor | None]]] = []
    frozen = model.frozen()
    with torch.no_grad():
        for _, way in ways:
            seen = [transform(x, generator=torch.Generator().manual_seed(0), **theta) for theta in way]
            shown.append([as_images(s, x) for s in seen])
            said.append(
                [(_classes(frozen(s)), _classes(model.at(**theta)(s))) for s, theta in zip(seen, way, strict=True)]
            )
    spoken = y.dim() == 1 and not y.is_floating_point() and said[0][0][0] is not None

    def name(number: int) -> str:
        text = labels[number] if labels is not None and 0 <= number < len(labels) else str(number)
        return text if len(text) <= 11 else f"{text[:10]}…"

    def draw(palette: Palette) -> Figure:
        side = (WIDTH - LEFT - 0.1) / max(len(w) for _, w in ways)
        row_height = side + (0.44 if spoken else 0.05)
        figure, page = board(TOP - 0.06 + len(ways) * (len(chosen) * row_height + 0.5), palette)
        top = TOP + 0.1
        for (parameter, way), images, words in zip(ways, shown, said, strict=True):
            _headings(page, palette, model.space, parameter, way, top, side)
            for place in range(len(chosen)):
                y0 = top + 0.3 + place * row_height
                if spoken:
                    page.text(
                        LEFT - 0.14,
                        y0 + side / 2,
                        f"this is {name(int(y[place]))}",
                        ha="right",
                        va="center",
                        color=palette.ink,
                    )
                    page.text(
                        LEFT - 0.14,
                        y0 + side + 0.05,
                        "frozen",
                        ha="right",
                        va="center",
                        color=palette.muted,
                        fontsize=8,
                    )
                    page.text(
                        LEFT - 0.14,
                        y0 + side + 0.21,
                        "conditioned",
                        ha="right",
                        va="center",
                        color=palette.muted,
                        fontsize=8,
                    )
                for column, picture_ in enumerate(images):
                    left = LEFT + column * side
                    tile(page, picture_[place], left, y0, side - 0.08, palette, "gray", 0, 1)
                    if spoken:
                        for line, classes in enumerate(words[column]):
                            assert classes is not None
                            right = int(classes[place]) == int(y[place])
                            page.text(
                                left + side / 2 - 0.04, y0 + side + 0.05 + 0.16 * line,
                                f"{name(int(classes[place]))} {'✓' if right else '✗'}", ha="center", va="center",
                                fontsize=8, color=palette.ink if right else palette.wrong,
                                fontweight="normal" if right else "bold",
                            )  # fmt: skip
            top += len(chosen) * row_height + 0.5
        return figure

    alt = f"{len(chosen)} images at {len(ways[0][1])} settings each."
    if spoken:
        for place in range(len(chosen)):
            hits = [[int(words[k][place]) == int(y[place]) for words in said[0]] for k in (0, 1)]  # type: ignore[index]
            alt += (
                f" An image of {name(int(y[place]))}: the frozen network is right at {sum(hits[0])} of {len(hits[0])} "
                f"settings, the conditioned one at {sum(hits[1])}."
            )
    first = "The first images given" + (", with different targets" if spoken else "")
    return picture(
        "inputs",
        f"What the networks see{' and say' if spoken else ''}",
        draw,
        subtitle=f"{first}; ✓ right, ✗ wrong" if spoken else first,
        alt=alt,
    )


def thumbnails(transform: InputTransform, x: Tensor) -> Mapping[float, np.ndarray]:
    """One image at eight angles, where the transform's only parameter is one."""
    (name, parameter), *more = transform.parameters.items()
    if more or not isinstance(parameter, Angle):
        return {}
    seen = [
        (value, transform(x[:1], generator=torch.Generator().manual_seed(0), **_one(name, value)))
        for value in stops(parameter)
    ]
    return {value: as_images(image, x[:1])[0] for value, image in seen}


def _one(name: str, value: float) -> dict[str, Any]:
    return {name: value}


def as_images(x: Tensor, scale: Tensor) -> np.ndarray:
    """`(B, C, H, W)` to `(B, H, W)` or, for three channels, `(B, H, W, 3)`, in [0, 1] on the scale of other images."""
    span = scale.flatten(1)
    low, high = (end.reshape(-1, 1, 1, 1) for end in (span.amin(1), span.amax(1)))
    x = ((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float().cpu()
    return np.asarray(x.permute(0, 2, 3, 1) if x.shape[1] == 3 else x[:, 0])


def _distinct(y: Tensor, count: int) -> list[int]:
    """The first images with different targets, then the first of the rest."""
    keys = [row.flatten().tolist() for row in y[:200]]
    first = [i for i, key in enumerate(keys) if key not in keys[:i]]
    return sorted((first + [i for i in range(len(keys)) if i not in first])[:count])


def _classes(output: object) -> Tensor | None:
    logits = getattr(output, "logits", output)
    return logits.argmax(1).cpu() if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] > 1 else None


def _headings(
    page: Axes,
    palette: Palette,
    space: ParameterSpace,
    name: str,
    way: Sequence[Mapping[str, float]],
    top: float,
    side: float,
) -> None:
    """The varied parameter's values above the columns."""
    page.text(LEFT - 0.14, top + 0.13, name, ha="right", va="center", color=palette.ink, fontweight="bold")
    for column, theta in enumerate(way):
        home = theta[name] == space[name].anchor_value
        page.text(
            LEFT + column * side + side / 2 - 0.04, top + 0.13, setting_text(space, {name: theta[name]}), ha="center",
            va="center", fontsize=8.5, color=palette.ink if home else palette.muted,
            fontweight="bold" if home else "normal",
        )  # fmt: skip
