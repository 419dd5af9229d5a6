"""One safetensors file with a JSON header: written atomically, and checked when it is read.

**Which format number a file has, and what follows from it** (the policy that every change of the format keeps to):

* A release reads every format up to its own. What has changed since is in
  [`MIGRATIONS`][weightmorph.storage.container], one function per number, from the header of format n to that of n + 1;
  they are applied one after the other to a header whose checksum was found right, and never to the file.
* A key that an older release may overlook does not raise the number (the plan of a model did not). Whoever reads such a
  key takes a file without it for what it meant before.
* [`FORMAT`][weightmorph.storage.FORMAT] is raised, together with the migration and a test that reads a file of the old
  number, when an older release could misread what a newer one writes.
* A file of a higher number is refused, and the message says which release to install. A file is never guessed at.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, require
from ..io import plain
from ..io import replacing as replaced

__all__ = [
    "FORMAT", "KINDS", "MIGRATIONS", "Header", "checksum", "digest", "dtype_name", "listed", "pack", "replaced", "save",
    "unpack", "versions",
]  # fmt: skip

FORMAT = 1
"""Raised when an older release could misread what a newer one writes."""

MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From the header of format n to that of format n + 1."""

KEY = "weightmorph"
"""Where in the file's metadata the header is: one entry, for safetensors shuffles several, and equal models should give
equal files."""

KINDS: Mapping[str, str] = {
    "model": "a model: weightmorph.load(path, net)",
    "delta": "a delta: weightmorph.Delta.load(path)",
    "training": "the state of a training run: fit(…, checkpoint=folder)",
    "weights": "the weights of a baked network: net.load_state_dict(safetensors.torch.load_file(path))",
}
"""What a file can hold, and what reads it."""

Header = dict[str, Any]


def digest(tensor: Tensor) -> str:
    """Type, shape and SHA-256 of a tensor's bytes.

    Example:
        >>> digest(torch.zeros(2, 3))
        'float32 (2, 3) 9d908ecfb6b256def8b49a7c504e6c889c4b0e41fe6ce3e01863dd7b61a20aa0'
    """
    flat = tensor.detach().to("cpu").contiguous().flatten()
    content = hashlib.sha256(flat.view(torch.uint8).numpy().data)
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)} {content.hexdigest()}"


def dtype_name(dtype: torch.dtype) -> str:
    """A type as a word.

    Example:
        >>> dtype_name(torch.float32)
        'float32'
    """
    return str(dtype).removeprefix("torch.")


def versions() -> dict[str, str]:
    """What a file is written with."""
    try:
        own = importlib.metadata.version("weightmorph")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {"weightmorph": own, "torch": str(torch.__version__)}


def pack(kind: str, data: Mapping[str, Any], tensors: Mapping[str, Any], purpose: str = "saving a model") -> bytes:
    """A file's content.

    Args:
        kind: one of [`KINDS`][weightmorph.storage.container].
        data: the header's own entries, as plain data for JSON.
        tensors: by name; one object under two names is stored once.
        purpose: what needs safetensors, for the message.

    Raises:
        CheckpointError: if something is no tensor, or of a kind that safetensors does not know.
        MissingDependencyError: if safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "save", purpose)
    stored: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{name}: a file holds tensors, and this is extra state of type {type(tensor).__name__}; let the "
                "module keep it in a buffer"
            )
        if tensor.layout is not torch.strided:
            raise CheckpointError(f"{name}: safetensors cannot store a tensor of layout {tensor.layout}; make it dense")
        if first.setdefault(id(tensor), name) != name:
            shared[name] = first[id(tensor)]
        else:
            stored[name] = tensor.detach().to("cpu", copy=True).contiguous()
    tag = {} if kind == "model" else {"kind": kind}  # what format 1 began with were models
    entries = plain({**data, **tag, "tensors": {k: digest(v) for k, v in stored.items()}, "shared": shared})
    header = {"format": FORMAT} | entries
    text = json.dumps(header | {"sha256": checksum(header)}, ensure_ascii=False)
    try:
        content = safetensors.save(stored, {KEY: text})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"safetensors cannot store these tensors: {error}") from error
    assert isinstance(content, bytes)
    return content


def save(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file completely, or leave the old one.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    with replaced(path) as temporary:
        temporary.write_bytes(content)
    return path


def checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 of a header, as Python writes JSON, without the checksum itself."""
    return hashlib.sha256(json.dumps(data, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class _Content:
    """A file as safetensors gives it: the header's text, and tensors by name."""

    text: str
    tensors: dict[str, Tensor]


def unpack(
    path: str | os.PathLike[str], kind: str | Sequence[str] = "model", purpose: str = "loading a model"
) -> tuple[Header, dict[str, Tensor]]:
    """Read a file, and return nothing of a damaged one.

    Args:
        path: the file.
        kind: what it must hold; or the kinds of which it must be one.
        purpose: what needs safetensors, for the message.

    Returns:
        the header in today's format, without what this function has checked, and the tensors on the CPU, a shared one
        under each of its names. The header always has its `"kind"`.

    Raises:
        CheckpointError: if the file is cut short, damaged, incomplete, of a newer format, of another kind, or not one
            of ours.
        MissingDependencyError: if safetensors is not installed.
        OSError: if it is not there or cannot be read.
    """
    safetensors = require("safetensors", "save", purpose)
    path = Path(path)
    _refuse_incomplete(path)
    content = _content(path, safetensors)
    try:
        data = json.loads(content.text)
        number = _format(path, data["format"])
        expected = data.pop("sha256")
        if checksum(data) != expected:
            raise CheckpointError(f"{path}: the file is damaged: its header does not have its checksum")
        data = _migrated(path, data, number)
        data.setdefault("kind", "model")
        _refuse_other_kind(path, data["kind"], (kind,) if isinstance(kind, str) else kind)
        digests, shared = dict(data.pop("tensors")), dict(data.pop("shared"))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header cannot be read: {lacking(error)}") from error
    _refuse_damaged(path, digests, content.tensors)
    odd = [f"{name} is {source}" for name, source in shared.items() if source not in digests or name in digests]
    if odd:
        raise CheckpointError(f"{path}: the header names tensors that are not in the file: {listed(odd)}")
    return data, content.tensors | {name: content.tensors[source] for name, source in shared.items()}


def lacking(error: Exception) -> str:
    """Why a header cannot be read, in words."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _content(path: Path, safetensors: Any) -> _Content:
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
    return _Content(metadata[KEY], tensors)


def _migrated(path: Path, data: Header, number: int) -> Header:
    """A header of an older format as one of today's."""
    for old in range(number, FORMAT):
        if old not in MIGRATIONS:
            raise CheckpointError(f"{path}: the file has format {old}, and nothing leads from there to {FORMAT}")
        data = MIGRATIONS[old](data)
    return data


def _refuse_incomplete(path: Path) -> None:
    """Say of a file that is cut short how much is missing, where safetensors would call it damaged."""
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
        return  # safetensors says what is wrong with it
    if missing > 0:
        raise CheckpointError(f"{path}: the file is cut short: {missing:,} of its {size + missing:,} bytes are missing")


def _format(path: Path, number: Any) -> int:
    """A format that can be read."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise CheckpointError(f"{path}: the file is damaged: its format reads {number!r}")
    if number > FORMAT:
        raise CheckpointError(
            f"{path}: the file has format {number}, and this release of weightmorph ({versions()['weightmorph']}) "
            f"reads up to format {FORMAT}; install a newer one: pip install -U weightmorph"
        )
    return number


def _refuse_other_kind(path: Path, kind: Any, wanted: Sequence[str]) -> None:
    if kind not in wanted:
        holds = KINDS.get(kind, f"something of the kind {kind!r}, which this release does not know")
        expected = " or ".join(KINDS[name].partition(":")[0] for name in wanted)
        raise CheckpointError(f"{path}: expected {expected}, and the file holds {holds}")


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
