"""The file format: a transform's tensors, what they belong to, and nothing that runs.

One safetensors file. Its tensors are the transform's `state_dict`, each stored once however many names it has; its
metadata is a JSON text, the [`Record`][weightmorph.storage.Record], with a checksum of its own and one for every tensor.
The base is not in it: a [`Fingerprint`][weightmorph.storage.Fingerprint] says which one it must be.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
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

HEADER, VERSION, CHECKSUM = "weightmorph", "weightmorph_format", "weightmorph_sha256"


def digest(tensor: Tensor) -> str:
    """Type, shape and SHA-256 of a tensor's bytes.

    Example:
        >>> digest(torch.zeros(2, 3))
        'float32 (2, 3) 9d908ecfb6b256def8b49a7c504e6c889c4b0e41fe6ce3e01863dd7b61a20aa0'
    """
    flat = tensor.detach().to("cpu").contiguous().flatten()
    content = hashlib.sha256(memoryview(flat.view(torch.uint8).numpy()))
    return f"{_name(tensor.dtype)} {tuple(tensor.shape)} {content.hexdigest()}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Fingerprint:
    """Which base: the [`digest`][weightmorph.storage.digest] of every tensor by name, `"is …"` for a tied one."""

    tensors: Mapping[str, str]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Fingerprint:
        """Read off a network's parameters and buffers.

        Raises:
            BaseError: for a tensor without content (on the meta device).
        """
        first: dict[int, str] = {}
        found = {}
        for name, tensor in tensors.items():
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
        """What the other has that this one has not, tensor by tensor, in words."""
        words = []
        for name in dict.fromkeys((*self.tensors, *other.tensors)):
            mine, theirs = self.tensors.get(name), other.tensors.get(name)
            if mine == theirs:
                continue
            if theirs is None:
                words.append(f"{name} (missing)")
            elif mine is None:
                words.append(f"{name} (not expected)")
            else:
                before, after = (text.rpartition(" ")[0] or text for text in (mine, theirs))
                tied = "is" in (before, after)
                changed = (mine, theirs) if tied else (before, after)
                words.append(f"{name} (other values)" if before == after and not tied else "{} ({}, not {})".format(
                    name, changed[1], changed[0]
                ))
        return words
