"""Giving a conditioned model a head that estimates θ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..base import as_call
from ..errors import InputError
from ..estimator import Estimator, Tap, probe
from ..model import Conditioned

__all__ = ["attach", "default_layers"]

POSITIONS = 64
"""Cells that a map must have to say where things are."""


def attach(
    model: Conditioned,
    x: Any,
    *,
    layers: Sequence[str] | None = None,
    bins: Mapping[str, int] | None = None,
    channels: int = 16,
    hidden: int = 64,
) -> Estimator:
    """Give a model an untrained head that estimates θ from the frozen base's early features.

    `fit(…, predict_parameter=True)` does so where there is none, with the defaults; call this first for another layer
    or size, and `fit` trains what it finds.

    Args:
        model: the conditioned model; `model.estimator` is set.
        x: some typical inputs, at settings all over the range, as the base takes them: a tensor, a tuple of positional
            inputs, or a dict of keyword inputs. Sizes, means and spreads of the features are read off them.
        layers: whose outputs to read, by dotted name; `""` stands for the base's input. Unless given, the last
            convolution among the conditioned layers whose map has 64 cells or more; in a network without maps, the
            input and the first conditioned layer.
        bins: kernels over a parameter's range, by name; unless given, 36.
        channels: numbers to which the channels of each cell are mixed.
        hidden: width of the hidden layer.

    Returns:
        the head.

    Raises:
        InputError: if a layer is not there or gives nothing to read.
        ParameterError: if `bins` does not fit the parameters.

    Example:
        >>> import weightmorph as wm
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> attach(model, torch.randn(8, 1, 12, 12)).extra_repr()
        'angle from 0'
    """
    args, kwargs = as_call(x)
    linear = {slot.layer for slot in model.slots.values() if slot.kind == "linear"}
    flags = {part: part.training for part in model.modules()}
    with torch.no_grad():
        if layers is None:
            layers = default_layers(model, args, kwargs)
        elif not layers:
            raise InputError("layers: expected the name of one layer or more, got none")
        modules = dict(model.frozen().named_modules())
        last = {name: name in linear or isinstance(modules.get(name), torch.nn.Linear) for name in layers}
        seen = probe(model.frozen(), layers, args, kwargs)
        taps = [Tap.on(name, seen[name], last[name] and seen[name].dim() > 2) for name in layers]
        head = Estimator(model.space, taps, bins, channels, hidden)
        head.to(device=model.device, dtype=model.dtype)
        head.calibrate(head.read(model.frozen(), args, kwargs))
    head.train(flags[model])
    model.estimator = head
    return head


def default_layers(model: Conditioned, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """The last conditioned convolution with a map of some size, or the input and the first conditioned layer."""
    weights = [slot for slot in model.slots.values() if slot.kind in ("conv", "conv_transpose", "linear")]
    named = list(dict.fromkeys(slot.layer for slot in weights or model.slots.values()))
    seen = probe(model.frozen(), named, args, kwargs, whole=True)
    maps = {slot.layer for slot in weights if slot.kind != "linear"}
    large = [name for name, output in seen.items() if name in maps and math.prod(output.shape[2:]) >= POSITIONS]
    if large:
        return [large[-1]]
    return ["", next(iter(seen))] if seen else [""]
