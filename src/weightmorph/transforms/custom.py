"""Any module that maps a weight and θ to a weight."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import TransformError
from ..slots import Slot
from ..terms import Dense, Term, Whole
from .base import WeightTransform, anchored

__all__ = ["Custom"]


class Custom(WeightTransform):
    r"""Any module `(weight (*S), code (*B, K)) -> weight (*B, *S)`, taken as it is and shared by all slots.

    `condition` wraps a plain `nn.Module` in it. Under per-sample θ the module is called once with the code `(B, K)`;
    one that does not know about a batch of codes is called through `torch.vmap` with `per_sample="vmap"`.

    Raises:
        TransformError: if the output has another shape than `(*B, *S)`.

    Example:
        >>> class Fade(nn.Module):
        ...     def forward(self, weight, code):
        ...         return weight * code[..., :1].reshape(*code.shape[:-1], *[1] * weight.dim())
        >>> t = Custom(Fade()).build((6, 3), code_dim=1)
        >>> t(torch.ones(6, 3), torch.ones(5, 1)).dense().shape
        torch.Size([5, 6, 3])
    """

    family = "custom"

    def __init__(self, module: nn.Module, anchored: bool = False, per_sample: Literal["batch", "vmap"] = "batch"):
        super().__init__()
        self.module, self.anchored, self.per_sample = module, anchored, per_sample

    def _fresh(self) -> Custom:
        return Custom(self.module, self.anchored, self.per_sample)

    def setup(self, slot: Slot, code_dim: int) -> None:
        pass

    def _call(self, weight: Tensor, code: Tensor) -> Tensor:
        if code.dim() > 1 and self.per_sample == "vmap":
            value = torch.vmap(lambda c: self.module(weight, c))(code)
        else:
            value = self.module(weight, code)
        expected = (*code.shape[:-1], *weight.shape)
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TransformError(
                f"layer {self.slot.layer or self.slot.name!r}: {type(self.module).__name__} must map weight "
                f"{tuple(weight.shape)} and code {tuple(code.shape)} to {expected}, got {got}; a module that knows "
                "one code at a time goes in as Custom(module, per_sample='vmap')"
            )
        return value

    def delta(self, weight: Tensor, code: Tensor) -> Term:
        value = self._call(weight, code)
        if not self.anchored:
            return Whole(self.slot, weight, value)
        home = self.home(code)
        return Dense(self.slot, anchored(value - self._call(weight, home), code, home))

    def config(self) -> dict[str, Any]:
        return {
            "type": "Custom", "module": f"<{type(self.module).__name__}>", "anchored": self.anchored,
            "per_sample": self.per_sample,
        }  # fmt: skip
