"""Train and eval mode for the length of a block."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
from torch import nn

from weightmorph.modes import eval_mode, preserved_modes


class Merging(nn.Linear):
    """A layer whose `train` does more than set a flag."""

    def train(self, mode: bool = True) -> Merging:
        raise AssertionError("train() must not be called")


@pytest.mark.parametrize("block", [eval_mode, preserved_modes])
def test_flags_are_restored_after_an_error(block: Any) -> None:
    """Each part has its own flag again, a shared one included."""
    shared = nn.Dropout()
    one, other = nn.Sequential(shared, nn.BatchNorm2d(3).eval()), nn.Sequential(shared, Merging(2, 2))
    before = [part.training for net in (one, other) for part in net.modules()]
    context: AbstractContextManager[None] = block(one, other)
    with pytest.raises(RuntimeError, match="stop"), context:
        for part in one.modules():
            part.training = not part.training
        raise RuntimeError("stop")
    assert [part.training for net in (one, other) for part in net.modules()] == before


def test_every_part_is_in_eval_mode_within() -> None:
    net = nn.Sequential(nn.Dropout(), Merging(2, 2))
    with eval_mode(net):
        assert not any(part.training for part in net.modules())
    assert all(part.training for part in net.modules())
