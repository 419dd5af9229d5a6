"""Objectives: their formulas, what they need, and what they refuse."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weightmorph.errors import TrainingError
from weightmorph.objectives import Distillation, Mixture, Objective, Supervised, resolve


def kl_numpy(z: np.ndarray, z0: np.ndarray, temperature: float) -> float:
    """The formula of the docstring, once more."""

    def softmax(v: np.ndarray) -> np.ndarray:
        e = np.exp(v - v.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(z0 / temperature), softmax(z / temperature)
    return float(temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean())


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 6, 5)], ids=["classification", "segmentation"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_its_formula(shape: tuple[int, ...], temperature: float) -> None:
    z, z0 = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    assert Distillation(temperature)(z, frozen=z0).item() == pytest.approx(
        kl_numpy(z.numpy(), z0.numpy(), temperature), rel=1e-12
    )


def test_distillation_is_zero_where_the_two_agree_and_nowhere_else() -> None:
    z = torch.randn(4, 3)
    assert Distillation()(z, frozen=z).item() == 0
    assert Distillation()(z, frozen=z.flip(1)).item() > 0
    assert Distillation(distance="mse")(z, frozen=z + 2).item() == pytest.approx(4)


def test_distillation_teaches_the_network_and_not_the_frozen_one() -> None:
    z, z0 = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    Distillation()(z, frozen=z0).backward()
    assert z.grad is not None and z0.grad is None


def test_half_precision_logits_are_compared_in_single() -> None:
    z, z0 = torch.randn(4, 3).bfloat16(), torch.randn(4, 3).bfloat16()
    assert Distillation()(z, frozen=z0).dtype == torch.float32


def test_nested_outputs_are_averaged_over_their_tensors() -> None:
    """Dicts, lists, tuples and what derives from them; whole numbers, None and strings are passed over."""
    a, b = torch.zeros(2, 3), torch.zeros(2, 5)
    output = OrderedDict(logits=a, more=[b + 2, (torch.arange(2), None, "name")])
    frozen = OrderedDict(logits=a, more=[b, (torch.arange(2), None, "name")])
    assert Distillation(distance="mse")(output, frozen=frozen).item() == pytest.approx(2)
    assert Distillation(distance=lambda mine, theirs: (mine - theirs).abs().max())(output, frozen=frozen).item() == 1


def test_supervised_takes_any_loss() -> None:
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(Supervised()(z, y), F.cross_entropy(z, y))
    assert torch.equal(Supervised(F.mse_loss)(z, z + 1), torch.tensor(1.0))
    assert torch.equal(
        Supervised(lambda out, y: F.cross_entropy(out["logits"], y))({"logits": z}, y), F.cross_entropy(z, y)
    )


def test_objectives_add_and_scale() -> None:
    z, z0, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    both = Supervised() + 0.5 * (Distillation() + Distillation(2.0) * 3)
    expected = F.cross_entropy(z, y) + 0.5 * Distillation()(z, frozen=z0) + 1.5 * Distillation(2.0)(z, frozen=z0)
    assert isinstance(both, Mixture) and [weight for weight, _ in both.parts] == [1, 0.5, 1.5]
    assert both(z, y, z0).item() == pytest.approx(expected.item())
    assert (both.needs_labels, both.needs_frozen) == (True, True)
    assert ((2 * Distillation()).needs_labels, (2 * Distillation()).needs_frozen) == (False, True)


def test_what_cannot_be_added_is_refused() -> None:
    with pytest.raises(TypeError):
        Supervised() + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        Supervised() * "2"  # type: ignore[operator]


def test_names_and_functions_are_resolved() -> None:
    assert isinstance(resolve("supervised"), Supervised) and isinstance(resolve("distillation"), Distillation)
    own = Supervised(F.l1_loss)
    assert resolve(own) is own
    assert repr(resolve(F.l1_loss)) == "Supervised(l1_loss)"
    with pytest.raises(TrainingError, match="did you mean 'distillation'"):
        resolve("distilation")
    with pytest.raises(TrainingError, match="expected 'supervised'"):
        resolve(Distillation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "arguments", "message"),
    [
        (Supervised(), (torch.zeros(2, 3),), "no labels.*'distillation'"),
        (Supervised(), (torch.zeros(2, 3), torch.zeros(3).long()), r"cross_entropy failed on output a tensor \(2, 3\)"),
        (Supervised(), ({"logits": 0}, torch.zeros(2).long()), "failed on output a dict of 1.*lambda output, y"),
        (Supervised(lambda output, y: output), (torch.zeros(2), torch.zeros(2)), "one number as a tensor"),
        (Supervised(lambda output, y: 1.0), (torch.zeros(2), torch.zeros(2)), "one number.*a float"),
        (Distillation(), (torch.zeros(2, 3),), "frozen base's output on the clean input is missing"),
        (Distillation(), (torch.zeros(2, 3), None, torch.zeros(2, 4)), r"shape \(2, 3\) under W.* \(2, 4\)"),
        (Distillation(), (torch.zeros(2, 1), None, torch.zeros(2, 1)), "two or more classes.*distance='mse'"),
        (Distillation(), (torch.zeros(2), None, torch.zeros(2)), "two or more classes"),
        (Distillation(), ([], None, []), "no floating-point tensor"),
        (Distillation(), ({"a": torch.zeros(2, 3)}, None, [torch.zeros(2, 3)]), "a dict of 1.*a list of 1.*structure"),
        (Distillation(), ([[torch.zeros(2, 3)]], None, [[]]), r"the output\[0\] is a list of 1"),
    ],
)
def test_what_does_not_fit_is_refused(objective: Objective, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        objective(*arguments)


def test_options_are_checked() -> None:
    with pytest.raises(TrainingError, match="temperature above 0"):
        Distillation(0)
    with pytest.raises(TrainingError, match="'kl', 'mse' or a function"):
        Distillation(distance="l2")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="function"):
        Supervised("cross_entropy")  # type: ignore[arg-type]
