"""The file format: a transform's tensors, what they belong to, and nothing that runs.

One safetensors file. Its tensors are the transform's `state_dict`, each stored once however many names it has; its
metadata is a JSON text, the [`Record`][weightmorph.storage.Record], with a checksum of its own and one per tensor.
The base is not in it: a [`Fingerprint`][weightmorph.storage.Fingerprint] says which one it must be.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import BaseError, CheckpointError, ParameterError, require
from .parameters import ParameterSpace
from .slots import Slot
from .transforms.registry import Config, plain

__all__ = ["FORMAT", "Fingerprint", "Record", "listed", "read", "replaced", "versions", "write"]

FORMAT = 1
"""Raised when an older release could misread what a newer one writes."""

KEY = "weightmorph"
"""Where in the file's metadata the header is: one entry, for safetensors shuffles several, and equal models should give
equal files."""


def digest(tensor: Tensor) -> str:
    """Type, shape and SHA-256 of a tensor's bytes.

    Example:
        >>> digest(torch.zeros(2, 3))
        'float32 (2, 3) 9d908ecfb6b256def8b49a7c504e6c889c4b0e41fe6ce3e01863dd7b61a20aa0'
    """
    flat = tensor.detach().to("cpu").contiguous().flatten()
    content = hashlib.sha256(flat.view(torch.uint8).numpy().data)
    return f"{_name(tensor.dtype)} {tuple(tensor.shape)} {content.hexdigest()}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Fingerprint:
    """Which base: the [`digest`][weightmorph.storage.digest] of every tensor by name.

    A tied tensor reads `"is …"`. A buffer that the base itself writes into reads `"changes"` and agrees with any value.
    """

    tensors: Mapping[str, str]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], changing: Collection[str] = ()) -> Fingerprint:
        """Read off a network's parameters and buffers, of which some are known to change.

        Raises:
            BaseError: for a tensor without content (on the meta device).
        """
        first: dict[int, str] = {}
        found = {}
        for name, tensor in tensors.items():
            if name in changing:
                found[name] = "changes"
                continue
            if tensor.is_meta:
                raise BaseError(f"{name} is on the meta device and holds no values; load the network's weights first")
            known = first.setdefault(id(tensor), name)
            found[name] = digest(tensor) if known == name else f"is {known}"
        return cls(found)

    def __str__(self) -> str:
        """The whole in 16 hexadecimal digits."""
        lines = "\n".join(f"{name} {value}" for name, value in sorted(self.tensors.items()))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    def differences(self, other: Fingerprint) -> list[str]:
        """Where another network differs, tensor by tensor, in words."""
        words = []
        for name in dict.fromkeys((*self.tensors, *other.tensors)):
            mine, theirs = self.tensors.get(name), other.tensors.get(name)
            if theirs is None:
                words.append(f"{name} (missing)")
            elif mine is None:
                words.append(f"{name} (not expected)")
            elif "changes" in (mine, theirs):
                continue
            elif _kind(mine) != _kind(theirs):
                words.append(f"{name} ({_kind(theirs)}, expected {_kind(mine)})")
            elif mine != theirs:
                words.append(f"{name} (other values)")
        return words

    def recast(self, other: Fingerprint) -> str | None:
        """The dtype to which another network must be cast to become this one, if that is all that may differ."""
        cast = None
        if list(self.tensors) != list(other.tensors):
            return None
        for mine, theirs in zip(self.tensors.values(), other.tensors.values(), strict=True):
            before, after = mine.partition(" "), theirs.partition(" ")
            if "changes" in (mine, theirs):
                continue
            if before[0] != after[0] and _kind(before[2]) == _kind(after[2]):
                cast = before[0]
            elif mine != theirs:
                return None
        return cast


def _kind(value: str) -> str:
    """A digest without the bytes: type and shape, or what a tensor is tied to."""
    return f"tied to {value[3:]}" if value.startswith("is ") else value.rpartition(" ")[0]


@dataclass(frozen=True)
class Record:
    """Everything of a model but its tensors and its base.

    Attributes:
        space: the parameters.
        recipe: as [`describe`][weightmorph.transforms.registry.describe] gives it.
        slots: the conditioned tensors, with the taps and maps that an example showed.
        base: which network.
        network: its class's name, for people.
        selected: how the tensors were selected, for people.
        dtype: in which the transform computes.
        memory_limit: of the model.
        positions: output positions by slot, if an example was traced.
        folded: layers that move the batch axis, if an example was traced.
        metrics: whatever the user wants to keep with the model.
        written_by: the versions of the libraries that wrote the file.
    """

    space: ParameterSpace
    recipe: Config
    slots: tuple[Slot, ...]
    base: Fingerprint
    network: str
    selected: str
    dtype: torch.dtype
    memory_limit: int
    positions: Mapping[str, int] | None = None
    folded: tuple[str, ...] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    written_by: Mapping[str, str] = field(default_factory=lambda: versions())

    def as_data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "written_by": dict(self.written_by),
            "parameters": self.space.config(),
            "transform": self.recipe,
            "selected": self.selected,
            "slots": [dataclasses.asdict(slot) for slot in self.slots],
            "positions": self.positions,
            "folded": self.folded,
            "dtype": _name(self.dtype),
            "memory_limit": self.memory_limit,
            "metrics": dict(self.metrics),
            "base": {"network": self.network, "fingerprint": str(self.base), "tensors": dict(self.base.tensors)},
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Record:
        """The way back.

        Raises:
            KeyError, TypeError, ValueError: for data that are not a record.
        """
        dtype = getattr(torch, data["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{data['dtype']!r} is no dtype")
        return cls(
            space=ParameterSpace.from_config(data["parameters"]),
            recipe=data["transform"],
            slots=tuple(_slot(entry) for entry in data["slots"]),
            base=Fingerprint(data["base"]["tensors"]),
            network=data["base"]["network"],
            selected=data["selected"],
            dtype=dtype,
            memory_limit=int(data["memory_limit"]),
            positions=data["positions"],
            folded=None if data["folded"] is None else tuple(data["folded"]),
            metrics=data["metrics"],
            written_by=data["written_by"],
        )


def _slot(entry: Mapping[str, Any]) -> Slot:
    axes = {name: tuple(entry[name]) for name in ("shape", "kernel")}
    return Slot(**{**entry, **axes, "taps": tuple(tuple(places) for places in entry["taps"])})


def versions() -> dict[str, str]:
    """What a file is written with."""
    try:
        own = importlib.metadata.version("weightmorph")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {"weightmorph": own, "torch": str(torch.__version__)}


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into; it takes its place when all is written, and is gone when not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], record: Record, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, or leave what was there.

    Args:
        path: where to.
        record: what the tensors belong to.
        state: the transform's `state_dict(keep_vars=True)`, in which a shared tensor is one object under many names.

    Raises:
        CheckpointError: if something cannot be stored as plain data.
        MissingDependencyError: if safetensors is not installed.
        OSError: if the file cannot be written.
    """
    safetensors = require("safetensors.torch", "hub", "saving a model")
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{name}: a file holds tensors, and this is extra state of type {type(tensor).__name__}; let the "
                "module keep it in a buffer"
            )
        if first.setdefault(id(tensor), name) != name:
            shared[name] = first[id(tensor)]
        else:
            tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    data = plain(record.as_data()) | {"tensors": {k: digest(v) for k, v in tensors.items()}, "shared": shared}
    _check(record, data)
    data = {"format": FORMAT} | data
    header = json.dumps(data | {"sha256": checksum(data)}, ensure_ascii=False)
    try:
        content = safetensors.save(tensors, {KEY: header})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: safetensors cannot store these tensors: {error}") from error
    with replaced(Path(path)) as temporary:
        temporary.write_bytes(content)


def _check(record: Record, data: Mapping[str, Any]) -> None:
    """Refuse now what could not be read later."""
    try:
        again = ParameterSpace.from_config(data["parameters"])
    except (ParameterError, TypeError) as error:
        raise CheckpointError(f"the parameters cannot be stored as plain data: {error}") from error
    for name, parameter in record.space.items():
        if again[name] != parameter:
            raise CheckpointError(
                f"parameter {name!r}: a {type(parameter).__name__} of your own cannot be stored as plain data; "
                "condition on Angle, Interval, LogInterval or Categorical"
            )


def checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 of a header without its own checksum, as Python writes JSON."""
    return hashlib.sha256(json.dumps(data, ensure_ascii=False).encode()).hexdigest()


def read(path: str | os.PathLike[str]) -> tuple[Record, dict[str, Tensor]]:
    """Read a checkpoint, complete or not at all.

    Returns:
        the record, and the transform's `state_dict` on the CPU.

    Raises:
        CheckpointError: if the file is cut short, damaged, incomplete, of a newer format, or not one of ours.
        MissingDependencyError: if safetensors is not installed.
        OSError: if it is not there or cannot be read.
    """
    safetensors = require("safetensors", "hub", "loading a model")
    path = Path(path)
    _refuse_incomplete(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # whatever a library says to a damaged file
        raise CheckpointError(f"{path}: the file is damaged, or not a safetensors file: {error}") from error
    if KEY not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of weightmorph (its metadata have no entry {KEY!r}); "
            "weights of a network are loaded into the network itself"
        )
    try:
        data = json.loads(metadata[KEY])
        _refuse_other_format(path, data["format"])
        expected = data.pop("sha256")
        if checksum(data) != expected:
            raise CheckpointError(f"{path}: the file is damaged: its header does not have its checksum")
        record = Record.from_data(data)
        digests, shared = dict(data["tensors"]), dict(data["shared"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: the header cannot be read: {what}") from error
    _refuse_damaged(path, digests, tensors)
    return record, tensors | {name: tensors[source] for name, source in shared.items()}


def _refuse_incomplete(path: Path) -> None:
    """A file that is cut short deserves a better word than damaged."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8:
            raise CheckpointError(f"{path}: the file is cut short: it has {size} bytes, fewer than any checkpoint")
        if start[:2] == b"PK":
            raise CheckpointError(f"{path}: an archive such as torch.save writes, not a checkpoint of weightmorph")
        if 8 + length > size:
            raise CheckpointError(
                f"{path}: not a safetensors file, or cut short: its header should have {length:,} bytes, and the file "
                f"has {size:,} in all"
            )
        text = file.read(length)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(text).items() if name != "__metadata__"]
        missing = 8 + length + max(ends, default=0) - size
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return  # what is wrong with it, the library will say
    if missing > 0:
        raise CheckpointError(f"{path}: the file is cut short: {missing:,} of its {size + missing:,} bytes are missing")


def _refuse_other_format(path: Path, number: Any) -> None:
    if not isinstance(number, int) or number < 1:
        raise CheckpointError(f"{path}: the file is damaged: its format reads {number!r}")
    if number > FORMAT:
        raise CheckpointError(
            f"{path}: the file has format {number}, and this release of weightmorph ({versions()['weightmorph']}) "
            f"reads up to format {FORMAT}; install a newer one: pip install -U weightmorph"
        )


def _refuse_damaged(path: Path, digests: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    missing = [name for name in digests if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{path}: the file is incomplete: {len(missing)} of {len(digests)} tensors are missing: {listed(missing)}"
        )
    extra = [name for name in tensors if name not in digests]
    if extra:
        raise CheckpointError(f"{path}: the file holds tensors that its header does not name: {listed(extra)}")
    damaged = [name for name, value in digests.items() if digest(tensors[name]) != value]
    if damaged:
        raise CheckpointError(f"{path}: the file is damaged: other bytes than were written in {listed(damaged)}")


def listed(words: Sequence[str], most: int = 8) -> str:
    """Some words in a sentence, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
