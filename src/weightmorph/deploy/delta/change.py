"""What one setting does to one tensor, as data that keeps its structure and does not hold the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...slots import Grow, Slot
from ...storage import slot_data, slot_from
from ...terms import TERMS, Dense, Term, WeightExpression

__all__ = ["Change", "Piece"]


@dataclass(frozen=True)
class Piece:
    """A term without the base's own weight.

    Attributes:
        kind: which term.
        carried: the tensor that follows θ, under its field's name.
        shared: tensors that are the same at every setting.
        frozen: fields in which the base's weight stood.
        options: fields that are no tensors.
        orders: of tensors that lie in memory otherwise than their axes say, the axes from the slowest to the fastest. A
            product rounds otherwise if it finds a matrix transposed, and what is applied is to equal what is baked.
    """

    kind: str
    carried: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    frozen: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, term: Term, weight: Tensor) -> Piece:
        """Taken from an expression's term; `weight` is the expression's base."""
        if type(term) is not TERMS.get(type(term).__name__):
            term = Dense(term.slot, term.dense())
        carrier = term.coefficient
        carried: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}
        frozen, options, orders = [], {}, {}
        for entry in fields(term):
            name, value = entry.name, getattr(term, entry.name)
            if name == "slot":
                continue
            if value is weight:
                frozen.append(name)
            elif isinstance(value, Tensor):
                if not value.is_contiguous():
                    strides = value.stride()
                    orders[name] = tuple(sorted(range(value.dim()), key=lambda axis: -strides[axis]))
                laid = value.detach().permute(orders.get(name, tuple(range(value.dim()))))
                (carried if value is carrier else shared)[name] = laid.clone(memory_format=torch.contiguous_format)
            else:
                options[name] = value
        return cls(type(term).__name__, carried, shared, tuple(frozen), options, orders)

    def term(self, slot: Slot, weight: Tensor) -> Term:
        """The term again, on a base's weight."""
        tensors = {name: value.to(weight.device) for name, value in (*self.carried.items(), *self.shared.items())}
        for name, order in self.orders.items():
            tensors[name] = tensors[name].permute([order.index(axis) for axis in range(len(order))])
        return TERMS[self.kind](slot=slot, **tensors, **{name: weight for name in self.frozen}, **dict(self.options))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, in the order of its axes."""
        held = self.carried[name] if name in self.carried else self.shared[name]
        order = self.orders.get(name, range(held.dim()))
        return tuple(held.shape[tuple(order).index(axis)] for axis in range(held.dim()))

    @property
    def fields(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Names, types and shapes of what follows θ."""
        return [(name, tensor.dtype, self.shape(name)) for name, tensor in self.carried.items()]

    def smallest(self, slot: Slot) -> Piece:
        """Itself, or, where its tensors hold more numbers than what they stand for, that: Δ as one tensor."""
        held = sum(t.numel() for t in (*self.carried.values(), *self.shared.values()))
        if self.frozen or TERMS[self.kind].is_dense or held < slot_numbers(slot):
            return self
        dense = self.term(slot, torch.empty(0)).dense()
        return Piece("Dense", {"delta": dense.contiguous()}, {})

    def data(self) -> dict[str, Any]:
        """All but the tensors, for JSON."""
        return {
            "kind": self.kind, "carried": list(self.carried), "shared": list(self.shared), "frozen": list(self.frozen),
            "options": dict(self.options), "orders": {name: list(order) for name, order in self.orders.items()},
        }  # fmt: skip

    @classmethod
    def from_data(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Piece:
        """The way back; `tensors` by field, of which copies are made: their places in a file may be odd.

        Raises:
            CheckpointError: for a kind of term that this release does not know.
            KeyError, TypeError: for data that are not a piece.
        """
        if data["kind"] not in TERMS:
            raise CheckpointError(f"a change of the kind {data['kind']!r} is not known to this release")
        known = {field.name for field in fields(TERMS[data["kind"]])} - {"slot"}
        named = [*data["carried"], *data["shared"], *data["frozen"], *data["options"]]
        if not known.issuperset(named):
            raise TypeError(f"a {data['kind']} has no {', '.join(map(str, sorted(set(named) - known)))}")
        options = {name: _tuples(v) for name, v in data["options"].items()}
        if "more" in options:  # until 0.2 one number stood for both sides of an axis
            options["more"] = tuple((n, n) if isinstance(n, int) else n for n in options["more"])
        orders = {name: tuple(order) for name, order in data["orders"].items()}
        carried, shared = ({name: tensors[name].clone() for name in data[side]} for side in ("carried", "shared"))
        for name, order in orders.items():
            if sorted(order) != list(range((carried | shared)[name].dim())):
                raise ValueError(f"{order} is no order of the axes of {name}")
        return cls(data["kind"], carried, shared, tuple(data["frozen"]), options, orders)


def _tuples(value: Any) -> Any:
    """What JSON gives back of tuples in tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def slot_numbers(slot: Slot) -> int:
    """How many numbers the tensor has, its support not grown."""
    numbers = 1
    for extent in slot.shape:
        numbers *= extent
    return numbers


@dataclass(frozen=True)
class Change:
    """W(θ) of one tensor: its slot, and the pieces that are added to the base's weight."""

    slot: Slot
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, expression: WeightExpression) -> Change:
        """Taken from an expression of one setting."""
        return cls(expression.slot, tuple(Piece.of(term, expression.base) for term in expression.terms))

    @property
    def grow(self) -> Grow:
        """Taps by which W(θ) is wider than W."""
        terms = tuple(piece.term(self.slot, torch.empty(0)) for piece in self.pieces)
        return WeightExpression(self.slot, torch.empty(0), terms).grow

    def weight(self, base: Tensor) -> Tensor:
        """W(θ), with the bits that `bake` gives it: `(*S)`, or with the grown kernel."""
        terms = tuple(piece.term(self.slot, base) for piece in self.pieces)
        expression = WeightExpression(self.slot, base, terms)
        with torch.no_grad():
            kinds = {tensor.dtype for term in terms for tensor in term.tensors} | {base.dtype}
            if expression.grow or len(kinds) > 1 or any(term.replaces for term in terms):
                return expression.dense()
            # The same sum in the same order, written into the first term's own product: a pass and an allocation less.
            total: Tensor | None = None
            for term in terms:
                piece = term.dense()
                if total is not None:
                    total.add_(piece)
                else:
                    total = base + piece if _aliased(piece, term) else piece.add_(base)
            return base.clone() if total is None else total

    def smallest(self) -> Change:
        """With every piece in its smaller form."""
        return Change(self.slot, tuple(piece.smallest(self.slot) for piece in self.pieces))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by `piece.field`."""
        return self.carried() | self.shared()

    def carried(self) -> dict[str, Tensor]:
        """What follows θ, by `piece.field`."""
        return {f"{n}.{name}": value for n, piece in enumerate(self.pieces) for name, value in piece.carried.items()}

    def shared(self) -> dict[str, Tensor]:
        """What does not, by `piece.field`."""
        return {f"{n}.{name}": value for n, piece in enumerate(self.pieces) for name, value in piece.shared.items()}

    def orders(self) -> list[dict[str, list[int]]]:
        """How the tensors of each piece lie in memory."""
        return [{name: list(order) for name, order in piece.orders.items()} for piece in self.pieces]

    def kinds(self) -> list[tuple[Any, ...]]:
        """What no setting may change, beside the shared tensors: slot, kinds, fields, types and shapes."""
        return [
            (slot_data(self.slot), p.kind, list(p.shared), p.frozen, dict(p.options), p.fields) for p in self.pieces
        ]

    def data(self) -> dict[str, Any]:
        """All but the tensors, for JSON."""
        return {"slot": slot_data(self.slot), "pieces": [piece.data() for piece in self.pieces]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
        """The way back; `tensors` by `piece.field`."""
        pieces = []
        for number, entry in enumerate(data["pieces"]):
            prefix = f"{number}."
            mine = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
            pieces.append(Piece.from_data(entry, mine))
        return cls(slot_from(data["slot"]), tuple(pieces))


def _aliased(piece: Tensor, term: Term) -> bool:
    """Is it memory of the term's own tensors, and not a product of them?"""
    storage = piece.untyped_storage().data_ptr()
    return any(tensor.untyped_storage().data_ptr() == storage for tensor in term.tensors)
