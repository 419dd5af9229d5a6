"""The transforms of many slots: what is computed at once is what each gives alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import ANGLES, FAMILIES, block, code, frozen

import weightmorph as wm
from weightmorph.transforms.base import CoefficientTransform


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_sample"])
def test_coefficients_computed_at_once_are_those_computed_one_by_one(family: str, shared: bool) -> None:
    """Whatever the slots' sizes, and in one handful of operations."""
    model, _ = block(FAMILIES[family]())
    given = code(model, angle=33.0 if shared else ANGLES)
    slots, weights = list(model.slots.values()), frozen(model)
    at_once = model.transform.expressions(slots, weights, given)
    for slot in slots:
        alone = model.transform.expression(slot, weights[slot.name], given)
        torch.testing.assert_close(at_once[slot.name].dense(), alone.dense(), rtol=1e-12, atol=1e-12)
        assert at_once[slot.name].batch == alone.batch == (() if shared else (6,))


def test_a_family_that_only_inherits_the_batched_form_is_asked_itself() -> None:
    """A user's subclass may have changed what a coefficient is."""

    class Half(wm.LowRank):
        def coefficient(self, code: Tensor) -> Tensor:
            return super().coefficient(code) / 2

    model, _ = block(Half(2))
    given = code(model, angle=33.0)
    expressions = model.transform.expressions(list(model.slots.values()), frozen(model), given)
    for name, expression in expressions.items():
        (built,) = model.transform.of(model.slots[name])
        assert isinstance(built, CoefficientTransform)
        torch.testing.assert_close(expression.terms[0].coefficient, built.coefficient(given))


def test_the_code_side_does_not_grow_with_depth() -> None:
    """Operations per forward on the code side: the same number for three blocks and for twelve, but for one a slot."""

    def count(depth: int) -> int:
        net = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth)])
        model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Warp() + wm.LowRank(2))
        given = code(model, angle=ANGLES)
        with torch.no_grad(), torch.profiler.profile() as seen:
            for kind, _, members in model.transform.groups:
                kind.coefficients(members, given)
        views = "unbind select slice as_strided view reshape expand unsqueeze transpose split narrow permute t".split()
        return sum(e.count for e in seen.key_averages() if e.key.removeprefix("aten::") not in views)

    assert count(12) == count(3)
