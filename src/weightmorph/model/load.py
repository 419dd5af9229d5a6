"""Loading a saved transform onto its base."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .. import storage
from ..base import View
from ..errors import BaseError, CheckpointError, TransformError
from ..estimator import Estimator
from ..storage import Fingerprint, listed
from ..transforms import Custom, TransformTree, WeightTransform
from ..transforms.registry import describe, foreign, remake, same
from .conditioned import Conditioned
from .spec import ModelSpec, read

__all__ = ["load", "peek"]


def load(path: str | os.PathLike[str], net: nn.Module, *, transform: nn.Module | None = None) -> Conditioned:
    """Put a transform that [`Conditioned.save`][weightmorph.Conditioned.save] wrote onto its base again.

    A file holds tensors and JSON: nothing in it is executed. It does not hold the base. `net` must be, bit for bit, the
    network that the transform was trained for.

    Args:
        path: the file.
        net: the base; as with `condition`, neither modified nor run in train mode.
        transform: the transform as it was given to `condition`. It is needed where it holds a module or a class of your
            own (`PerFilter(module)`, `Custom`), because code is not in the file. The module gets the saved tensors.

    Returns:
        the model, as it was when it was saved.

    Raises:
        BaseError: if `net` is another base; both fingerprints are named, and the tensors that differ.
        CheckpointError: if the file is damaged, incomplete or of a newer format, or if `transform` is missing or is
            another one than was saved.
        MissingDependencyError: if safetensors is not installed.
        OSError: if the file is not there.

    Example:
        >>> import tempfile, weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2) + wm.Scale())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/model.safetensors")
        ...     again = load(f"{folder}/model.safetensors", net)
        >>> x = torch.randn(2, 1, 8, 8)
        >>> torch.equal(again(x, angle=30.0), model(x, angle=30.0))
        True
    """
    spec, tensors = read(path)
    if not isinstance(net, nn.Module) or isinstance(net, Conditioned):
        raise BaseError(f"{path}: expected the plain network to load onto, got {type(net).__name__}")
    view = View(net)
    advice = "load it onto the network that it was trained for, in the state in which it was trained"
    networks = (spec.network, type(net).__name__)
    spec.fingerprint.expect(Fingerprint.of(view.tensors()), str(path), networks, advice)
    _refuse_other_slots(path, spec, view)
    return _build(path, spec, _family(path, spec, transform), view, tensors)


def peek(path: str | os.PathLike[str]) -> ModelSpec:
    """What a file says of itself, without a network: parameters, transform, slots, metrics, the base's fingerprint.

    Raises:
        CheckpointError: if the file is damaged, incomplete, or of a newer format.
        MissingDependencyError: if safetensors is not installed.
        OSError: if the file is not there.
    """
    return read(path)[0]


def _build(
    path: str | os.PathLike[str], spec: ModelSpec, family: WeightTransform, view: View, tensors: Mapping[str, Tensor]
) -> Conditioned:
    """The model, with the file's tensors in it."""
    # The transform is initialised only to be overwritten: that must not move the user's random numbers.
    with torch.random.fork_rng(devices=[]):
        try:
            # First without memory: a transform that does not belong to the tensors may ask for any amount of it.
            with torch.device("meta"):
                expected = _shapes(TransformTree(family, list(spec.slots.values()), spec.space), "transform.")
                expected |= _estimator_shapes(path, spec)
            _refuse_other_shapes(path, family, expected, tensors)
            model = Conditioned(view, spec, family)
        except CheckpointError:
            raise
        except Exception as error:  # whatever a family says to options that no release has written
            raise CheckpointError(f"{path}: the transform cannot be made again: {_words(error)}") from error
    # Once more, because a module of the user's own keeps its tensors on whatever device it is built.
    _refuse_other_shapes(path, family, _shapes(model), tensors)
    model.load_state_dict(dict(tensors))
    return model


def _estimator_shapes(path: str | os.PathLike[str], spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The tensors of the head that estimates θ, if the file has one."""
    if spec.estimator is None:
        return {}
    try:
        return _shapes(Estimator.from_config(spec.space, spec.estimator), "estimator.")
    except Exception as error:  # whatever a head says to options that no release has written
        raise CheckpointError(f"{path}: the estimator of θ cannot be made again: {_words(error)}") from error


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, TransformError | KeyError) else f"{type(error).__name__}: {error}"


def _shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(value.shape) for name, value in module.state_dict().items()}


def _refuse_other_shapes(
    path: str | os.PathLike[str],
    family: WeightTransform,
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
) -> None:
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected == given:
        return
    odd = [
        f"{name} ({given.get(name, 'missing')}, expected {expected.get(name, 'none')})"
        for name in dict.fromkeys((*expected, *given))
        if expected.get(name) != given.get(name)
    ]
    raise CheckpointError(
        f"{path}: the tensors do not fit the transform {' + '.join(map(repr, family.parts))}: {listed(odd)}"
    )


def _refuse_other_slots(path: str | os.PathLike[str], spec: ModelSpec, view: View) -> None:
    """A slot names a tensor of the base, of that shape; only a file that was edited by hand says otherwise."""
    tensors = view.tensors()
    for slot in spec.slots.values():
        name = f"{slot.layer}.{slot.attribute}" if slot.layer else slot.attribute
        tensor = tensors.get(slot.name)
        if name != slot.name or tensor is None or tuple(tensor.shape) != slot.shape:
            raise CheckpointError(f"{path}: the base has no tensor {slot.name} of shape {slot.shape}, as a slot says")


def _family(path: str | os.PathLike[str], spec: ModelSpec, transform: nn.Module | None) -> WeightTransform:
    """The user's transform, which must be the one that was saved, or one made from the spec."""
    if transform is None:
        return _remade(path, spec)
    if not isinstance(transform, nn.Module):
        raise CheckpointError(f"transform: expected a weight transform or a module, got {type(transform).__name__}")
    family = transform if isinstance(transform, WeightTransform) else Custom(transform)
    try:
        agree = same(describe(family), spec.recipe)
    except (KeyError, TypeError, AttributeError):
        agree = False
    if not agree:
        raise CheckpointError(
            f"{path}: another transform than was saved: expected {spec.recipe}, got {describe(family)}"
        )
    return family


def _remade(path: str | os.PathLike[str], spec: ModelSpec) -> WeightTransform:
    try:
        names = foreign(spec.recipe)
        if names:
            raise CheckpointError(
                f"{path}: the transform holds code of your own, which is not in the file: {', '.join(names)}. Give "
                "the recipe as it was: load(path, net, transform=…)"
            )
        return remake(spec.recipe)
    except CheckpointError:
        raise
    except Exception as error:  # whatever becomes of a recipe that no release has written
        raise CheckpointError(
            f"{path}: the transform cannot be made again: {_words(error)}; it was saved with weightmorph "
            f"{spec.written_by.get('weightmorph', 'unknown')}, this is {storage.versions()['weightmorph']}"
        ) from error
