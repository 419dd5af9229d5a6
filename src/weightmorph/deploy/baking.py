"""Bake many settings of a model: one file for each, and an index that lists them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..base import GEOMETRY
from ..errors import CheckpointError, ExecutionError, ParameterError, ParameterLengthError, UnknownParameterError
from ..io import write_atomically
from ..model import Conditioned
from ..parameters import Value
from ..storage import checksum, digest, listed, pack, save, versions
from .delta import Origin, delta_of
from .export import PlainGraph

__all__ = ["Baked", "Form", "bake_many"]

Form = Literal["weights", "delta", "onnx"]
Setting = dict[str, float | str]
"""θ as plain data for JSON: numbers in the parameters' own units, a category by its name."""

INDEX = "index.json"
FORMAT = 1
"""The index's format number; the policy is that of checkpoints."""

SUFFIX: Mapping[str, str] = {"weights": ".safetensors", "delta": ".safetensors", "onnx": ".onnx"}
NAME = re.compile(r"[A-Za-z0-9_=+,-][A-Za-z0-9_.=+,-]{0,119}")
"""Names that can name a file on every system."""


@dataclass(frozen=True)
class Baked:
    """The files of [`bake_many`][weightmorph.bake_many].

    Attributes:
        index: the JSON file that lists the settings.
        files: by the setting's name.
        written: names of the settings whose files were written now.
        kept: names of the settings whose files were there already, with the right bytes.
    """

    index: Path
    files: Mapping[str, Path]
    written: tuple[str, ...]
    kept: tuple[str, ...]


def bake_many(
    model: Conditioned,
    settings: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    form: Form = "weights",
    example: Any = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Baked:
    """Bake many settings, each to a file of its own, for example one per camera.

    Args:
        model: the conditioned model.
        settings: either names to settings, `{"gate-7": {"tilt": 12.5}, …}`, or columns, `{"tilt": [0, 5, 10]}`, whose
            rows are named after their values: `tilt=5`.
        folder: where to write; created if it does not exist.
        form: what a file holds.

            * `"weights"`: the baked network's `state_dict`, as safetensors; load it with
              `net.load_state_dict(safetensors.torch.load_file(path))`. The index lists layers whose kernels have grown
              with the attributes to set on them: `kernel_size`, `padding`, and where taps were added on one side only,
              `padding_mode` and the widths that it pads by.
            * `"delta"`: the difference to the base ([`Delta`][weightmorph.Delta]).
            * `"onnx"`: an ordinary graph with constant weights, and the setting in its metadata. The graph is traced
              once, and the weights are exchanged.
        example: an input of the network, for `"onnx"`, as for [`export_onnx`][weightmorph.export_onnx].
        overwrite: replace files that another model, another form or another setting of a name has left in the folder.
            Otherwise they are an error.
        progress: called with each setting's name when its file is complete.

    Returns:
        the index, the files, and which were written now and which were kept. Each file, and the index after it, is
        written atomically, so the same call continues an interrupted one: files with the bytes that the index
        lists are kept, all others are written.

    Raises:
        ParameterError: if a setting cannot be used; its name is given, and nothing is written.
        CheckpointError: if the folder holds the settings of another model or form, or a name cannot name a file.
        ExecutionError: if the network cannot be written as ONNX.
        MissingDependencyError: if safetensors, or for ONNX its packages, are not installed.
        OSError: if a file cannot be written.

    Example:
        >>> import tempfile, weightmorph as wm
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     baked = bake_many(model, {"angle": [0, 30, 60]}, folder, form="delta")
        ...     again = bake_many(model, {"angle": [0, 30, 60, 90]}, folder, form="delta")
        >>> baked.written, again.written
        (('angle=0', 'angle=30', 'angle=60'), ('angle=90',))
    """
    if form not in SUFFIX:
        raise CheckpointError(f"form: expected one of {', '.join(map(repr, SUFFIX))}, got {form!r}")
    thetas = _settings(model, settings)
    if form == "onnx" and example is None:
        raise ExecutionError('form="onnx": give an input of the network with example=, to trace it')
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    origin = Origin.of(model)
    source = _source(model, form, origin, example)
    entries = _known_entries(folder, source, thetas, overwrite)
    index = {"format": FORMAT, "form": form, "made_of": source, **origin.data(), "settings": entries}
    write = _writer(model, form, origin, example)
    files = {name: folder / f"{name}{SUFFIX[form]}" for name in thetas}
    written, kept = [], []
    for name, path in files.items():
        entry = entries.get(name)
        if entry is not None and path.exists() and _sha256(path) == entry["sha256"]:
            kept.append(name)
        else:
            theta = thetas[name]
            extra = write(path, theta)
            size, sha256 = path.stat().st_size, _sha256(path)
            entries[name] = {"file": path.name, "theta": theta, "bytes": size, "sha256": sha256, **extra}
            _save_index(folder, index)
            written.append(name)
        if progress is not None:
            progress(name)
    _save_index(folder, index)
    return Baked(folder / INDEX, files, tuple(written), tuple(kept))


def _settings(model: Conditioned, settings: Mapping[str, Any]) -> dict[str, Setting]:
    """Check the settings, and return them by name as plain data."""
    if not isinstance(settings, Mapping) or not settings:
        raise ParameterError("settings: expected names to settings, or parameters to columns of values; got none")
    by_name = all(isinstance(value, Mapping) for value in settings.values())
    checked: dict[str, Setting] = {}
    for name, theta in (settings if by_name else _rows(model, settings)).items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == Path(INDEX).stem:
            raise CheckpointError(
                f"setting {name!r} cannot name a file: expected letters, digits and any of _ . = + , - (not a leading "
                "dot, and not 'index')"
            )
        twin = next((other for other in checked if other.lower() == name.lower()), None)
        if twin is not None:
            raise CheckpointError(f"settings {twin!r} and {name!r} would be one file where case does not count")
        try:
            prepared = model.space.prepare(theta)
            if any(value.dim() for value in prepared.values()):
                raise ParameterLengthError("expected one value per parameter")
        except ParameterError as error:
            raise type(error)(f"setting {name!r}: {error}") from error
        checked[name] = {key: v if isinstance(v := theta[key], str) else float(cast(float, v)) for key in model.space}
    return checked


def _rows(model: Conditioned, columns: Mapping[str, Any]) -> dict[str, dict[str, Value]]:
    """Turn columns of values into settings that are named after their values."""
    unknown = [name for name in columns if name not in model.space]
    if unknown:
        raise UnknownParameterError(
            f"settings: no parameter {unknown[0]!r}; the model is conditioned on {', '.join(model.space)}. Names lead "
            "to mappings, {'gate-7': {…}}, and parameters to columns"
        )
    values = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in columns.items()}
    lengths = {len(v) if isinstance(v, Sequence) and not isinstance(v, str) else None for v in values.values()}
    if len(lengths) > 1 or None in lengths:
        raise ParameterLengthError(f"settings: expected columns of one length, got {dict(columns)!r:.120}")
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    named = {",".join(f"{name}={_text(value)}" for name, value in row.items()): row for row in rows}
    if len(named) < len(rows):
        raise ParameterLengthError(f"settings: {len(rows)} rows hold {len(named)} different settings; give each once")
    return named


def _text(value: Any) -> str:
    """A value for a file's name.

    Example:
        >>> _text(30.0), _text(-0.25), _text("night")
        ('30', '-0.25', 'night')
    """
    return value if isinstance(value, str) else repr(float(value)).removesuffix(".0")


def _source(model: Conditioned, form: str, origin: Origin, example: Any) -> str:
    """A checksum of everything that a folder's files depend on."""
    parts = {
        "form": form,
        "example": repr(pytree.tree_map(_kind, example)) if form == "onnx" else None,
        "transform": model.recipe,
        "parameters": model.space.config(),
        "slots": list(model.slots),
        "state": {name: digest(tensor) for name, tensor in model.state_dict().items()},
        "base": dict(origin.base.tensors),
    }
    return checksum(parts)


def _kind(value: Any) -> Any:
    """The part of an input that tracing sees; the batch axis is left open."""
    return (str(value.dtype), list(value.shape[1:])) if isinstance(value, Tensor) else value


def _known_entries(
    folder: Path, source: str, settings: Mapping[str, Setting], overwrite: bool
) -> dict[str, dict[str, Any]]:
    """The entries of a folder's index that still hold, if the index has the same source."""
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        index = json.loads(path.read_text("utf-8"))
        if index["format"] > FORMAT:
            raise CheckpointError(
                f"{path}: the index has format {index['format']}, and this release of weightmorph "
                f"({versions()['weightmorph']}) reads up to {FORMAT}; install a newer one: pip install -U weightmorph"
            )
        other, entries = index["made_of"], dict(index["settings"])
        thetas = {name: dict(entry["theta"]) for name, entry in entries.items()}
        unchecked = [name for name, entry in entries.items() if not isinstance(entry["sha256"], str)]
        if unchecked:
            raise ValueError(f"no checksum for {listed(unchecked)}")
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if overwrite:
            return {}
        raise CheckpointError(
            f"{path}: not an index of bake_many ({type(error).__name__}: {error}); choose another folder, or say "
            "overwrite=True"
        ) from error
    if other != source:
        if overwrite:
            _remove(folder, entries)
            return {}
        raise CheckpointError(
            f"{folder} holds settings of another model, or of the same one at another time or in another form "
            f"({index.get('form')!r}); choose another folder, or say overwrite=True"
        )
    changed = [name for name, theta in settings.items() if name in thetas and thetas[name] != theta]
    if changed and not overwrite:
        raise CheckpointError(
            f"{folder}: {listed(changed)} had another θ before ({changed[0]}: {thetas[changed[0]]}, now "
            f"{settings[changed[0]]}); choose other names, or say overwrite=True"
        )
    return {name: entry for name, entry in entries.items() if name not in changed}


def _remove(folder: Path, entries: Mapping[str, Any]) -> None:
    """Remove the files of an index that is replaced, if they still have its checksums."""
    for entry in entries.values():
        path = folder / Path(str(entry["file"])).name
        if path.is_file() and _sha256(path) == entry["sha256"]:
            path.unlink()


def _save_index(folder: Path, index: Mapping[str, Any]) -> None:
    write_atomically(folder / INDEX, json.dumps(index, indent=1, ensure_ascii=False).encode())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _writer(model: Conditioned, form: str, origin: Origin, example: Any) -> Callable[[Path, Setting], dict[str, Any]]:
    """A function that writes one setting's file, and returns further entries for the index."""
    if form == "delta":

        def delta(path: Path, theta: Setting) -> dict[str, Any]:
            delta_of(model, theta, origin).save(path)
            return {}

        return delta
    if form == "weights":

        def weights(path: Path, theta: Setting) -> dict[str, Any]:
            net = model.bake(**theta)
            extra = _widened(model, net)
            state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            save(path, pack("weights", origin.data() | {"theta": theta} | extra, state, "saving baked weights"))
            return extra

        return weights
    graphs: dict[str, PlainGraph] = {}

    def onnx(path: Path, theta: Setting) -> dict[str, Any]:
        net = model.bake(**theta)
        state = net.state_dict()
        shapes = repr({name: tuple(tensor.shape) for name, tensor in state.items()})  # they differ where kernels grow
        if shapes not in graphs or not graphs[shapes].fits(state):
            graphs[shapes] = PlainGraph(net, example)
        graphs[shapes].save(state, path, {"baked": theta, "parameters": model.space.config(), "written_by": versions()})
        return {}

    return onnx


def _widened(model: Conditioned, net: nn.Module) -> dict[str, Any]:
    """The geometry of layers whose kernels are wider than the base's."""
    layers = {}
    for slot in model.slots.values():
        if slot.growable and tuple(net.get_parameter(slot.name).shape) != slot.shape:
            geometry = {name: getattr(net.get_submodule(slot.layer), name) for name in GEOMETRY}
            if geometry["padding_mode"] == "zeros":  # the layer does not read the widths then
                del geometry["padding_mode"], geometry["_reversed_padding_repeated_twice"]
            layers[slot.layer] = {n: v if isinstance(v, str) else list(v) for n, v in geometry.items()}
    return {"widened": layers} if layers else {}
