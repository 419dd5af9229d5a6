"""A delta put into a plain network, in place, and taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from torch import Tensor, nn

from ...base import GEOMETRY, set_kernel_geometry
from ...errors import BaseError, CheckpointError
from ...model import Conditioned
from ...slots import Grow, Slot
from ...storage import Fingerprint, listed
from .delta import Delta

__all__ = ["Applied", "apply_delta"]

Made = tuple[nn.Parameter, Grow]
"""A setting's parameter, and the taps by which its kernel has grown."""


def apply_delta(net: nn.Module, delta: Delta, *, verify: bool = True) -> Applied:
    r"""Turn a plain network into one setting's, in place: the device that is reconfigured while it runs.

    Each parameter that the delta changes gives its place to another, $W(\theta) = W + \Delta(W)$. The base's own are
    neither written nor copied, so that a model that was conditioned on this network is not touched, and taking the
    delta out again puts back the very objects. Another setting always starts from the base's tensors, so nothing drifts
    however often it is switched.

    Where the setting's kernels are wider than the base's (`Warp` adds taps to strided layers), `kernel_size` and
    `padding` of the layer are widened with them, and restored.

    Args:
        net: the base, as it was when the model was made; tied tensors follow. Its mode, hooks and flags stay.
        delta: from [`Delta.of`][weightmorph.Delta] or [`Delta.load`][weightmorph.Delta.load].
        verify: compare the network's bytes with the delta's fingerprint, once; switching does not do so again. False
            looks at names, types and shapes alone, and is for a network that is known to be the base.

    Returns:
        what takes it out again: call it, or use it as a context. `switch(other)` goes to another setting.

    Raises:
        BaseError: if the network is not the delta's base (both fingerprints and the tensors are named), or has a delta
            in it already.

    Note:
        A call of the network that runs in another thread meanwhile may see some layers before and some after.

    Example:
        >>> import torch, weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Scale())
        >>> _ = [nn.init.normal_(p) for p in model.parameters()]
        >>> x, day, night = torch.randn(2, 1, 8, 8), wm.Delta.of(model, angle=10), wm.Delta.of(model, angle=50)
        >>> before = net(x)
        >>> applied = apply_delta(net, day)
        >>> torch.equal(net(x), model.bake(angle=10)(x))
        True
        >>> applied.switch(night)
        >>> torch.equal(net(x), model.bake(angle=50)(x))
        True
        >>> applied()
        >>> torch.equal(net(x), before)
        True
    """
    if isinstance(net, Conditioned):
        raise BaseError(
            "apply_delta: expected the plain network, got a conditioned one; model.at(…) is that one at a setting"
        )
    if not isinstance(net, nn.Module):
        raise BaseError(f"apply_delta: expected the network as an nn.Module, got {type(net).__name__}")
    _refuse_another(net, delta, verify)
    applied = Applied(net, delta.origin.base)
    applied.switch(delta)
    return applied


class _Home:
    """A parameter of the base, and everywhere that it stands in the network: a tied one in several places."""

    def __init__(self, net: nn.Module, slot: Slot) -> None:
        self.slot = slot
        self.original = net.get_parameter(slot.name)
        told = GEOMETRY if slot.growable else ()
        self.places = [
            (layer, attribute, {k: vars(layer)[k] for k in told if k in vars(layer)})
            for layer in net.modules()
            for attribute, value in layer._parameters.items()
            if value is self.original
        ]
        self.here, self.stamp, self.first = self.original, _stamp(self.original), _stamp(self.original)

    def put(self, made: Made | None) -> None:
        """W(θ) in the base's place, or, for None, the base's own parameter."""
        new, grow = (self.original, ()) if made is None else made
        for layer, attribute, own in self.places:
            layer._parameters[attribute] = new
            vars(layer).update(own)  # an earlier setting may have widened it
            if own and grow:
                set_kernel_geometry(layer, self.slot, grow)
        self.here, self.stamp = new, _stamp(new)

    @property
    def touched(self) -> bool:
        """Has somebody else put another parameter there, or written into this one or into the base's?"""
        if _stamp(self.here) != self.stamp or _stamp(self.original) != self.first:
            return True
        return any(layer._parameters.get(attribute) is not self.here for layer, attribute, _ in self.places)


def _stamp(parameter: nn.Parameter) -> tuple[int, int]:
    """Where a parameter's numbers lie, and how often they were written."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


class Applied:
    """A network with a setting in it. Made by [`apply_delta`][weightmorph.apply_delta]; called, it takes it out.

    Attributes:
        net: the network.
        delta: the setting that is in, or None.
    """

    def __init__(self, net: nn.Module, base: Fingerprint) -> None:
        self.delta: Delta | None = None
        self.net, self._base = net, base
        self._homes: dict[str, _Home] = {}
        self._prepared: dict[int, tuple[Delta, dict[str, Made]]] = {}

    def prepare(self, *deltas: Delta) -> None:
        """Make settings' weights now, and keep them: switching to one is then a matter of microseconds.

        Each takes as much memory as the tensors that it changes; `forget` gives it back.
        """
        for delta in deltas:
            self._prepared[id(delta)] = delta, self._made(delta)

    def forget(self) -> None:
        """Drop the weights that `prepare` made. The setting that is in stays."""
        self._prepared.clear()

    def switch(self, delta: Delta) -> None:
        """Go to another setting of the same base, from the base's own tensors.

        Raises:
            BaseError: if the delta is of another base, or the network was written to meanwhile.
        """
        prepared = self._prepared.get(id(delta))
        weights = prepared[1] if prepared is not None else self._made(delta)
        self._refuse_touched()
        try:
            for name, home in self._homes.items():
                if name in weights or home.here is not home.original:
                    home.put(weights.get(name))
        except BaseException:  # an interrupt as well: a network between two settings is none
            self._restore()
            raise
        self.delta = delta

    def revert(self) -> None:
        """The base as it was, bit for bit: the very tensors. `switch` may follow.

        Raises:
            BaseError: if the network was moved, cast, trained or loaded into meanwhile: it is left as it is.
        """
        self._refuse_touched()
        self._restore()

    def _restore(self) -> None:
        for home in self._homes.values():
            home.put(None)
        self.delta = None

    def __call__(self) -> None:
        self.revert()

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.revert()

    def _made(self, delta: Delta) -> dict[str, Made]:
        """A setting's parameters, from the base's tensors."""
        if delta.origin.base is not self._base and delta.origin.base != self._base:
            raise BaseError(
                f"the delta is of another base: expected fingerprint {self._base}, got {delta.origin.base}; a network "
                "can be switched between deltas of one model's base"
            )
        made = {}
        for name, change in delta.changes.items():
            home = self._homes.get(name) or self._homes.setdefault(name, _Home(self.net, change.slot))
            try:
                weight, grow = change.weight(home.original.detach()), change.grow
                fits = _fits(change.slot, weight, home.original, grow)
            except Exception as error:  # whatever torch says to pieces that do not belong together
                raise CheckpointError(f"the delta holds no weight for {name}: {error}") from error
            if not fits:
                raise CheckpointError(
                    f"the delta holds no weight for {name}: it makes {tuple(weight.shape)} of {weight.dtype} where "
                    f"{tuple(home.original.shape)} of {home.original.dtype} stood; its file was edited"
                )
            made[name] = nn.Parameter(weight, requires_grad=home.original.requires_grad), grow
        return made

    def _refuse_touched(self) -> None:
        touched = [name for name, home in self._homes.items() if home.touched]
        if touched:
            raise BaseError(
                f"the network was moved, cast, trained or loaded into since the delta was applied: {listed(touched)} "
                "are not what was put there. It is left as it is. Take a delta out before such a thing, and apply it "
                "again afterwards"
            )


def _fits(slot: Slot, weight: Tensor, base: Tensor, grow: Grow) -> bool:
    """Of the base's type and shape, or with a kernel that has grown where it may."""
    wide = (*base.shape[: base.dim() - slot.spatial], *slot.grown(grow)) if grow else tuple(base.shape)
    odd = any(n < 0 for more in grow for n in more) or (bool(grow) and not slot.growable)
    return weight.dtype == base.dtype and tuple(weight.shape) == wide and not odd


def _refuse_another(net: nn.Module, delta: Delta, verify: bool) -> None:
    """Names, types and shapes at the least; the bytes as well, if asked to."""
    origin, name = delta.origin, type(net).__name__
    if verify:
        advice = (
            "give the network that the model was made for. If another delta is in it, take that out first (call what "
            "apply_delta gave), or go on from there: applied.switch(delta)"
        )
        origin.base.expect(Fingerprint.of_network(net), "the delta", (origin.network, name), advice)
    tensors: Mapping[str, nn.Parameter] = dict(net.named_parameters(remove_duplicate=False))
    odd = []
    for key, change in delta.changes.items():
        found = tensors.get(key)
        if found is None or tuple(found.shape) != change.slot.shape:
            shape = "missing" if found is None else tuple(found.shape)
            odd.append(f"{key} ({shape}, expected {change.slot.shape})")
    if odd:
        raise BaseError(f"the delta does not fit this {name}: {listed(odd)}. It was made for a {origin.network}")
