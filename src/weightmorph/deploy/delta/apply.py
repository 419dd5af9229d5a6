"""Put a delta into a plain network in place, and take it out again."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from ...base import GEOMETRY, set_kernel_geometry
from ...errors import BaseError, CheckpointError
from ...model import Conditioned
from ...slots import Grow, Slot
from ...storage import Fingerprint, listed
from .delta import Delta

__all__ = ["Applied", "apply_delta"]

Weight = tuple[nn.Parameter, Grow]
"""One setting's parameter, and the taps by which its kernel has grown."""


def apply_delta(net: nn.Module, delta: Delta, *, verify: bool = True) -> Applied:
    r"""Turn a plain network into one setting's in place, for a device that is reconfigured while it runs.

    Each parameter that the delta changes is replaced by another one, $W(\theta) = W + \Delta(W)$. The base's own
    parameters are neither written nor copied: a model that was conditioned on this network is not touched, and taking
    the delta out puts back the very objects. Every setting starts from the base's tensors, so nothing drifts however
    often it is switched.

    Where the setting's kernels are wider than the base's (`Warp` adds taps to strided layers), the layer's
    `kernel_size` and `padding` are widened with them, and restored.

    Args:
        net: the base, as it was when the model was made. Tied tensors stay tied; mode, hooks and flags stay.
        delta: from [`Delta.of`][weightmorph.Delta] or [`Delta.load`][weightmorph.Delta.load].
        verify: compare the network's bytes with the delta's fingerprint, once; switching does not do so again. False
            compares names, types and shapes alone, for a network that is known to be the base.

    Returns:
        a handle. Call it, or leave it as a context, to take the delta out; `switch(other)` goes to another setting.

    Raises:
        BaseError: if the network is not the delta's base (both fingerprints and the tensors are named), or has a delta
            in it already.

    Note:
        A call of the network in another thread may see some layers before the change and some after.

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


class _ParameterSite:
    """A parameter of the base, and every place where it stands in the network: a tied one has several."""

    def __init__(self, net: nn.Module, slot: Slot) -> None:
        self.slot = slot
        self.original = net.get_parameter(slot.name)
        geometry = GEOMETRY if slot.growable else ()
        self.places = [
            (layer, attribute, {k: vars(layer)[k] for k in geometry if k in vars(layer)})
            for layer in net.modules()
            for attribute, value in layer._parameters.items()
            if value is self.original
        ]
        self.current = self.original
        self.original_stamp = self.current_stamp = _stamp(self.original)

    def put(self, weight: Weight | None) -> None:
        """Put W(θ) into every place, or the base's own parameter for None."""
        parameter, grow = (self.original, ()) if weight is None else weight
        for layer, attribute, geometry in self.places:
            layer._parameters[attribute] = parameter
            vars(layer).update(geometry)  # an earlier setting may have widened it
            if geometry and grow:
                set_kernel_geometry(layer, self.slot, grow)
        self.current, self.current_stamp = parameter, _stamp(parameter)

    @property
    def touched(self) -> bool:
        """Whether anybody else has replaced or written this parameter or the base's."""
        if _stamp(self.current) != self.current_stamp or _stamp(self.original) != self.original_stamp:
            return True
        return any(layer._parameters.get(attribute) is not self.current for layer, attribute, _ in self.places)


def _stamp(parameter: nn.Parameter) -> tuple[int, int]:
    """The address of a parameter's numbers, and how often they were written."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


class Applied:
    """A network that holds one setting, from [`apply_delta`][weightmorph.apply_delta]. A call takes the setting out.

    Attributes:
        net: the network.
        delta: the setting in the network, or None.

    Example:
        >>> import weightmorph as wm
        >>> net = nn.Linear(4, 2)
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Scale())
        >>> with apply_delta(net, wm.Delta.of(model, angle=10)) as applied:
        ...     applied.delta
        Delta(angle=10.0: 0 tensors of Linear, 0 bytes)
        >>> applied.delta is None
        True
    """

    def __init__(self, net: nn.Module, base: Fingerprint) -> None:
        self.delta: Delta | None = None
        self.net, self._base = net, base
        self._sites: dict[str, _ParameterSite] = {}
        self._prepared: dict[int, tuple[Delta, dict[str, Weight]]] = {}

    def prepare(self, *deltas: Delta) -> None:
        """Make the weights of settings now and keep them, so that switching to one takes microseconds.

        Each setting takes as much memory as the tensors that it changes; `forget` frees it.
        """
        for delta in deltas:
            self._prepared[id(delta)] = delta, self._weights(delta)

    def forget(self) -> None:
        """Drop the weights that `prepare` made. The setting in the network stays."""
        self._prepared.clear()

    def switch(self, delta: Delta) -> None:
        """Go to another setting of the same base, from the base's own tensors.

        Raises:
            BaseError: if the delta is of another base, or the network was written to meanwhile.
        """
        prepared = self._prepared.get(id(delta))
        weights = prepared[1] if prepared is not None else self._weights(delta)
        self._refuse_touched()
        try:
            for name, site in self._sites.items():
                if name in weights or site.current is not site.original:
                    site.put(weights.get(name))
        except BaseException:  # an interrupt too, because a network between two settings is of no use
            self._restore()
            raise
        self.delta = delta

    def revert(self) -> None:
        """Put back the base's own tensors. `switch` may follow.

        Raises:
            BaseError: if the network was moved, cast, trained or loaded into meanwhile; it is left as it is.
        """
        self._refuse_touched()
        self._restore()

    def _restore(self) -> None:
        for site in self._sites.values():
            site.put(None)
        self.delta = None

    def __call__(self) -> None:
        self.revert()

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.revert()

    def _weights(self, delta: Delta) -> dict[str, Weight]:
        """A setting's parameters, made from the base's tensors."""
        if delta.origin.base is not self._base and delta.origin.base != self._base:
            raise BaseError(
                f"the delta is of another base: expected fingerprint {self._base}, got {delta.origin.base}; a network "
                "can be switched between deltas of one model's base"
            )
        weights = {}
        for name, change in delta.changes.items():
            site = self._sites.get(name) or self._sites.setdefault(name, _ParameterSite(self.net, change.slot))
            base = site.original
            try:
                with torch.no_grad():
                    expression = change.expression(base.detach())
                    weight, grow = expression.dense(), expression.grow
                owned = {t.data_ptr() for t in (base, *change.tensors().values())}
                weight = weight.clone() if weight.data_ptr() in owned else weight  # a network must not write these
                fits = _fits(change.slot, weight, base, grow)
            except Exception as error:  # torch raises many kinds for pieces that do not belong together
                raise CheckpointError(f"the delta holds no weight for {name}: {error}") from error
            if not fits:
                raise CheckpointError(
                    f"the delta holds no weight for {name}: it makes {tuple(weight.shape)} of {weight.dtype} where "
                    f"{tuple(base.shape)} of {base.dtype} stood; its file was edited"
                )
            weights[name] = nn.Parameter(weight, requires_grad=base.requires_grad), grow
        return weights

    def _refuse_touched(self) -> None:
        touched = [name for name, site in self._sites.items() if site.touched]
        if touched:
            raise BaseError(
                f"the network was moved, cast, trained or loaded into since the delta was applied: {listed(touched)} "
                "are not what was put there. It is left as it is. Call revert() before moving, casting or training, "
                "and apply the delta again afterwards"
            )


def _fits(slot: Slot, weight: Tensor, base: Tensor, grow: Grow) -> bool:
    """Whether a weight has the base's type, and its shape or that with a grown kernel where it may grow."""
    expected = (*base.shape[: base.dim() - slot.spatial], *slot.grown(grow)) if grow else tuple(base.shape)
    invalid = any(n < 0 for side in grow for n in side) or (bool(grow) and not slot.growable)
    return weight.dtype == base.dtype and tuple(weight.shape) == expected and not invalid


def _refuse_another(net: nn.Module, delta: Delta, verify: bool) -> None:
    """Compare names and shapes of the changed tensors, and the bytes of all with `verify`."""
    origin, name = delta.origin, type(net).__name__
    if verify:
        advice = (
            "give the network that the model was made for. If another delta is in it, take that out first (call what "
            "apply_delta gave), or go on from there: applied.switch(delta)"
        )
        origin.base.expect(Fingerprint.of_network(net), "the delta", (origin.network, name), advice)
    tensors: Mapping[str, nn.Parameter] = dict(net.named_parameters(remove_duplicate=False))
    wrong = []
    for key, change in delta.changes.items():
        found = tensors.get(key)
        if found is None or tuple(found.shape) != change.slot.shape:
            shape = "missing" if found is None else tuple(found.shape)
            wrong.append(f"{key} ({shape}, expected {change.slot.shape})")
    if wrong:
        raise BaseError(f"the delta does not fit this {name}: {listed(wrong)}. It was made for a {origin.network}")
