"""The head: how likely every value of each parameter is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ParameterError
from ..parameters import ParameterSpace, Theta
from .axis import Axis, peak
from .taps import Tap, probe

__all__ = ["Estimator", "estimator_of"]

BINS = 36
"""Kernels over the range of a parameter: 10° each on the circle."""

LARGEST = 2**20
"""Of any size in a head that is made again from data, which may be anybody's."""

FINER = 5
"""Points to a kernel where the most likely value is looked for."""


class Estimator(nn.Module):
    r"""How likely every value of each parameter is, given an input: a mixture of kernels with learned weights.

    $$q(\theta \mid x) = \prod_p \sum_k w_{pk}(x)\, \varphi_{pk}(\theta_p)$$

    The kernels $\varphi$ lie evenly over the range ([`Axis`][weightmorph.estimator.Axis]): on the circle for an angle,
    so that 359° and 1° are neighbours and an object that looks alike at two angles gets two modes. The weights $w$ come
    from the frozen base's early features, averaged over a coarse grid, standardised, mixed per cell to `channels`
    numbers, and put through one hidden layer. Several parameters are taken to be independent given the input.

    Args:
        space: the parameters.
        taps: where features are read.
        bins: kernels over each parameter, by name; unless given, 36.
        channels: numbers per cell.
        hidden: width of the hidden layer.

    Raises:
        ParameterError: if `bins` names an unknown parameter or has fewer than 2.

    References:
        Bishop, "Mixture density networks", 1994; with the kernels fixed, as there for a periodic variable.

    Example:
        >>> from weightmorph import Angle
        >>> head = Estimator(ParameterSpace({"angle": Angle("deg")}), [Tap("conv", 8, (7, 7))])
        >>> weights = head([torch.randn(5, 8, 49)])
        >>> weights["angle"].shape, head.log_density(weights, {"angle": torch.zeros(5, 3)}).shape
        (torch.Size([5, 36]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        space: ParameterSpace,
        taps: Sequence[Tap],
        bins: Mapping[str, int] | None = None,
        channels: int = 16,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        for name, number in (bins or {}).items():
            if name not in space or number < 2:
                raise ParameterError(f"bins: expected 2 or more for one of {', '.join(space)}, got {name!r}: {number}")
        self.space, self.taps = space, tuple(taps)
        self.channels, self.hidden = channels, hidden
        self.axes = {name: Axis(p, (bins or {}).get(name, BINS)) for name, p in space.items()}
        for number, tap in enumerate(self.taps):
            self.register_buffer(f"shift{number}", torch.zeros(tap.channels))
            self.register_buffer(f"scale{number}", torch.ones(tap.channels))
        self.mix = nn.ModuleList([nn.Linear(t.channels, channels) if t.grid else nn.Identity() for t in self.taps])
        width = sum(channels * math.prod(tap.grid) if tap.grid else tap.channels for tap in self.taps)
        self.body = nn.Linear(width, hidden)
        self.out = nn.ModuleList([nn.Linear(hidden, len(axis)) for axis in self.axes.values()])

    @torch.no_grad()
    def calibrate(self, features: Sequence[Tensor]) -> None:
        """Take mean and spread of each channel from features that were read."""
        for number, seen in enumerate(features):
            shift, scale = self.get_buffer(f"shift{number}"), self.get_buffer(f"scale{number}")
            flat = seen.movedim(1, 0).flatten(1).double()
            shift.copy_(flat.mean(1))
            scale.copy_(1 / flat.std(1).clamp_min(1e-3 * float(flat.std()) + 1e-12))

    @torch.no_grad()
    def read(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The features of a batch, `(B, C, cells)` for each tap; the base is run no further than the last of them.

        Args:
            root: a fresh clone of the frozen base.
            args: its positional inputs.
            kwargs: its keyword inputs.

        Raises:
            InputError: if an input has features of another size than the head was made for.
        """
        seen = probe(root, [tap.layer for tap in self.taps], args, kwargs)
        for tap in self.taps:
            found = Tap.on(tap.layer, seen[tap.layer], tap.last)
            if found != tap:
                raise InputError(
                    f"the head that estimates θ reads {tap.channels} channels on {tap.grid or 'no'} cells from "
                    f"{tap.layer or 'the input'!r}, and this input gives {found.channels} on {found.grid or 'none'}; "
                    "give inputs of the size it was trained on"
                )
        return [tap.pooled(seen[tap.layer]).to(self.body.weight.dtype) for tap in self.taps]

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Log weights of the kernels, `(B, K)` by parameter, from what `read` gave."""
        parts = []
        for number, (seen, mix) in enumerate(zip(features, self.mix, strict=True)):
            shift, scale = self.get_buffer(f"shift{number}"), self.get_buffer(f"scale{number}")
            standard = (seen.movedim(1, 2) - shift) * scale
            parts.append((torch.relu(mix(standard)) if self.taps[number].grid else standard).flatten(1))
        code = torch.relu(self.body(torch.cat(parts, 1)))
        return {name: out(code).log_softmax(1) for name, out in zip(self.axes, self.out, strict=True)}

    def log_density(self, weights: Mapping[str, Tensor], theta: Mapping[str, Tensor]) -> Tensor:
        """Log of $q(θ | x)$ relative to the uniform density: 0 where the head knows nothing. Differentiable in θ.

        Args:
            weights: from `forward`, `(B, K)` each.
            theta: values `(B, S)`, or `(1, S)` for the same ones everywhere; parameters that are left out are summed
                over.

        Returns:
            `(B, S)`.
        """
        total: Tensor | None = None
        for name, values in theta.items():
            kernels = self.axes[name].log_kernels(values)  # (B or 1, S, K)
            if len(kernels) == 1:  # one product for all samples; in float64, for a kernel may be as low as e⁻¹³⁴
                mixed = weights[name].double().exp() @ kernels[0].double().exp().T
                here = mixed.clamp_min(1e-300).log().to(weights[name].dtype)
            else:
                here = torch.logsumexp(weights[name].unsqueeze(1) + kernels, -1)
            total = here if total is None else total + here
        assert total is not None, "no parameter was asked for"
        return total

    def loss(self, features: Sequence[Tensor], theta: Theta) -> Tensor:
        """Negative log density at the true θ `(B,)`, in nats below what a uniform guess has: a scalar."""
        return -self.log_density(self(features), {name: value.unsqueeze(1) for name, value in theta.items()}).mean()

    @torch.no_grad()
    def best(self, features: Sequence[Tensor], names: Sequence[str] | None = None) -> Theta:
        """The most likely value of each parameter: name to `(B,)`."""
        weights = self(features)
        found: Theta = {}
        for name in self.axes if names is None else names:
            fine = Axis(self.space[name], FINER * len(self.axes[name]))
            values = fine.values.to(weights[name])
            density = self.log_density(weights, {name: values.unsqueeze(0)})
            at = density.argmax(1)
            if fine.discrete:
                found[name] = values[at]
                continue
            move = peak(density, at, fine.period is not None) * fine.step
            found[name] = fine.value(fine.coordinates.to(values)[at] + move)
        return found

    def config(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        bins = {name: len(axis) for name, axis in self.axes.items()}
        taps = [dataclasses.asdict(tap) | {"grid": list(tap.grid)} for tap in self.taps]
        return {"taps": taps, "bins": bins, "channels": self.channels, "hidden": self.hidden}

    @classmethod
    def from_config(cls, space: ParameterSpace, config: Mapping[str, Any]) -> Estimator:
        """The way back from `config`, untrained.

        Raises:
            KeyError, TypeError, ValueError: for data that are not a head's.
        """
        taps = [Tap(**{**tap, "grid": tuple(tap["grid"])}) for tap in config["taps"]]
        sizes = [config["channels"], config["hidden"], *config["bins"].values(), *(t.channels for t in taps)]
        if not all(isinstance(size, int) and 0 < size <= LARGEST for size in sizes):
            raise ValueError(f"expected sizes from 1 to {LARGEST:,}, got {sizes}")
        return cls(space, taps, config["bins"], config["channels"], config["hidden"])

    def extra_repr(self) -> str:
        where = ", ".join(tap.layer or "the input" for tap in self.taps)
        return f"{', '.join(self.axes)} from {where}"


def estimator_of(model: nn.Module) -> Estimator | None:
    """The head of a conditioned model, if it has one; a model that was pickled by an older release has none."""
    head = getattr(model, "estimator", None)
    return head if isinstance(head, Estimator) else None
