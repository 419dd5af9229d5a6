"""Loading a saved transform onto its base."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .. import storage
from ..base.inspect import Trace
from ..base.view import View
from ..errors import BaseError, CheckpointError, TransformError, WeightmorphError
from ..estimator import Estimator
from ..storage import Fingerprint, Record, listed
from ..transforms import Custom, TransformTree, WeightTransform
from ..transforms.registry import describe, foreign, remake, same
from . import Conditioned

__all__ = ["load", "peek"]


def load(path: str | os.PathLike[str], net: nn.Module, *, transform: nn.Module | None = None) -> Conditioned:
    """Put a transform that [`Conditioned.save`][weightmorph.Conditioned.save] wrote onto its base again.

    A file holds tensors and JSON: nothing in it is executed. It does not hold the base, which must be, bit for bit, the
    one that the transform was trained for.

    Args:
        path: the file.
        net: the base; as with `condition`, neither modified nor run in train mode.
        transform: the recipe, needed where it holds a module or a class of your own (`PerFilter(module)`, `Custom`),
            for code is not in the file. The module gets the saved tensors.

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
    record, tensors = storage.read(path)
    if not isinstance(net, nn.Module) or isinstance(net, Conditioned):
        raise BaseError(f"{path}: expected the plain network to load onto, got {type(net).__name__}")
    view = View(net)
    found = Fingerprint.of(view.tensors())
    advice = "load it onto the network that it was trained for, in the state in which it was trained"
    record.base.expect(found, str(path), (record.network, type(net).__name__), advice)
    _refuse_other_slots(path, record, view)
    recipe = _recipe(path, record, transform)
    model = _made(path, record, recipe, view, tensors)
    model.memory_limit, model.selected = record.memory_limit, record.selected
    # Measured elsewhere, perhaps by another release: a plan that does not fit is no reason not to load the model.
    with contextlib.suppress(WeightmorphError, AttributeError, LookupError, TypeError, ValueError):
        model.plan = None if record.plan is None else dict(record.plan)
    return model


def _made(
    path: str | os.PathLike[str], record: Record, recipe: WeightTransform, view: View, tensors: Mapping[str, Tensor]
) -> Conditioned:
    """The model, with the file's tensors in it."""
    seen = None if record.positions is None else Trace(positions=dict(record.positions))
    # The transform is initialised only to be overwritten: that must not move the user's random numbers.
    with torch.random.fork_rng(devices=[]):
        try:
            # First without memory: a recipe that does not belong to the tensors may ask for any amount of it.
            with torch.device("meta"):
                wanted = _shapes(TransformTree(recipe, record.slots, record.space), "transform.")
                head = _estimator(path, record)
                wanted |= {} if head is None else _shapes(head, "estimator.")
            _refuse_other_shapes(path, recipe, wanted, tensors)
            model = Conditioned(view, record.space, recipe, record.slots, record.dtype, seen, record.folded)
            head = _estimator(path, record)
            model.estimator = None if head is None else head.to(device=view.device, dtype=record.dtype)
        except CheckpointError:
            raise
        except Exception as error:  # whatever a family says to options that no release has written
            raise CheckpointError(f"{path}: the transform cannot be made again: {_told(error)}") from error
    # Once more, for a module of the user's own keeps its tensors, wherever it is made.
    _refuse_other_shapes(path, recipe, _shapes(model), tensors)
    model.load_state_dict(dict(tensors))
    return model


def _estimator(path: str | os.PathLike[str], record: Record) -> Estimator | None:
    """The head that estimates θ, untrained, if the file has one."""
    if record.estimator is None:
        return None
    try:
        return Estimator.from_config(record.space, record.estimator)
    except Exception as error:  # whatever a head says to options that no release has written
        raise CheckpointError(f"{path}: the estimator of θ cannot be made again: {_told(error)}") from error


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, TransformError | KeyError) else f"{type(error).__name__}: {error}"


def _shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(value.shape) for name, value in module.state_dict().items()}


def _refuse_other_shapes(
    path: str | os.PathLike[str],
    recipe: WeightTransform,
    wanted: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
) -> None:
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted == given:
        return
    odd = [
        f"{name} ({given.get(name, 'missing')}, expected {wanted.get(name, 'none')})"
        for name in dict.fromkeys((*wanted, *given))
        if wanted.get(name) != given.get(name)
    ]
    raise CheckpointError(
        f"{path}: the tensors do not fit the transform {' + '.join(map(repr, recipe.parts))}: {listed(odd)}"
    )


def peek(path: str | os.PathLike[str]) -> Record:
    """What a file says of itself, without a network: parameters, transform, slots, metrics and the base's fingerprint.

    Raises:
        CheckpointError: if the file is damaged, incomplete, or of a newer format.
    """
    return storage.read(path)[0]


def _refuse_other_slots(path: str | os.PathLike[str], record: Record, view: View) -> None:
    """A slot names a tensor of the base, of that shape; only a file that was edited by hand says otherwise."""
    tensors = view.tensors()
    for slot in record.slots:
        name = f"{slot.layer}.{slot.attribute}" if slot.layer else slot.attribute
        tensor = tensors.get(slot.name)
        if name != slot.name or tensor is None or tuple(tensor.shape) != slot.shape:
            raise CheckpointError(f"{path}: the base has no tensor {slot.name} of shape {slot.shape}, as a slot says")


def _recipe(path: str | os.PathLike[str], record: Record, transform: nn.Module | None) -> WeightTransform:
    """The user's recipe, which must be the one that was saved, or one made from the record."""
    if transform is None:
        try:
            own = foreign(record.recipe)
            if own:
                raise CheckpointError(
                    f"{path}: the transform holds code of your own, which is not in the file: {', '.join(own)}. Give "
                    "the recipe as it was: load(path, net, transform=…)"
                )
            return remake(record.recipe)
        except CheckpointError:
            raise
        except Exception as error:  # whatever becomes of a recipe that no release has written
            raise CheckpointError(
                f"{path}: the transform cannot be made again: {_told(error)}; it was saved with weightmorph "
                f"{record.written_by.get('weightmorph', 'unknown')}, this is {storage.versions()['weightmorph']}"
            ) from error
    if not isinstance(transform, nn.Module):
        raise CheckpointError(f"transform: expected a weight transform or a module, got {type(transform).__name__}")
    recipe = transform if isinstance(transform, WeightTransform) else Custom(transform)
    try:
        agree = same(describe(recipe), record.recipe)
    except (KeyError, TypeError, AttributeError):
        agree = False
    if not agree:
        raise CheckpointError(
            f"{path}: another transform than was saved: expected {record.recipe}, got {describe(recipe)}"
        )
    return recipe
