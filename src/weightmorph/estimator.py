r"""A small head on the base's early features that says how likely every value of θ is.

[`Estimator`][weightmorph.estimator.Estimator] is trained by `fit(…, predict_parameter=True)` and stays with the model
as `model.estimator`, so that it is saved, moved and copied with it. `model(x, angle="infer")` asks it, and so does
[`infer`][weightmorph.infer.infer], which can go on from there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError, ParameterError
from .parameters import Categorical, Parameter, ParameterSpace, Theta

__all__ = ["INFER", "Axis", "Estimator", "Tap", "estimator_of", "peak", "probe"]

INFER = "infer"
"""What a model is given in place of a value that nobody knows."""

BINS = 36
"""Kernels over the range of a parameter: 10° each on the circle."""

WIDTH = 0.7
"""A kernel's standard deviation in steps between kernels: narrow, yet without holes between two of them."""

POOLED: Mapping[int, int] = {1: 49, 2: 7, 3: 4}
"""Cells along each axis of a map of so many axes, after pooling."""

LARGEST = 2**20
"""Of any size in a head that is made again from data, which may be anybody's."""

FINER = 5
"""Points to a kernel where the most likely value is looked for."""


class Axis:
    r"""One parameter laid out evenly from end to end, or round the circle, with a kernel at every value.

    A kernel is a density in the parameter's coordinate: von Mises of concentration $1/\sigma^2$ for an angle, a normal
    one cut off at both ends for a range, all or nothing for a category. Densities are relative to the uniform one, so
    that 1 says nothing.

    Args:
        parameter: which.
        size: values; a `Categorical` has its own number.

    Attributes:
        values: `(K,)` in float32.
        coordinates: of the values, `(K,)`.
        period: of the coordinate, or None.
        span: the whole range in the coordinate; of a `Categorical`, K.
        step: between two neighbours.

    Example:
        >>> from weightmorph import Angle
        >>> axis = Axis(Angle("deg"), 36)
        >>> axis.difference(axis.coordinate(torch.tensor(350.0)), axis.coordinate(torch.tensor(10.0))).rad2deg().round()
        tensor(-20.)
    """

    def __init__(self, parameter: Parameter, size: int) -> None:
        self.parameter = parameter
        with torch.device("cpu"):  # whatever the default device is: these are plain numbers, looked at on the way
            self.values = parameter.grid(size)
            self.coordinates = self.coordinate(self.values)
        self.period = parameter.period
        self.discrete = isinstance(parameter, Categorical)
        size = len(self.values)
        ends = float(self.coordinates[-1] - self.coordinates[0])
        self.span = float(size) if self.discrete else self.period or ends
        self.step = self.span / (size if self.discrete or self.period else max(size - 1, 1))

    def __len__(self) -> int:
        return len(self.values)

    def coordinate(self, value: Tensor) -> Tensor:
        """Values `(*B)` to coordinates `(*B)`."""
        return self.parameter.coordinate(self.parameter.encode(value))

    def value(self, coordinate: Tensor) -> Tensor:
        """The way back; of an angle, within one turn from the anchor on."""
        if self.period is not None:
            coordinate = torch.remainder(coordinate, self.period)
        return self.parameter.from_coordinate(coordinate)

    def difference(self, one: Tensor, other: Tensor) -> Tensor:
        """From the second coordinate to the first, the short way round."""
        if self.period is None:
            return one - other
        half = self.period / 2
        return torch.remainder(one - other + half, self.period) - half

    def log_kernels(self, value: Tensor) -> Tensor:
        """Log density of every kernel at values `(*V)`, relative to the uniform one: `(*V, K)`. Differentiable."""
        centres = self.coordinates.to(value)
        away = self.difference(self.coordinate(value).unsqueeze(-1), centres)
        if self.discrete:
            return torch.where(away.abs() < 0.5, math.log(len(self)), -torch.inf)
        sigma = WIDTH * self.step
        if self.period is not None:
            kappa = torch.tensor((self.period / math.tau / sigma) ** 2, dtype=torch.float64)
            height = float(torch.special.i0e(kappa).log())
            return float(kappa) * (torch.cos(away * (math.tau / self.period)) - 1) - height
        low, high = (centres[0] - centres) / sigma, (centres[-1] - centres) / sigma
        inside = torch.special.ndtr(high) - torch.special.ndtr(low)
        return -0.5 * (away / sigma) ** 2 - torch.log(inside * (sigma * math.sqrt(math.tau) / self.span))


def peak(values: Tensor, best: Tensor, circular: bool) -> Tensor:
    """How far from its best point, in steps, a smooth function has its maximum: a parabola through three points.

    Args:
        values: `(B, K)` along evenly spaced points.
        best: `(B,)` indices of the highest.
        circular: the last point is a neighbour of the first.

    Returns:
        `(B,)`, from -0.5 to 0.5; 0 at an end of the range.

    Example:
        >>> peak(torch.tensor([[0.0, 3.0, 4.0, 1.0]]), torch.tensor([2]), circular=False)
        tensor([-0.2500])
    """
    size = values.shape[1]
    before, after = (best - 1) % size, (best + 1) % size
    low, mid, high = (values.gather(1, at.unsqueeze(1)).squeeze(1) for at in (before, best, after))
    bend = low - 2 * mid + high
    move = torch.where(bend < 0, 0.5 * (low - high) / bend, torch.zeros_like(bend))
    inside = torch.ones_like(best, dtype=torch.bool) if circular else (best > 0) & (best < size - 1)
    sound = inside & torch.isfinite(move)
    return torch.where(sound, move, torch.zeros_like(move)).clamp(-0.5, 0.5)


@dataclass(frozen=True)
class Tap:
    """Where features are read: the output of a layer of the base, or what goes into the base.

    Attributes:
        layer: its dotted name; `""` for the base's first input.
        channels: of that tensor.
        grid: cells of the map after pooling; empty for a vector.
        last: the channels are the last axis, as behind a `Linear`, and not the second.
    """

    layer: str
    channels: int
    grid: tuple[int, ...] = ()
    last: bool = False

    @classmethod
    def on(cls, layer: str, seen: Tensor, last: bool = False) -> Tap:
        """For a tensor `(B, C, *positions)`, `(B, *positions, C)` or `(B, F)` that was seen there."""
        if seen.dim() < 2 or not seen.is_floating_point():
            raise InputError(
                f"layer {layer!r}: expected an output (B, …) of floating-point numbers to estimate θ from, got shape "
                f"{tuple(seen.shape)} of {seen.dtype}; name other layers"
            )
        extents = seen.shape[1:-1] if last else seen.shape[2:]
        if last and len(extents) > 1:  # positions behind a Linear are taken as one row of them
            extents = torch.Size([math.prod(extents)])
        if len(extents) not in (0, *POOLED):
            raise InputError(f"layer {layer!r}: a map of {len(extents)} axes cannot be pooled; name other layers")
        grid = tuple(min(n, POOLED[len(extents)]) for n in extents)
        return cls(layer, seen.shape[-1] if last else seen.shape[1], grid, last)

    def pooled(self, seen: Tensor) -> Tensor:
        """`(B, C, cells)` of what was seen, the mean of each cell; `(B, C, 1)` of a vector."""
        seen = seen.movedim(-1, 1) if self.last else seen
        if not self.grid:
            return seen.reshape(len(seen), self.channels, 1)
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(self.grid) - 1]
        cells: Tensor = pool(seen.flatten(2) if len(self.grid) == 1 else seen, self.grid)
        return cells.flatten(2)


class _Enough(Exception):
    """All has been seen that was asked for: what follows in the base need not run."""


def probe(
    root: nn.Module, layers: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, whole: bool = False
) -> dict[str, Tensor]:
    """The first output of each named layer, in the order in which they come.

    Args:
        root: a clone of the base, which is hooked and, unless `whole`, left as soon as all has been seen.
        layers: dotted names; `""` is the first tensor that goes into the base.
        args: the base's positional inputs.
        kwargs: its keyword inputs.
        whole: run the base to its end.

    Raises:
        InputError: for a layer that is not there.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise InputError(f"layers: the base has no layer {unknown[0]!r}; it has {', '.join([*modules][1:9])} …")
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, list | tuple) and output else output
        if name not in seen and isinstance(first, Tensor):
            seen[name] = first
            if not whole and len(seen) == len(layers):
                raise _Enough

    hooks = [
        modules[name].register_forward_hook(lambda module, given, output, name=name: keep(name, output))
        for name in layers
        if name
    ]
    try:
        if "" in layers:
            keep("", next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None))
        root(*args, **kwargs)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in layers if name not in seen]
    if missing and not whole:
        raise InputError(f"layer {missing[0]!r} gave no tensor on the base's way from input to output; name another")
    return seen


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
