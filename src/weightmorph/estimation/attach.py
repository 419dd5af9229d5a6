"""Give a conditioned model an untrained head that estimates θ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..estimator import Estimator
from ..model import Conditioned

__all__ = ["attach"]


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

    `fit(…, predict_parameter=True)` attaches a default head to a model that has none. Call `attach` first to choose
    another layer or size; `fit` then trains that head.

    Args:
        model: the conditioned model; `model.estimator` is set.
        x: typical inputs `(B, …)`, at settings all over the range, as the base takes them: a tensor, a tuple of
            positional inputs, or a dict of keyword inputs. Sizes, means and standard deviations of the features are
            measured on them.
        layers: dotted names of the layers whose outputs are read; `""` is the base's input. Unless given, the last
            conditioned convolution whose map has 64 positions or more; in a network without maps, the input and the
            first conditioned layer.
        bins: kernels over a parameter's range, by name; unless given, 36.
        channels: numbers to which the channels of each cell are mixed.
        hidden: width of the hidden layer.

    Returns:
        the head.

    Raises:
        InputError: if a layer does not exist or gives nothing to read.
        ParameterError: if `bins` does not fit the parameters.

    Example:
        >>> import torch
        >>> import weightmorph as wm
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> attach(model, torch.randn(8, 1, 12, 12)).extra_repr()
        'angle from 0'
    """
    if layers is not None and not layers:
        raise InputError("layers: expected the name of one layer or more, got none")
    head = Estimator.for_base(model.frozen(), model.slots, model.space, x, layers, bins, channels, hidden)
    model.estimator = head.train(model.training)
    return head
