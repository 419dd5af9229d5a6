"""Baking with every BatchNorm merged into the layer whose output it alone reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import block, shake

import weightmorph as wm
from weightmorph import errors
from weightmorph.base.recorder import leaves


@pytest.mark.parametrize("given", ["the example's shape", "an input"])
def test_folding_merges_norms_and_changes_nothing_else(given: str) -> None:
    """The same function of the input, with fewer layers."""
    model, x = block()
    plain = model.bake(angle=33.0)
    folded = model.bake(angle=33.0, fold=True if given == "the example's shape" else x)
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-10, atol=1e-10)
    assert isinstance(folded.norm1, nn.Identity) and isinstance(folded.norm2, nn.Identity)
    assert not isinstance(plain.norm1, nn.Identity) and folded.conv2.bias is not None


def test_folding_leaves_alone_what_something_else_reads() -> None:
    """A convolution called twice, one with a second reader, one whose weight is shared, and a norm called twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.read, self.plain = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.a, self.b, self.c, self.d = (nn.BatchNorm2d(3) for _ in range(4))
            self.tied = nn.Conv2d(3, 3, 1)
            self.other = nn.Conv2d(3, 3, 1)
            self.other.weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(self.twice(self.a(self.twice(x))))
            y = self.read(x)
            x = self.b(y) + y
            x = self.d(self.plain(x))
            return self.c(self.tied(x)) + self.other(x)

    torch.manual_seed(0)
    net = Net().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(1), example=x)
    shake(model)
    folded = model.bake(angle=33.0, fold=True)
    assert [name for name, m in folded.named_modules() if isinstance(m, nn.Identity)] == ["d"]
    torch.testing.assert_close(folded(x), model.bake(angle=33.0)(x), rtol=1e-10, atol=1e-10)


@dataclass
class Pair:
    first: Tensor
    second: Tensor


def unseen(y: Tensor) -> Tensor:
    """A function that a recorder of torch's functions does not see, as one that TorchScript compiled."""
    with torch._C.DisableTorchFunction():
        return 2 * y


SECOND_READERS: dict[str, Callable[[Tensor, nn.BatchNorm2d], Any]] = {
    "in a list": lambda y, norm: torch.cat([y, norm(y)]),
    "a keyword's list": lambda y, norm: torch.cat(tensors=(norm(y), y)),
    "returned": lambda y, norm: (y, norm(y)),
    "returned in a dict": lambda y, norm: {"a": [y], "b": norm(y)},
    "returned in an object": lambda y, norm: Pair(y, norm(y)),
    "an attribute": lambda y, norm: y.mT + norm(y),
    "unseen": lambda y, norm: unseen(y) + norm(y),
    "of the norm, on another tensor": lambda y, norm: norm(y) + norm(torch.ones(1, 3, 1, 1, dtype=y.dtype)),
    "of the norm's scale": lambda y, norm: norm(y) + norm.weight.abs().sum(),
}


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("reads", SECOND_READERS.values(), ids=list(SECOND_READERS))
def test_every_second_reader_keeps_a_norm(reads: Callable[[Tensor, nn.BatchNorm2d], Any], zeros: bool) -> None:
    """Where a value is read a second time, in whatever way, the norm stays, and so does the output."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, bias=False)
            self.first, self.norm = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Any:
            return reads(self.conv(self.first(self.before(x))), self.norm)

    torch.manual_seed(0)
    net = Net().double()
    nn.init.normal_(net.first.running_mean)
    nn.init.constant_(net.norm.weight, 3.0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(1), example=x)
    folded = model.bake(angle=33.0, fold=True if zeros else x)
    assert [name for name, m in folded.named_modules() if isinstance(m, nn.Identity)] == ["first"]
    for given, expected in zip(leaves(folded(x)), leaves(model.bake(angle=33.0)(x)), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)


def test_a_norm_over_another_axis_than_a_linear_layers_outputs_stays() -> None:
    """`BatchNorm1d` on `(B, N, D)` scales the tokens, also where there are as many as features."""
    net = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()
    nn.init.normal_(net[1].weight)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(1), example=x)
    folded = model.bake(angle=3.0, fold=True)
    assert isinstance(folded.get_submodule("1"), nn.BatchNorm1d)
    torch.testing.assert_close(folded(x), model.bake(angle=3.0)(x), rtol=1e-12, atol=1e-12)


def test_random_numbers_and_inputs_written_in_place_do_not_keep_a_norm() -> None:
    """The outputs that are compared come from the same random numbers and the same input."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x.mul_(2))) + torch.randn(())

    model = wm.condition(Net(), {"angle": wm.Angle("deg")}, wm.LowRank(1))
    folded = model.bake(angle=33.0, fold=torch.ones(1, 3, 2, 2))
    assert isinstance(folded.norm, nn.Identity)


def test_folding_without_an_example_says_what_to_give() -> None:
    """It has to run the network."""
    model = wm.condition(nn.Conv2d(3, 4, 3), {"angle": wm.Angle("deg")}, wm.LowRank(1))
    with pytest.raises(errors.SelectionError, match="fold= an input"):
        model.bake(angle=3.0, fold=True)
    with pytest.raises(errors.BaseError, match="fold"):
        wm.condition(nn.Conv2d(3, 4, 3), {"fold": wm.Angle("deg")}, wm.LowRank(1))
