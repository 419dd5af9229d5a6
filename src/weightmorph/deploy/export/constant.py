r"""The model with constant layers only: θ acts between them, on activations.

$$\mathrm{conv}(x, W + s \odot W + U g V + W D) =
  (1 + s) \odot \mathrm{conv}(x, W) + U (g \odot \mathrm{conv}(x, V)) + W (D\, \mathrm{patches}(x))$$

Each of these convolutions has a weight that does not follow θ. Patches are a depthwise convolution with one-hot
kernels, one per tap; a depthwise low rank and a mix of weight sets are one convolution to all of them and a weighted
sum. It is what compilers for accelerators want: weights that are known, and small inputs that are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ExecutionError
from ...layers.convolution import Convolution, each
from ...model import Conditioned
from ...slots import Slot
from ...terms import BasisMix, Dense, LowRankUpdate, RowScale, TapMix, Term, WeightExpression

__all__ = ["Constant"]

PLAIN: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
NAMES: dict[Callable[..., Any], list[str]] = {
    **dict.fromkeys(PLAIN.values(), "input weight bias stride padding dilation groups".split()),
    **dict.fromkeys(TRANSPOSED.values(), "input weight bias stride padding output_padding groups dilation".split()),
    F.linear: ["input", "weight", "bias"],
    F.batch_norm: "input running_mean running_var weight bias training momentum eps".split(),
    F.instance_norm: "input running_mean running_var weight bias use_input_stats momentum eps".split(),
    F.group_norm: "input num_groups weight bias eps".split(),
    F.layer_norm: "input normalized_shape weight bias eps".split(),
    F.rms_norm: "input normalized_shape weight eps".split(),
}
"""Functions that take a conditioned tensor, and the order of their arguments."""

METADATA = frozenset(
    "shape dtype device ndim size dim numel nelement is_floating_point is_complex stride layout requires_grad".split()
)
"""What a stand-in answers from the frozen tensor."""

ADVICE = (
    "bake one setting, which is all constant: model.bake(…); or leave that family out there with select=; or export "
    "without constant_weights"
)


class Constant(nn.Module):
    """A model whose convolutions and linear layers all have constant weights, called as the model is.

    Raises:
        ExecutionError: if a tensor has no such form (every one is named).
    """

    def __init__(self, model: Conditioned) -> None:
        super().__init__()
        self.model = model
        self.constants = nn.ParameterDict()
        self.stands = {name: _Stand(self, slot) for name, slot in model.slots.items()}
        self.base = model.base.clone(self.stands)
        with torch.no_grad():
            self._encode(dict(model.space.anchor))
            self._refuse()
            for stand in self.stands.values():
                stand.keep(self.constants)

    def _encode(self, theta: dict[str, Any]) -> None:
        """Put what follows θ into the stand-ins."""
        model = self.model
        code = model.encode(**theta)
        weights = {name: stand.weight for name, stand in self.stands.items()}
        for name, expression in model.transform.expressions(list(model.slots.values()), weights, code).items():
            self.stands[name].expression = expression

    def _refuse(self) -> None:
        odd: dict[str, list[str]] = {}
        for name, stand in self.stands.items():
            for transform, term in zip(self.model.transform.of(stand.slot), stand.expression.terms, strict=True):
                if not _has_form(term):
                    odd.setdefault(type(transform).__name__, []).append(name)
        if odd:
            told = "; ".join(f"{family} on {', '.join(names)}" for family, names in odd.items())
            raise ExecutionError(
                f"constant_weights: there is no form with constant weights for {told}: what it makes is a weight of "
                f"its own at every θ. Either {ADVICE}"
            )

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What is traced."""
        self._encode({name: kwargs.pop(name) for name in self.model.space})
        return self.base(*args, **kwargs)


def _has_form(term: Term) -> bool:
    """Can θ's part of the term be done on activations?"""
    slot = term.slot
    if isinstance(term, TapMix):
        return slot.kind in ("conv", "linear")
    if isinstance(term, RowScale | LowRankUpdate | BasisMix):
        return slot.kind in ("conv", "conv_transpose", "linear", "norm")
    return isinstance(term, Dense) and _vector(slot)


def _vector(slot: Slot) -> bool:
    """A bias or a norm's scale: an operand, and not the weight of a layer."""
    return slot.kind in ("bias", "norm")


class _Stand:
    """Stands at `layer.weight` of the traced network, and knows the constants that its terms need.

    Tensors are looked up where they are registered whenever they are used, for a trace puts its own in their places.
    """

    def __init__(self, whole: Constant, slot: Slot) -> None:
        self.whole, self.slot = whole, slot
        self.expression: WeightExpression
        self.names: list[tuple[str, ...]] = []

    @property
    def weight(self) -> Tensor:
        """The frozen tensor."""
        tensor = self.whole.base.get_submodule(self.slot.layer)._parameters[self.slot.attribute]
        assert tensor is not None
        return tensor

    @property
    def fixed(self) -> list[tuple[Tensor, ...]]:
        """Of every term, what does not follow θ, laid out as a layer's weight."""
        return [tuple(self.whole.constants[name] for name in names) for names in self.names]

    def keep(self, constants: nn.ParameterDict) -> None:
        """Lay out what does not follow θ, as tensors of the program."""
        for term in self.expression.terms:
            made = [] if _vector(self.slot) else [t.detach().clone().contiguous() for t in _fixed(term)]
            names = [f"{len(constants) + n}.{self.slot.name}".replace(".", "_") for n in range(len(made))]
            for name, tensor in zip(names, made, strict=True):
                constants[name] = nn.Parameter(tensor, requires_grad=False)
            self.names.append(tuple(names))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in METADATA:
            return getattr(self.weight, name)
        member = getattr(Tensor, name)
        if not callable(member):  # a property such as .T is a function of the weight like any other
            return _run(getattr, (self, name), {})
        return lambda *args, **kwargs: _run(member, (self, *args), kwargs)


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *args: _run(getattr(Tensor, name), (self, *args), {})


for _name in "add radd sub rsub mul rmul truediv rtruediv pow matmul rmatmul neg getitem".split():
    setattr(_Stand, f"__{_name}__", _operator(f"__{_name}__"))


def _fixed(term: Term) -> tuple[Tensor, ...]:
    """A term's constants, in the layout in which the layer's own function takes a weight."""
    slot = term.slot
    if isinstance(term, LowRankUpdate) and slot.depthwise:
        bank = (term.left[0].T.unsqueeze(-1) * term.right[0].unsqueeze(1)).reshape(-1, *slot.canonical_shape)
        return (_stacked(slot, slot.restore(bank)),)
    if isinstance(term, LowRankUpdate) and slot.kind == "linear":
        return term.left[0], term.right[0]
    if isinstance(term, LowRankUpdate):
        g, o, r = term.left.shape
        return term.left.reshape(g * o, r, *(1,) * slot.spatial), slot.restore(
            term.right.reshape(g, r, *slot.canonical_shape[2:])
        )
    if isinstance(term, BasisMix):
        return (_stacked(slot, term.bank),)
    if isinstance(term, TapMix) and slot.kind == "conv":
        g, o, i, t = slot.canonical_shape
        kernel = slot.grown(term.grow)
        taps = math.prod(kernel)
        one_hot = torch.eye(taps, dtype=term.weight.dtype, device=term.weight.device).reshape(taps, 1, *kernel)
        return one_hot.repeat(g * i, *(1,) * (1 + slot.spatial)), slot.canonical(term.weight).reshape(
            g * o, i * t, *(1,) * slot.spatial
        )
    return ()


def _stacked(slot: Slot, bank: Tensor) -> Tensor:
    """Weight sets `(D, *S)` as one weight with D times the outputs, a channel's D beside each other."""
    axis = 1 if slot.kind == "conv_transpose" else 0
    return bank.movedim(0, axis + 1).flatten(axis, axis + 1)


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func` with stand-ins among its arguments."""
    names = NAMES.get(func)
    if names is None:
        return _other(func, args, kwargs)
    given = dict(zip(names, args, strict=False)) | kwargs
    x, weight, bias = given.pop("input"), given.pop("weight", None), given.pop("bias", None)
    if isinstance(x, _Stand):
        return _other(func, args, kwargs)
    last = func in (F.linear, F.layer_norm, F.rms_norm)
    if func in PLAIN.values() or func in TRANSPOSED.values() or func is F.linear:
        y = _layer(func, x, weight, given) if isinstance(weight, _Stand) else func(x, weight, **given)
    else:
        y = func(x, **given)
        if weight is not None:
            y = y * _laid(weight, y, last)
    return y if bias is None else y + _laid(bias, y, last)


def _other(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function that is not known takes vectors, one for the batch, and nothing else."""
    found = list(_stands((args, tuple(kwargs.values()))))
    for stand in found:
        if not _vector(stand.slot) or stand.expression.batch:
            raise ExecutionError(
                f"constant_weights: layer {stand.slot.layer!r} gives {stand.slot.name} to the function "
                f"{getattr(func, '__name__', func)!r}, which has no form with constant weights. Either {ADVICE}"
            )

    def dense(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(dense(item) for item in value)
        return value.expression.dense() if isinstance(value, _Stand) else value

    return func(*dense(args), **{name: dense(value) for name, value in kwargs.items()})


def _stands(value: Any) -> Iterator[_Stand]:
    if isinstance(value, _Stand):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _stands(item)


def _laid(operand: Tensor | _Stand, y: Tensor, last: bool) -> Tensor:
    """A vector, one for the batch or one per sample, beside an output: its channels last, or second."""
    value, dims = operand, 1
    if isinstance(value, _Stand):
        dims, value = len(value.slot.shape), value.expression.dense()
    batch, own = value.shape[: value.dim() - dims], value.shape[value.dim() - dims :]
    if last:
        return value.reshape(*batch, *(1,) * (y.dim() - len(batch) - dims), *own).to(y.dtype)
    return value.reshape(*(batch or (1,)), *own, *(1,) * (y.dim() - 2)).to(y.dtype)


def _layer(func: Callable[..., Any], x: Tensor, stand: _Stand, given: dict[str, Any]) -> Tensor:
    """A convolution or a linear layer in the form of the module's docstring."""
    linear = func is F.linear
    plain: Tensor = func(x, stand.weight, **given)
    total: Tensor = plain
    for term, fixed in zip(stand.expression.terms, stand.fixed, strict=True):
        carrier = term.carrier[0].to(plain.dtype)
        if isinstance(term, RowScale):
            total = total + plain * _laid(carrier, plain, linear)
        elif len(fixed) == 1:  # weight sets, or the rows of a depthwise low rank
            total = total + _mixed(func(x, fixed[0], **given), carrier, linear)
        elif isinstance(term, LowRankUpdate):
            left, right = fixed
            narrow = func(x, right, **given)
            groups = 1 if linear else given.get("groups", 1)
            gained = narrow * _laid(carrier.repeat(*(1,) * (carrier.dim() - 1), groups), narrow, linear)
            total = total + (F.linear(gained, left) if linear else _pointwise(gained, left, groups))
        elif isinstance(term, TapMix) and linear:
            rows = x.reshape(x.shape[0], -1, term.slot.n_taps) @ carrier.transpose(-1, -2)
            total = total + F.linear(rows.reshape(x.shape), stand.weight)
        elif isinstance(term, TapMix):
            total = total + _taps(func, x, term, carrier, fixed, given)
    return total


def _mixed(sets: Tensor, mix: Tensor, last: bool) -> Tensor:
    """Every weight set's output, D of them to a channel, weighted: mix `(*B, D)`."""
    axis = sets.dim() if last else 2
    apart = sets.unflatten(axis - 1, (-1, mix.shape[-1]))
    behind = apart.dim() - 1 - axis
    batch = mix.shape[:-1] or (1,)
    total: Tensor = (apart * mix.reshape(*batch, *(1,) * (axis - 1), mix.shape[-1], *(1,) * behind)).sum(axis)
    return total


def _pointwise(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    return PLAIN[x.dim() - 2](x, weight, groups=groups)


def _taps(
    func: Callable[..., Any], x: Tensor, term: TapMix, mix: Tensor, fixed: tuple[Tensor, ...], given: dict[str, Any]
) -> Tensor:
    """What each tap sees, mixed, and the frozen weight as a 1x1 convolution."""
    one_hot, weight = fixed
    groups = given.get("groups", 1)
    x, padding = _room(func, x, term, given)
    patches = func(x, one_hot, **given | {"groups": x.shape[1], "padding": padding})
    seen = patches.unflatten(1, (x.shape[1], -1))
    mixed = (mix.unsqueeze(-3) @ seen.flatten(3)).flatten(1, 2)
    return _pointwise(mixed.unflatten(-1, patches.shape[2:]), weight, groups)


def _room(func: Callable[..., Any], x: Tensor, term: TapMix, given: dict[str, Any]) -> tuple[Tensor, Any]:
    """The input and the call's padding, with room for taps that the kernel has grown by."""
    padding, n = given.get("padding", 0), term.slot.spatial
    if not term.grow:
        return x, padding
    pads = padding if isinstance(padding, str) else each(padding, n)
    call = Convolution(func, n, each(given.get("stride", 1), n), pads, each(given.get("dilation", 1), n), 1)
    return call.room(x, term.slot.grown(term.grow), term.grow)
