"""Baking with every BatchNorm merged into the layer whose output it alone reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import block, shake

import weightmorph as wm
from weightmorph import errors


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


def test_folding_without_an_example_says_what_to_give() -> None:
    """It has to run the network."""
    model = wm.condition(nn.Conv2d(3, 4, 3), {"angle": wm.Angle("deg")}, wm.LowRank(1))
    with pytest.raises(errors.SelectionError, match="fold= an input"):
        model.bake(angle=3.0, fold=True)
    with pytest.raises(errors.BaseError, match="fold"):
        wm.condition(nn.Conv2d(3, 4, 3), {"fold": wm.Angle("deg")}, wm.LowRank(1))
