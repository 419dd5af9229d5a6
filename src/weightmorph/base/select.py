"""Which tensors of a base are conditioned: by default, by pattern, by type, or by a predicate."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import SelectionError, near
from ..slots import Kind, Slot

__all__ = ["Select", "described", "floating", "read_as_maps", "select_slots"]

Select = str | type[nn.Module] | Callable[[Slot], bool] | Sequence["Select"]
"""A glob pattern on tensor or layer names, a layer type, a predicate on slots, or several of them (any may match)."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip


def kind_of(module: nn.Module, attribute: str, tensor: Tensor) -> Kind:
    """How a layer's tensor reads."""
    if attribute == "bias":
        return "bias"
    if attribute == "weight":
        if isinstance(module, CONVOLUTIONS):
            return "conv"
        if isinstance(module, TRANSPOSED):
            return "conv_transpose"
        if isinstance(module, nn.Linear):
            return "linear"
        if isinstance(module, NORMS):
            return "norm"
    return "other"


def select_slots(net: nn.Module, select: Select | None = None) -> tuple[list[Slot], list[str]]:
    """The tensors to condition, in the order of the base's `named_parameters`.

    Without `select`: weight and bias of every convolution and linear layer, and scale and shift of every norm layer.
    The families then choose among them. A tensor with several names counts once.

    Args:
        net: the base.
        select: see [`Select`][weightmorph.base.select.Select].

    Returns:
        the slots, and notes about the tensors that the default left out.

    Raises:
        SelectionError: if nothing matches (near names are listed), if a tensor is tied under two names with
            different axis roles, or if a parametrised tensor was asked for by name.
    """
    candidates: list[tuple[Slot, nn.Module, Tensor]] = list(_candidates(net, explicit=select is not None))
    roles = _roles(candidates)
    notes: list[str] = []
    slots: list[Slot] = []
    for slot, module, tensor in candidates:
        if select is None and slot.kind == "other":
            continue
        if select is not None and not _matches(slot, module, select):
            continue
        if isinstance(module, nn.RNNBase):
            raise SelectionError(
                f"layer {slot.layer!r}: a {type(module).__name__} reads its weights from a flat list of its own, so "
                f"{slot.attribute} cannot be replaced for a call; deselect it"
            )
        names = roles[id(tensor)]
        if len({role for _, role in names}) > 1:
            described = ", ".join(f"{name} (as {role[0]})" for name, role in names)
            message = f"one tensor is used in different roles: {described}; it cannot be transformed as both"
            if select is None:
                notes.append(f"left out: {message}")
                continue
            raise SelectionError(f"{message}; deselect it")
        if slot.name == names[0][0]:
            slots.append(slot)
    notes += _parametrised(net, select)
    if isinstance(select, Sequence) and not isinstance(select, str):
        for pattern in select:
            if isinstance(pattern, str) and not any(_matches(slot, m, pattern) for slot, m, _ in candidates):
                _nothing(net, pattern)
    if not slots:
        _nothing(net, select)
    return slots, notes


def described(select: Select | None) -> str:
    """A selection in words, for a file's record.

    Example:
        >>> described(["features.*", nn.Conv2d])
        "'features.*', Conv2d"
    """
    if select is None:
        return "default"
    if isinstance(select, str):
        return repr(select)
    if callable(select):
        return str(getattr(select, "__name__", type(select).__name__))
    return ", ".join(map(described, select))


def _candidates(net: nn.Module, explicit: bool) -> Iterator[tuple[Slot, nn.Module, Tensor]]:
    for layer, module in net.named_modules(remove_duplicate=False):
        for attribute, tensor in module._parameters.items():
            if tensor is None or not tensor.is_floating_point():
                continue
            name = f"{layer}.{attribute}" if layer else attribute
            kind = kind_of(module, attribute, tensor)
            shape = tuple(tensor.shape)
            if parametrize.is_parametrized(module) or layer.rpartition(".")[0].endswith("parametrizations"):
                continue
            yield _slot(name, layer, attribute, kind, shape, module, explicit), module, tensor


def _slot(
    name: str, layer: str, attribute: str, kind: Kind, shape: tuple[int, ...], module: nn.Module, explicit: bool
) -> Slot:
    if kind not in ("conv", "conv_transpose"):
        return Slot(name, layer, attribute, kind, shape, explicit=explicit)
    assert isinstance(module, nn.modules.conv._ConvNd)
    kernel = shape[2:]
    taps = tuple(tuple(d * (j - (k - 1) / 2) for j in range(k)) for k, d in zip(kernel, module.dilation, strict=True))
    # A layer whose padding mode is not zeros pads by itself, by an amount that its kernel size fixes. A forward that
    # the user wrote may do anything with the weight; an example can show that it is harmless.
    plain = any(
        type(module).forward is c.forward and type(module)._conv_forward is c._conv_forward for c in CONVOLUTIONS
    )
    growable = kind == "conv" and module.padding_mode == "zeros" and plain
    return Slot(
        name, layer, attribute, kind, shape, module.groups, kernel, taps, growable=growable, one_sided=growable,
        explicit=explicit,
    )  # fmt: skip


def _roles(candidates: list[tuple[Slot, nn.Module, Tensor]]) -> dict[int, list[tuple[str, tuple[object, ...]]]]:
    """Every tensor's names, each with how the tensor reads there."""
    roles: dict[int, list[tuple[str, tuple[object, ...]]]] = {}
    for slot, _, tensor in candidates:
        roles.setdefault(id(tensor), []).append((slot.name, (slot.kind, slot.groups, slot.kernel)))
    return roles


def _matches(slot: Slot, module: nn.Module, select: Select) -> bool:
    if isinstance(select, str):
        return fnmatch.fnmatchcase(slot.name, select) or fnmatch.fnmatchcase(slot.layer, select)
    if isinstance(select, type):
        return isinstance(module, select)
    if callable(select):
        return bool(select(slot))
    if isinstance(select, Sequence):
        return any(_matches(slot, module, item) for item in select)
    raise SelectionError(
        f"select: expected a pattern, a layer type, a predicate or a list of them, got {type(select).__name__}"
    )


def _parametrised(net: nn.Module, select: Select | None) -> list[str]:
    notes = []
    for layer, module in net.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for attribute in module.parametrizations:
            name = f"{layer}.{attribute}" if layer else attribute
            slot = Slot(name, layer, attribute, "other", ())
            advice = "remove it with torch.nn.utils.parametrize.remove_parametrizations first"
            if select is not None and not callable(select) and _matches(slot, module, select):
                raise SelectionError(f"layer {layer!r}: {attribute} is already parametrised; {advice}")
            notes.append(f"left out: {name} is already parametrised; {advice} to condition it")
    return notes


def _nothing(net: nn.Module, select: Select | None) -> None:
    names = [name for name, _ in net.named_parameters()]
    layers = [name for name, _ in net.named_modules() if name]
    if not names:
        raise SelectionError("the network has no parameters to transform")
    if select is None:
        raise SelectionError(
            "the network has no convolution, linear or norm layer of torch.nn with a weight to transform; name its "
            f"tensors with select=, e.g. select={names[0]!r}"
        )
    hints = near(select, names + layers) if isinstance(select, str) else ""
    listed = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    raise SelectionError(f"select={select!r} matches no tensor{hints}; the network has {listed}")


def read_as_maps(slots: list[Slot], maps: dict[str, Sequence[int]]) -> list[Slot]:
    """Read some `Linear` weights as kernels over flattened maps, by layer name."""
    known = {slot.layer for slot in slots if slot.kind == "linear"}
    for layer in maps:
        if layer not in known:
            raise SelectionError(f"no conditioned Linear is named {layer!r}{near(layer, known)}")
    return [s.as_map(maps[s.layer]) if s.kind == "linear" and s.layer in maps else s for s in slots]


def floating(net: nn.Module) -> torch.dtype:
    """The floating dtype in which θ is encoded: the widest of the network's parameters."""
    dtype = torch.float32
    for parameter in net.parameters():
        if parameter.is_floating_point():
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype
