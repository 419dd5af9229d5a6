"""What the deltas of one model have in common, once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...model import Conditioned
from ...storage import checksum, digest, listed, pack, save, unpack, versions
from ...storage.container import dtype_name
from .change import Change, Piece
from .files import Origin, changes_from, expressions, readable, same

if TYPE_CHECKING:
    from .delta import Delta

__all__ = ["DeltaBook"]


class DeltaBook:
    """What the deltas of one model have in common: the factors and weight sets that no setting changes.

    With it, a setting's file holds what follows θ alone: r gains per low-rank tensor, a vector of row scales, a small
    matrix of mixed taps. The book is about as large as the model's own checkpoint, and is shipped once.

    Attributes:
        origin: which base, and what θ is.

    Example:
        >>> import tempfile, weightmorph as wm
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2, hidden=4))
        >>> for p in model.parameters():
        ...     _ = nn.init.normal_(p)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     book = DeltaBook.of(model)
        ...     _ = book.save(f"{folder}/book.safetensors")
        ...     for angle in (30.0, 60.0):
        ...         _ = wm.Delta.of(model, angle=angle).save(f"{folder}/{angle:.0f}.safetensors", book=book)
        ...     wm.Delta.load(f"{folder}/60.safetensors")
        Delta(angle=60.0: 2 tensors of Sequential, 1,936 bytes)
    """

    def __init__(self, changes: Mapping[str, Change], origin: Origin, path: Path | None = None) -> None:
        self.changes, self.origin, self._path = changes, origin, path
        told = {"changes": self._layout(), "base": dict(origin.base.tensors)}
        self.digest = checksum(told | {"tensors": {name: digest(t) for name, t in self._shared().items()}})

    @classmethod
    def of(cls, model: Conditioned) -> DeltaBook:
        """That of a model as it stands; training it on makes another one necessary."""
        found = expressions(model, model.space.anchor)
        return cls({name: Change.of(expression) for name, expression in found.items()}, Origin.of(model))

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.nbytes for t in self._shared().values())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one safetensors file, whole or not at all; deltas saved with it later name that file.

        Raises:
            MissingDependencyError: if safetensors is not installed.
            OSError: if the file cannot be written.
        """
        data = self.origin.data() | {"changes": self._layout(), "digest": self.digest}
        self._path = save(path, pack("book", data, self._shared(), "saving a book of deltas"))
        return self._path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DeltaBook:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is damaged, incomplete, of a newer format, or no book.
            MissingDependencyError: if safetensors is not installed.
            OSError: if the file cannot be read.
        """
        data, tensors = unpack(path, "book", "loading a book of deltas")
        with readable(path):
            for name, entry in data["changes"].items():
                # Shapes only: what follows θ comes from a delta's own file.
                tensors |= {f"{name}/{k}": _placeholder(*v) for k, v in entry.pop("carried").items()}
            book = cls(changes_from(data["changes"], tensors), Origin.from_data(data), Path(path))
            if book.digest != data["digest"]:
                raise CheckpointError(f"{path}: the book is not the one that its header names; write it anew")
            return book

    @classmethod
    def _for(cls, path: str | os.PathLike[str], named: Mapping[str, Any]) -> DeltaBook:
        """The book of a delta's file, beside it."""
        beside = Path(path).with_name(Path(str(named["file"])).name) if named["file"] else None
        if beside is None or not beside.exists():
            raise CheckpointError(
                f"{path}: the delta needs its book, {named['file'] or 'which was not saved'} with digest "
                f"{named['digest'][:16]}, and it is not in the same folder: Delta.load(path, book=DeltaBook.load(…))"
            )
        return cls.load(beside)

    def _shared(self) -> dict[str, Tensor]:
        return {f"{name}/{place}": t for name, change in self.changes.items() for place, t in change.shared().items()}

    def _layout(self) -> dict[str, Any]:
        """The pieces, and of what follows θ the types and shapes."""
        return {
            name: change.data()
            | {"carried": {k: [dtype_name(v.dtype), list(v.shape)] for k, v in change.carried().items()}}
            for name, change in self.changes.items()
        }

    def _page(self, delta: Delta) -> bytes:
        """The file of one delta: what follows θ, one tensor per type, in the order of the book."""
        self.origin.base.expect(
            delta.origin.base, "the book", (self.origin.network, delta.origin.network), "make it from the same model"
        )
        odd = [name for name, change in delta.changes.items() if not self._fits(name, change)]
        if odd:
            raise CheckpointError(
                f"the delta does not belong to the book: {listed(odd)} differ in what no setting changes. A model that "
                "was trained on needs a new book: DeltaBook.of(model)"
            )
        flat: dict[str, list[Tensor]] = {}
        orders: dict[str, Any] = {}
        for name, mine in self.changes.items():
            if name in delta.changes:
                change = delta.changes[name]
                for value in change.carried().values():
                    flat.setdefault(dtype_name(value.dtype), []).append(value.flatten())
                if change.orders() != mine.orders():
                    orders[name] = change.orders()
        data = {
            "written_by": versions(),
            "theta": dict(delta.theta),
            "unchanged": [name for name in self.changes if name not in delta.changes],
            "orders": orders,
            "book": {"digest": self.digest, "file": self._path.name if self._path else None},
        }
        return pack("page", data, {name: torch.cat(parts) for name, parts in flat.items()}, "saving a delta")

    def _fits(self, name: str, change: Change) -> bool:
        """Does a change differ from the book's in nothing but what follows θ?"""
        mine = self.changes.get(name)
        if mine is None or mine.kinds() != change.kinds():
            return False
        theirs = change.shared()
        return all(same(value, theirs[place].to(value.device)) for place, value in mine.shared().items())

    def _changes(self, page: Mapping[str, Any], flat: Mapping[str, Tensor]) -> dict[str, Change]:
        """The changes of a delta's file, with what the book holds."""
        if page["book"]["digest"] != self.digest:
            raise CheckpointError(
                f"the delta belongs to another book: expected one with digest {page['book']['digest'][:16]}, got "
                f"{self.digest[:16]}; both are written by one model, see DeltaBook"
            )
        places = dict.fromkeys(flat, 0)
        changes = {}
        for name, change in self.changes.items():
            if name in page["unchanged"]:
                continue
            pieces = []
            orders = page["orders"].get(name) or change.orders()
            for piece, order in zip(change.pieces, orders, strict=True):
                carried = {}
                own = {field: tuple(axes) for field, axes in order.items()}
                for field, like in piece.carried.items():
                    key, shape = dtype_name(like.dtype), piece.shape(field)
                    laid = [shape[axis] for axis in own.get(field, range(len(shape)))]
                    here, places[key] = places[key], places[key] + math.prod(shape)
                    carried[field] = flat[key][here : places[key]].reshape(laid).clone()
                pieces.append(Piece(piece.kind, carried, piece.shared, piece.frozen, piece.options, own))
            changes[name] = Change(change.slot, tuple(pieces))
        if any(places[key] != len(flat[key]) for key in flat):
            raise CheckpointError("the delta's file holds more numbers than its book has places for")
        return changes


def _placeholder(dtype: str, shape: list[int]) -> Tensor:
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise TypeError(f"{dtype!r} is no dtype")
    return torch.empty(shape, dtype=kind, device="meta")
