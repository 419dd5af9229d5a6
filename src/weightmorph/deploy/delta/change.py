"""What one setting changes in one tensor, as data that keeps the terms' structure and does not hold the base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...slots import Slot
from ...storage import slot_data, slot_from
from ...terms import TERMS, Dense, Term, WeightExpression

__all__ = ["Change", "Piece"]


@dataclass(frozen=True)
class Piece:
    """A term without the base's own weight.

    Attributes:
        kind: the term's name in `weightmorph.terms.TERMS`. Any other term is stored as its dense tensor.
        tensors: by the term's field.
        coefficient: the field of the tensor that depends on θ.
        frozen: fields that held the base's weight.
        options: fields that are no tensors.
        orders: for tensors that are not contiguous, their axes from the slowest to the fastest. A matrix product of a
            transposed matrix rounds differently, and an applied weight must equal the baked one.

    Example:
        >>> from weightmorph.terms import RowScale
        >>> weight = torch.ones(2, 3)
        >>> term = RowScale(Slot.of((2, 3), "weight"), weight, torch.tensor([1.0, 2.0]))
        >>> piece = Piece.of(term, weight)
        >>> list(piece.tensors), piece.frozen
        (['gain'], ('weight',))
    """

    kind: str
    tensors: Mapping[str, Tensor]
    coefficient: str
    frozen: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, term: Term, weight: Tensor) -> Piece:
        """The piece of an expression's term; `weight` is the expression's base."""
        kind = {known: name for name, known in TERMS.items()}.get(type(term))
        if kind is None:
            return cls.of(Dense(term.slot, term.dense()), weight)
        values = {f.name: getattr(term, f.name) for f in fields(term) if f.name != "slot"}
        frozen = tuple(name for name, value in values.items() if value is weight)
        held = {name: v.detach() for name, v in values.items() if isinstance(v, Tensor) and name not in frozen}
        orders = {name: _order(value) for name, value in held.items() if not value.is_contiguous()}
        tensors = {
            name: value.permute(orders.get(name, tuple(range(value.dim())))).clone(
                memory_format=torch.contiguous_format
            )
            for name, value in held.items()
        }
        options = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        return cls(kind, tensors, term.coefficient_field, frozen, options, orders)

    def term(self, slot: Slot, weight: Tensor) -> Term:
        """The term again, on a base's weight."""
        tensors = {name: value.to(weight.device) for name, value in self.tensors.items()}
        for name, order in self.orders.items():
            tensors[name] = tensors[name].permute([order.index(axis) for axis in range(len(order))])
        return TERMS[self.kind](slot=slot, **tensors, **dict.fromkeys(self.frozen, weight), **dict(self.options))

    def smallest(self, slot: Slot) -> Piece:
        """The piece itself or, if its tensors hold more numbers than the weight, the dense tensor."""
        if self.frozen or sum(t.numel() for t in self.tensors.values()) <= math.prod(slot.shape):
            return self
        return Piece("Dense", {"delta": self.term(slot, torch.empty(0)).dense().contiguous()}, "delta")

    def data(self) -> dict[str, Any]:
        """Everything but the tensors, for JSON. The file's word for the coefficient is `carried`."""
        return {
            "kind": self.kind, "carried": [self.coefficient],
            "shared": [name for name in self.tensors if name != self.coefficient], "frozen": list(self.frozen),
            "options": dict(self.options), "orders": {name: list(order) for name, order in self.orders.items()},
        }  # fmt: skip

    @classmethod
    def from_data(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Piece:
        """The piece of a file's entry; `tensors` by field. They are copied, because a file may lay them out oddly.

        Raises:
            CheckpointError: for a kind of term that this release does not know.
            KeyError, TypeError, ValueError: for data that are not a piece.
        """
        if data["kind"] not in TERMS:
            raise CheckpointError(f"a change of the kind {data['kind']!r} is not known to this release")
        known = [field.name for field in fields(TERMS[data["kind"]]) if field.name != "slot"]
        [coefficient] = data["carried"]
        held = [coefficient, *data["shared"]]
        unknown = sorted({*held, *data["frozen"], *data["options"]}.difference(known))
        if unknown:
            raise TypeError(f"a {data['kind']} has no {', '.join(map(str, unknown))}")
        copies = {name: tensors[name].clone() for name in known if name in held}
        options = {name: _tuples(value) for name, value in data["options"].items()}
        orders = {name: tuple(order) for name, order in data["orders"].items()}
        for name, order in orders.items():
            if sorted(order) != list(range(copies[name].dim())):
                raise ValueError(f"{order} is no order of the axes of {name}")
        return cls(data["kind"], copies, coefficient, tuple(data["frozen"]), options, orders)


def _order(value: Tensor) -> tuple[int, ...]:
    """The axes of a tensor from the slowest to the fastest."""
    strides = value.stride()
    return tuple(sorted(range(value.dim()), key=lambda axis: -strides[axis]))


def _tuples(value: Any) -> Any:
    """Lists from JSON as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Change:
    """W(θ) of one tensor at one setting: its slot, and the pieces that are added to the base's weight.

    Example:
        >>> from weightmorph.terms import RowScale
        >>> slot, weight = Slot.of((2, 3), "weight"), torch.ones(2, 3)
        >>> term = RowScale(slot, weight, torch.tensor([1.0, 2.0]))
        >>> Change.of(WeightExpression(slot, weight, (term,))).expression(weight).dense()
        tensor([[2., 2., 2.],
                [3., 3., 3.]])
    """

    slot: Slot
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, expression: WeightExpression) -> Change:
        """The change that an expression of one setting makes."""
        return cls(expression.slot, tuple(Piece.of(term, expression.base) for term in expression.terms))

    def expression(self, base: Tensor) -> WeightExpression:
        """W(θ) on a base's weight. Its `dense()` has the bits that `bake` gives it."""
        return WeightExpression(self.slot, base, tuple(piece.term(self.slot, base) for piece in self.pieces))

    def smallest(self) -> Change:
        """The change with every piece in its smaller form."""
        return Change(self.slot, tuple(piece.smallest(self.slot) for piece in self.pieces))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by `piece.field`."""
        return {f"{n}.{name}": value for n, piece in enumerate(self.pieces) for name, value in piece.tensors.items()}

    def data(self) -> dict[str, Any]:
        """Everything but the tensors, for JSON."""
        return {"slot": slot_data(self.slot), "pieces": [piece.data() for piece in self.pieces]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
        """The change of a file's entry; `tensors` by `piece.field`."""
        pieces = []
        for number, entry in enumerate(data["pieces"]):
            prefix = f"{number}."
            fields_ = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
            pieces.append(Piece.from_data(entry, fields_))
        return cls(slot_from(data["slot"]), tuple(pieces))
