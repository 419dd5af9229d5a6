"""Which base a file belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import BaseError
from .container import digest, listed

__all__ = ["Fingerprint"]


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
        digests = {}
        for name, tensor in tensors.items():
            if name in changing:
                digests[name] = "changes"
                continue
            if tensor.is_meta:
                raise BaseError(f"{name} is on the meta device and holds no values; load the network's weights first")
            known = first.setdefault(id(tensor), name)
            digests[name] = digest(tensor) if known == name else f"is {known}"
        return cls(digests)

    @classmethod
    def of_network(cls, net: nn.Module) -> Fingerprint:
        """Of a plain network, a tied tensor under each of its names.

        Example:
            >>> Fingerprint.of_network(nn.BatchNorm1d(2)).tensors["num_batches_tracked"][:9]
            'int64 () '
        """
        parameters = dict(net.named_parameters(remove_duplicate=False))
        return cls.of(parameters | dict(net.named_buffers(remove_duplicate=False)))

    @classmethod
    def from_data(cls, tensors: Any) -> Fingerprint:
        """The way back from JSON.

        Raises:
            TypeError: for anything but texts by name.
        """
        if not isinstance(tensors, dict) or not all(isinstance(value, str) for value in tensors.values()):
            raise TypeError("a fingerprint has a text for every tensor")
        return cls(tensors)

    def __str__(self) -> str:
        """A digest of all tensors, in 16 hexadecimal digits."""
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

    def expect(self, other: Fingerprint, what: str, networks: tuple[str, str], advice: str) -> None:
        """Refuse another base.

        Args:
            other: the fingerprint of the network at hand.
            what: the beginning of the message: the name of the file, or "the delta".
            networks: the classes' names: of the base that was meant, and of the network at hand.
            advice: what to do, unless the two differ in their dtype alone.

        Raises:
            BaseError: if a tensor differs; both fingerprints are named, and the tensors.
        """
        differences = self.differences(other)
        if not differences:
            return
        dtype = self.recast(other)
        hint = f"the model was saved in {dtype}: load it onto net.to(torch.{dtype})" if dtype else advice
        raise BaseError(
            f"{what}: saved for another base: for a {networks[0]} with fingerprint {self}, and this is a "
            f"{networks[1]} with fingerprint {other}. {len(differences)} of {len({*self.tensors, *other.tensors})} "
            f"tensors differ: {listed(differences)}. Hint: {hint}"
        )


def _kind(value: str) -> str:
    """A digest without the bytes: type and shape, or what a tensor is tied to."""
    return f"tied to {value[3:]}" if value.startswith("is ") else value.rpartition(" ")[0]
