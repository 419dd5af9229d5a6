"""Any module that maps a weight and θ to a weight."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..slots import Slot
from .module import ModuleTransform

__all__ = ["Custom"]


class Custom(ModuleTransform):
    r"""Use any module as a weight transform.

    $$W(\theta) = m(W, c(\theta)) \qquad\text{or, anchored,}\qquad W(\theta) = W + m(W, c) - m(W, c_0)$$

    The module is taken as it is and shared by all slots. [`condition`][weightmorph.condition] wraps a plain
    `nn.Module` in this class.

    Shapes:
        module: weight `(*S)`, code `(*B, K)` -> weight `(*B, *S)`, whatever the slot's shape `*S`. With `"vmap"` it
        sees one code `(K,)` at a time.

    Args:
        module: $m$.
        anchored: add the module's change from the anchor to the weight, so that the base is exact there. Otherwise
            the module's output is the weight, at the anchor as well.
        per_sample: how the module is called with one θ per sample: `"batch"` once with all codes `(B, K)`, `"vmap"`
            through `torch.vmap`, for modules that know one code at a time.

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
    module: nn.Module

    def __init__(self, module: nn.Module, anchored: bool = False, per_sample: Literal["batch", "vmap"] = "batch"):
        super().__init__()
        self.module, self.anchored, self.per_sample = module, anchored, per_sample

    def setup(self, slot: Slot, code_dim: int) -> None:
        pass

    def value(self, weight: Tensor, code: Tensor) -> Tensor:
        if code.dim() > 1 and self.per_sample == "vmap":
            value = torch.vmap(lambda c: self.module(weight, c))(code)
        else:
            value = self.module(weight, code)
        return self._checked(
            value,
            (*code.shape[:-1], *weight.shape),
            f"map weight {tuple(weight.shape)} and code {tuple(code.shape)} to",
            "; a module that knows one code at a time goes in as Custom(module, per_sample='vmap')",
        )

    def config(self) -> dict[str, Any]:
        return {
            "type": "Custom", "module": f"<{type(self.module).__name__}>", "anchored": self.anchored,
            "per_sample": self.per_sample,
        }  # fmt: skip
