"""Finished networks with the costs of their training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..model import Conditioned

__all__ = ["Contender"]


@dataclass(frozen=True)
class Contender:
    """A finished network with the costs of its training.

    Args:
        module: the network. A [`Conditioned`][weightmorph.Conditioned] one follows θ, and so does any that has its
            method `at(**theta)`; every other one sees only the transformed input.
        trainable: numbers that were trained; unless given, those of the parameters that require a gradient now (of a
            conditioned network: its transform's), unknown if there are none.
        seconds: of training.
        stored: bytes that have to be kept beside the base.

    Attributes:
        trained: `trainable`, or the count that stands in for it.
        needs_theta: whether the network follows θ.

    Example:
        >>> rival = Contender(nn.Linear(3, 2), seconds=12.0)
        >>> rival.trained, rival.needs_theta
        (8, False)
    """

    module: nn.Module
    trainable: int | None = None
    seconds: float | None = None
    stored: int | None = None

    @property
    def trained(self) -> int | None:
        """Numbers that were trained, as far as known."""
        if self.trainable is not None:
            return self.trainable
        if isinstance(self.module, Conditioned):
            return sum(p.numel() for p in self.module.transform.parameters()) or None
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad) or None

    @property
    def needs_theta(self) -> bool:
        """Whether the network follows θ, so that θ must be supplied."""
        return isinstance(self.module, Conditioned) or callable(getattr(self.module, "at", None))

    def network(self, theta: Mapping[str, float]) -> nn.Module:
        """The network at a setting, with its weights prepared once."""
        if not self.needs_theta:
            return self.module
        network: nn.Module = self.module.at(**theta)  # type: ignore[operator]  # any module with this method
        return network
