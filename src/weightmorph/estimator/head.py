"""The estimator: a small network from features of the frozen base to a density over θ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base import as_call
from ..errors import InputError, ParameterError
from ..parameters import ParameterSpace, Theta
from ..slots import Slot
from .axis import Axis, peak
from .taps import Tap, choose_taps, probe

__all__ = ["Estimator", "estimator_of"]

BINS = 36
"""Kernels over the range of a parameter: 10° each on the circle."""

LARGEST = 2**20
"""Upper bound of every size in a head that is rebuilt from a file, because a file may be hostile."""

FINER = 5
"""Grid points per kernel in the search for the most likely value."""


class Estimator(nn.Module):
    r"""A density over each parameter given the input: a mixture of fixed kernels with learned weights.

    $$q(\theta \mid x) = \prod_p \sum_k w_{pk}(x)\, \varphi_{pk}(\theta_p)$$

    The kernels $\varphi$ lie evenly over the range ([`Axis`][weightmorph.estimator.Axis]): on the circle for an angle,
    so that 359° and 1° are neighbours and an object that looks the same at two angles gets two modes. The weights $w$
    come from the frozen base's early features, averaged over a coarse grid, standardised, mixed per cell to `channels`
    numbers, and put through one hidden layer. Several parameters are assumed to be independent given the input.

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

    @classmethod
    @torch.no_grad()
    def for_base(
        cls,
        root: nn.Module,
        slots: Mapping[str, Slot],
        space: ParameterSpace,
        x: Any,
        layers: Sequence[str] | None = None,
        bins: Mapping[str, int] | None = None,
        channels: int = 16,
        hidden: int = 64,
    ) -> Estimator:
        """An untrained head for a base, calibrated on a typical batch, on the base's device and in its type.

        Args:
            root: a clone of the frozen base.
            slots: its conditioned tensors.
            space: the parameters.
            x: a typical batch, as the base takes it: a tensor, a tuple, or a dict.
            layers: which layers are read; see [`attach`][weightmorph.estimation.attach].
            bins: kernels over each parameter, by name.
            channels: numbers per cell.
            hidden: width of the hidden layer.

        Raises:
            InputError: for a layer that does not exist or gives nothing to read.
            ParameterError: if `bins` does not fit the parameters.
        """
        args, kwargs = as_call(x)
        head = cls(space, choose_taps(root, slots, args, kwargs, layers), bins, channels, hidden)
        like = next(root.parameters())
        head.to(like.device, like.dtype)
        head.calibrate(head.read(root, args, kwargs))
        return head

    @torch.no_grad()
    def calibrate(self, features: Sequence[Tensor]) -> None:
        """Set the mean and the scale of each channel from typical features, as `read` gives them."""
        for number, feature in enumerate(features):
            shift, scale = self.get_buffer(f"shift{number}"), self.get_buffer(f"scale{number}")
            flat = feature.movedim(1, 0).flatten(1).double()
            shift.copy_(flat.mean(1))
            scale.copy_(1 / flat.std(1).clamp_min(1e-3 * float(flat.std()) + 1e-12))

    @torch.no_grad()
    def read(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The features of a batch, `(B, C, cells)` for each tap. The base runs no further than its last tap.

        Args:
            root: a fresh clone of the frozen base.
            args: its positional inputs.
            kwargs: its keyword inputs.

        Raises:
            InputError: if an input has features of another size than the head was made for.
        """
        outputs = probe(root, [tap.layer for tap in self.taps], args, kwargs)
        for tap in self.taps:
            here = Tap.on(tap.layer, outputs[tap.layer], tap.last)
            if here != tap:
                raise InputError(
                    f"the head that estimates θ reads {tap.channels} channels on {tap.grid or 'no'} cells from "
                    f"{tap.layer or 'the input'!r}, and this input gives {here.channels} on {here.grid or 'none'}; "
                    "give inputs of the size it was trained on"
                )
        return [tap.pooled(outputs[tap.layer]).to(self.body.weight.dtype) for tap in self.taps]

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Features as `read` gives them to log weights of the kernels: parameter to `(B, K)`."""
        parts = []
        for number, (feature, mix) in enumerate(zip(features, self.mix, strict=True)):
            shift, scale = self.get_buffer(f"shift{number}"), self.get_buffer(f"scale{number}")
            standard = (feature.movedim(1, 2) - shift) * scale
            parts.append((torch.relu(mix(standard)) if self.taps[number].grid else standard).flatten(1))
        code = torch.relu(self.body(torch.cat(parts, 1)))
        return {name: out(code).log_softmax(1) for name, out in zip(self.axes, self.out, strict=True)}

    def log_density(self, weights: Mapping[str, Tensor], theta: Mapping[str, Tensor]) -> Tensor:
        r"""$\log q(\theta \mid x)$ relative to the uniform density, so 0 means no knowledge. Differentiable in θ.

        Args:
            weights: from `forward`, `(B, K)` each.
            theta: values `(B, S)`, or `(1, S)` for the same values at each sample. Parameters that are left out are
                marginalised.

        Returns:
            log densities `(B, S)`.
        """
        total: Tensor | None = None
        for name, values in theta.items():
            kernels = self.axes[name].log_kernels(values)  # (B or 1, S, K)
            if len(kernels) == 1:  # one product for all samples; in float64, because a kernel can be as low as e⁻¹³⁴
                mixed = weights[name].double().exp() @ kernels[0].double().exp().T
                here = mixed.clamp_min(1e-300).log().to(weights[name].dtype)
            else:
                here = torch.logsumexp(weights[name].unsqueeze(1) + kernels, -1)
            total = here if total is None else total + here
        assert total is not None, "theta names a parameter at least"
        return total

    def loss(self, features: Sequence[Tensor], theta: Theta) -> Tensor:
        """Mean negative log density at the true θ `(B,)`: a scalar in nats, 0 for a uniform guess."""
        return -self.log_density(self(features), {name: value.unsqueeze(1) for name, value in theta.items()}).mean()

    @torch.no_grad()
    def best(self, features: Sequence[Tensor], names: Sequence[str] | None = None) -> Theta:
        """The most likely value of each parameter: name to `(B,)`."""
        return self.most_likely(self(features), names)

    @torch.no_grad()
    def most_likely(
        self, weights: Mapping[str, Tensor], names: Sequence[str] | None = None, *, pooled: bool = False
    ) -> Theta:
        """The maximum of each parameter's density.

        Args:
            weights: from `forward`, `(B, K)` each.
            names: the parameters; all of them unless given.
            pooled: whether all samples share one θ, so that their log densities add up.

        Returns:
            name to `(B,)`, or to `(1,)` if `pooled`.
        """
        values: Theta = {}
        for name in self.axes if names is None else names:
            fine = Axis(self.space[name], FINER * len(self.axes[name]))
            grid = fine.values.to(weights[name])
            density = self.log_density(weights, {name: grid.unsqueeze(0)})
            density = density.sum(0, keepdim=True) if pooled else density
            at = density.argmax(1)
            values[name] = grid[at]
            if not fine.discrete:
                move = peak(density, at, fine.period is not None) * fine.step
                values[name] = fine.value(fine.coordinates.to(grid)[at] + move)
        return values

    def config(self) -> dict[str, Any]:
        """Plain data for JSON, from which `from_config` rebuilds the head."""
        bins = {name: len(axis) for name, axis in self.axes.items()}
        taps = [dataclasses.asdict(tap) | {"grid": list(tap.grid)} for tap in self.taps]
        return {"taps": taps, "bins": bins, "channels": self.channels, "hidden": self.hidden}

    @classmethod
    def from_config(cls, space: ParameterSpace, config: Mapping[str, Any]) -> Estimator:
        """An untrained head with the layout that `config` wrote.

        Raises:
            KeyError, TypeError, ValueError: for data that `config` did not write.
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
    """The estimator of a conditioned model, or None. A model that release 0.1 pickled has no such attribute."""
    head = getattr(model, "estimator", None)
    return head if isinstance(head, Estimator) else None
