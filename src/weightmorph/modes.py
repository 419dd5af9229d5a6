"""Train and eval mode of modules for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["eval_mode", "preserved_modes"]


@contextmanager
def preserved_modes(*modules: nn.Module) -> Iterator[None]:
    """Restore the `training` flag of every part of the modules at the end of the block, also after an error.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3).eval())
        >>> with preserved_modes(net):
        ...     _ = net.train()
        >>> [part.training for part in net]
        [True, False]
    """
    flags = {part: part.training for module in modules for part in module.modules()}
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put every part of the modules into eval mode for the block, and restore each `training` flag after it.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
        >>> with eval_mode(net):
        ...     print(net.training, net[0].training)
        False False
        >>> net.training
        True
    """
    with preserved_modes(*modules):
        for module in modules:
            for part in module.modules():
                # Not `eval()`: a module may override it to do more, such as merging its weights.
                part.training = False
        yield
