"""Pictures of what θ does: filters that turn with it, and inputs with what both networks say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ..inputs import InputTransform
from ..model import Conditioned
from ..parameters import ParameterSpace
from .style import WIDTH, Palette, Picture, picture

__all__ = ["filters", "inputs", "thumbnails"]

SHOWN = 4
"""Filters, or images, of a picture that varies one parameter."""

Sweep = tuple[str, list[dict[str, Any]]]
"""A parameter's name, and settings that vary it while the others stay at their anchors."""


def _sweeps(space: ParameterSpace) -> list[Sweep]:
    """One for each of the first two parameters."""
    return [
        (name, [space.anchor | {name: value} for value in space[name].spaced(8).tolist()]) for name in list(space)[:2]
    ]


def _height(sweeps: Sequence[Sweep], count: int, aspect: float, below: float) -> float:
    """A figure's height in inches, for `count` rows of images a sweep with so much text below each."""
    side = (WIDTH - 1.1) / max(len(settings) for _, settings in sweeps)
    return len(sweeps) * (0.4 + count * (min(aspect, 1.0) * side + below))


def _cells(
    figure: Figure, palette: Palette, space: ParameterSpace, sweeps: Sequence[Sweep], count: int
) -> Iterator[tuple[int, int, int, Axes]]:
    """Axes for every sweep, row and setting, with the varied parameter's values above the columns."""
    columns = max(len(settings) for _, settings in sweeps)
    grid = figure.subplots(len(sweeps) * count, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    for number, (name, settings) in enumerate(sweeps):
        rows = grid[number * count : (number + 1) * count]
        _write(rows[0, 0], name, (0, 1), 6, va="baseline", fontweight="bold")
        for axes, theta in zip(rows[0], settings, strict=False):
            anchor = theta[name] == space[name].anchor_value
            style = {"color": palette.ink, "fontweight": "bold"} if anchor else {"color": palette.muted}
            axes.set_title("\n" * min(number, 1) + space[name].format(theta[name], 3), **style)
        for (row, column), axes in np.ndenumerate(rows):
            if column < len(settings):
                yield number, row, column, axes
            else:
                axes.set_visible(False)


def _write(axes: Axes, text: str, at: tuple[float, float], up: float = 0.0, **style: Any) -> None:
    """Write at a place in fractions of an image and so many points above it; at its left edge, on the left of it."""
    aside, align = (-7, "right") if at[0] == 0 else (0, "center")
    axes.annotate(text, at, (aside, up), xycoords="axes fraction", textcoords="offset points", ha=align, **style)


def filters(model: Conditioned) -> Picture | None:
    """Filters of the first conditioned layer with two-dimensional kernels; None if there is no such layer."""
    slot = next((s for s in model.slots.values() if s.spatial == 2 and s.n_taps > 1), None)
    if slot is None:
        return None
    sweeps = _sweeps(model.space)

    def kernels(theta: Mapping[str, Any]) -> Tensor:
        """Weights as `(outputs, inputs, h, w)`."""
        weight = model.weights(**theta)[slot.name]
        if slot.kind == "conv_transpose":
            return weight.transpose(0, 1)
        return weight if slot.kind == "conv" else weight.reshape(weight.shape[0], -1, *slot.kernel)

    with torch.no_grad():
        outputs, inputs = _liveliest(kernels(model.space.anchor), SHOWN if len(sweeps) == 1 else SHOWN - 1)
        taps = [torch.stack([kernels(theta)[outputs, inputs].cpu() for theta in way]).numpy() for _, way in sweeps]
    numbers = outputs.tolist()

    def draw(figure: Figure, palette: Palette) -> None:
        colours = LinearSegmentedColormap.from_list("signed", (palette.inverse, palette.paper, palette.series[0]))
        for sweep, row, column, axes in _cells(figure, palette, model.space, sweeps, len(numbers)):
            reach = float(np.abs(taps[sweep][:, row]).max()) or 1.0
            axes.imshow(taps[sweep][column, row], cmap=colours, vmin=-reach, vmax=reach, interpolation="nearest")
            if column == 0:
                _write(axes, f"filter {numbers[row]}", (0, 0.5), va="center", color=palette.muted)

    over = " and ".join(name for name, _ in sweeps)
    turn = all(parameter.turn is not None for parameter in model.space.values())
    tall, wide = slot.kernel
    first, last = (model.space.format(sweeps[0][1][end]) for end in (0, -1))
    return picture(
        "filters",
        f"Filters{f' of {slot.layer}' if slot.layer else ''} {'turn with' if turn else 'follow'} {over}",
        draw,
        height=_height(sweeps, len(numbers), tall / wide, 0.1),
        compress=True,
        w_pad=0.03,
        subtitle="Made by the weight transform; each filter on one scale, zero in between",
        caption="At the anchor, in bold, a filter is the frozen network's own.",
        alt=f"{len(numbers)} filters of the layer {slot.layer!r}, {tall} by {wide} taps, at settings of {over} from "
        f"{first} to {last}.",
    )


def _liveliest(kernels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Output channels whose taps vary most, because others hardly show a turn, and the liveliest input of each."""
    varied = (kernels - kernels.mean((-2, -1), keepdim=True)).square().sum((-2, -1))
    outputs = varied.amax(1).argsort(descending=True, stable=True)[:count]
    return outputs, varied[outputs].argmax(1)


def inputs(
    model: Conditioned, transform: InputTransform, x: Tensor, y: Tensor, labels: Sequence[str] | None = None
) -> Picture:
    """Images at several θ, and under each what the frozen network and the conditioned one say, right or wrong."""
    sweeps = _sweeps(model.space)
    chosen = _different(y, SHOWN if len(sweeps) == 1 else SHOWN // 2)
    x, y = x[chosen].to(model.device), y[chosen]
    images, answers = zip(*(_observe(model, transform, x, settings) for _, settings in sweeps), strict=True)
    targets = y.tolist() if y.dim() == 1 and not y.is_floating_point() and answers[0] is not None else []

    def name(number: int) -> str:
        text = labels[number] if labels is not None and 0 <= number < len(labels) else str(number)
        return text if len(text) <= 11 else f"{text[:10]}…"

    def draw(figure: Figure, palette: Palette) -> None:
        for sweep, row, column, axes in _cells(figure, palette, model.space, sweeps, len(chosen)):
            axes.imshow(images[sweep][column, row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if targets:
                numbers = answers[sweep][:, column, row].tolist()
                texts = [f"{name(number)} {'✓' if number == targets[row] else '✗'}" for number in numbers]
                _caption(axes, palette, texts, f"this is {name(targets[row])}" if column == 0 else "")

    count = len(sweeps[0][1])
    alt = f"{len(chosen)} images at {count} settings each."
    for place, target in enumerate(targets):
        frozen, conditioned = (answers[0][:, :, place] == target).sum(1)
        alt += (
            f" An image of {name(target)}: the frozen network is right at {frozen} of {count} settings, "
            f"the conditioned one at {conditioned}."
        )
    first = "The first images given" + (", with different targets" if targets else "")
    return picture(
        "inputs",
        f"What the networks see{' and say' if targets else ''}",
        draw,
        height=_height(sweeps, len(chosen), x.shape[-2] / x.shape[-1], 0.45 if targets else 0.1),
        compress=True,
        w_pad=0.03,
        subtitle=f"{first}; ✓ right, ✗ wrong" if targets else first,
        alt=alt,
    )


def _caption(axes: Axes, palette: Palette, answers: Sequence[str], target: str) -> None:
    """Both networks' answers below an image, wrong ones in red; with a `target`, it and their names on the left."""
    for line, network, answer in zip((-4, -15), ("frozen", "conditioned"), answers, strict=True):
        style = {"color": palette.wrong, "fontweight": "bold"} if answer.endswith("✗") else {}
        _write(axes, answer, (0.5, 0), line, va="top", fontsize=7.5, **style)
        if target:
            _write(axes, network, (0, 0), line, va="top", color=palette.muted, fontsize=7.5)
    _write(axes, target, (0, 0.5), va="center")


def _different(y: Tensor, count: int) -> list[int]:
    """The first images with different targets, then the first of the rest."""
    first: dict[tuple[float, ...], int] = {}
    for number, target in enumerate(y):
        first.setdefault(tuple(target.flatten().tolist()), number)
        if len(first) == count:
            break
    rest = [number for number in range(min(len(y), 2 * count)) if number not in first.values()]
    return sorted([*first.values(), *rest][:count])


def _observe(
    model: Conditioned, transform: InputTransform, x: Tensor, settings: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images `(settings, B, …)`, and the classes that both networks name, `(2, settings, B)`, if they name any."""
    with torch.no_grad():
        seen = [transform(x, generator=torch.Generator().manual_seed(0), **theta) for theta in settings]
        frozen = [_classes(model.frozen()(image)) for image in seen]
        conditioned = [_classes(model.at(**theta)(image)) for image, theta in zip(seen, settings, strict=True)]
    images = np.stack([_as_images(image, x) for image in seen])
    return images, None if frozen[0] is None else np.asarray([frozen, conditioned])


def _classes(output: object) -> list[int] | None:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        return None
    classes: list[int] = logits.argmax(1).tolist()
    return classes


def thumbnails(transform: InputTransform, x: Tensor) -> Mapping[float, np.ndarray]:
    """One image at eight angles, if the transform's only parameter is one."""
    (name, parameter), *more = transform.parameters.items()
    if more or parameter.turn is None:
        return {}
    seen = {
        value: transform(x[:1], generator=torch.Generator().manual_seed(0), **{name: value})
        for value in parameter.spaced(8).tolist()
    }
    return {value: _as_images(image, x[:1])[0] for value, image in seen.items()}


def _as_images(x: Tensor, scale: Tensor) -> np.ndarray:
    """`(B, C, H, W)` to `(B, H, W)` or, for three channels, `(B, H, W, 3)`, in [0, 1] on the scale of other images."""
    span = scale.flatten(1)
    low, high = (end.reshape(-1, 1, 1, 1) for end in (span.amin(1), span.amax(1)))
    x = ((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float().cpu()
    return np.asarray(x.permute(0, 2, 3, 1) if x.shape[1] == 3 else x[:, 0])
