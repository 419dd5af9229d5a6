"""Norm layers: one multiply and one add, for all of them at once, and who scales a convolution's rows."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ANGLES, block, code, frozen, one_by_one

import weightmorph as wm
from weightmorph.execution import Batch, Norm, prepare_norms
from weightmorph.execution.norm import HANDLERS, affine
from weightmorph.layers import using


@pytest.mark.parametrize("size", [3, 7], ids=["few_pixels", "many"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shared", [False, True])
def test_scale_and_shift_in_one_pass_are_a_multiply_and_an_add(size: int, last: bool, shared: bool) -> None:
    """In either memory format, values, gradients and gradients of gradients."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, size, size, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    batch = () if shared else (4,)
    scale, shift = (torch.randn(*batch, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    wide = (1 if shared else 4, 5, 1, 1)
    torch.testing.assert_close(affine(x, scale, shift), x * scale.reshape(wide) + shift.reshape(wide))
    assert torch.autograd.gradcheck(affine, (x, scale, shift), fast_mode=True)
    assert torch.autograd.gradgradcheck(affine, (x, scale, shift), fast_mode=True)


@pytest.mark.parametrize("few", [0, 10**6])
def test_the_number_of_pixels_only_chooses_the_way(few: int) -> None:
    """One pass or a multiply and an add, whatever the processor prefers."""
    x, scale, shift = torch.randn(4, 5, 6, 6), torch.randn(4, 5), torch.randn(4, 5)
    with using(few_pixels=few):
        torch.testing.assert_close(affine(x, scale, shift), x * scale[..., None, None] + shift[..., None, None])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(2, c), nn.InstanceNorm2d, None])
def test_a_convolution_before_a_conditioned_norm_leaves_its_rows_to_it(norm: object) -> None:
    """The norm scales the same channels; by name the rows are scaled all the same, and without an example too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = norm(4) if callable(norm) else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    x = torch.randn(2, 3, 8, 8)
    model = wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale(), example=x)
    left = norm in (nn.BatchNorm2d,) or (callable(norm) and norm is not nn.InstanceNorm2d)  # InstanceNorm has no scale
    assert ("conv.weight" not in model.slots) == left
    assert ("conv.bias" not in model.slots) == left
    assert "conv.weight" in wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale()).slots
    named = wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale(), select="conv*", example=x)
    assert "conv.weight" in named.slots


def test_a_convolution_that_something_else_reads_as_well_keeps_its_rows() -> None:
    """A norm beside another reader cannot do the scale's work."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.Scale(), example=torch.randn(2, 3, 4, 4))
    assert "conv.weight" in model.slots


def square_roots(model: wm.Conditioned, x: Tensor, theta: Tensor) -> int:
    """How often a call takes 1/√(σ² + ε): once for all BatchNorm layers, where they are prepared at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        model(x, angle=theta)
    return sum(event.count for event in seen.key_averages() if event.key == "aten::rsqrt")


@pytest.mark.parametrize("by_setting", [False, True])
def test_all_norms_at_once_are_each_norm_alone(by_setting: bool) -> None:
    """One multiply and one add per layer, made in one row, also setting by setting."""
    model, _ = block()
    theta, index = (torch.tensor([5.0, 50.0]), torch.tensor([0, 1]).repeat(3)) if by_setting else (ANGLES, None)
    expressions = model.transform.expressions(list(model.slots.values()), frozen(model), code(model, angle=theta))
    norms = Norm.of(model.slots.values(), model.view.layer)
    ready = prepare_norms(norms, expressions, index)
    assert sorted(ready) == ["norm1", "norm2"]
    alone = Batch(6) if index is None else Batch(6).by_setting(index, 2)
    y = torch.randn(6, 8, 5, 4, dtype=torch.float64)
    for norm in norms:
        buffers, eps = norm.entries["_buffers"], norm.entries["eps"]
        statistics = buffers["running_mean"], buffers["running_var"]
        weight, bias = expressions[norm.weight], expressions[norm.bias]
        one, other = (
            HANDLERS[F.batch_norm](batch, norm.layer, y, *statistics, weight, bias, eps=eps)
            for batch in (replace(alone, norms=ready), alone)
        )
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        rows = torch.arange(6) if index is None else index
        expected = [
            F.batch_norm(y[i : i + 1], *statistics, weight.dense()[row], bias.dense()[row], eps=eps)
            for i, row in enumerate(rows)
        ]
        torch.testing.assert_close(one, torch.cat(expected), rtol=1e-10, atol=1e-10)


def test_a_model_prepares_its_norms_at_once() -> None:
    """One θ per sample and setting by setting; norms with different ε are left alone, and the outputs are exact."""
    model, x = block()
    repeated = torch.tensor([5.0, 50.0]).repeat_interleave(4)
    for x_, theta in ((x, ANGLES), (torch.cat([x, x[:2]]), repeated)):
        torch.testing.assert_close(model(x_, angle=theta), one_by_one(model, x_, {"angle": theta}))
        assert square_roots(model, x_, theta) == 1
    net = model.frozen()
    net.norm2.eps = 1e-3
    other = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, wm.Warp() + wm.LowRank(2) + wm.Scale())
    assert square_roots(other, x, ANGLES) == 2
    torch.testing.assert_close(other(x, angle=ANGLES), one_by_one(other, x, {"angle": ANGLES}))


def test_norms_follow_a_move_and_a_copy() -> None:
    """What was gathered of the base's norms is that of the moved or copied base."""
    model, x = block()
    single = copy.deepcopy(model).float()
    torch.testing.assert_close(single(x.float(), angle=ANGLES), model(x, angle=ANGLES).float(), rtol=1e-4, atol=1e-4)
    assert single(x.float(), angle=ANGLES).dtype == torch.float32
    assert square_roots(single, x.float(), ANGLES) == 1, "statistics from before the move would be taken again"
    assert square_roots(copy.deepcopy(model), x, ANGLES) == 1
