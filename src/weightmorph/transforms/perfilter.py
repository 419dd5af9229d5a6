"""A module that maps each filter's taps and θ to new taps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import TransformError
from ..parameters import ParameterSpace
from ..slots import Slot
from .gains import check_hidden
from .module import ModuleTransform

__all__ = ["PerFilter"]


class PerFilter(ModuleTransform):
    r"""Map each filter's taps and θ to new taps with a module.

    $$W_{o,i}(\theta) = m(W_{o,i},\ c(\theta)) \qquad\text{or, anchored,}\qquad
      W_{o,i}(\theta) = W_{o,i} + m(W_{o,i}, c) - m(W_{o,i}, c_0)$$

    A user's module is taken as it is and shared by all slots, so that the gradient arrives in the very object that was
    passed. Its output is the filter, at the start and at the anchor as well, unless `anchored=True` adds its change
    from the anchor instead. The built-in modules are anchored and start at the identity; every slot has its own.

    A linear map of the concatenation `[taps, θ]` cannot turn a filter: $A w + B c$ holds no product of $w$ and $c$, so
    it adds the same kernel to every filter. The built-in `"linear"` multiplies instead:
    $m(w, c) = \sum_k c_k L_k w$.

    Shapes:
        module: taps `(N, T)`, code `(N, K)` -> `(N, T)`, with N = filters (times samples under per-sample θ).
        weight `(*S)`, code `(*B, K)` -> `(*B, *S)`.

    Args:
        module: the user's, or `"linear"` or `"mlp"` for a built-in one.
        anchored: subtract the module's value at the anchor; None means no for a user's module, yes for the built-in.
        hidden: units in the built-in MLP.
        max_taps: built-in only: slots with more taps are left alone.

    Raises:
        TransformError: if the module's output has another shape than its taps, or is not finite.

    References:
        Jia et al., "Dynamic Filter Networks", NeurIPS 2016, arXiv:1605.09673.

    Example:
        >>> t = PerFilter("linear").build((6, 3, 3, 3), code_dim=4)
        >>> t(torch.zeros(6, 3, 3, 3), torch.ones(5, 4)).dense().shape
        torch.Size([5, 6, 3, 3, 3])
    """

    family = "perfilter"

    def __init__(
        self,
        module: nn.Module | Literal["linear", "mlp"] = "mlp",
        anchored: bool | None = None,
        hidden: int = 32,
        max_taps: int = 64,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module) and module not in ("linear", "mlp"):
            raise TransformError(f"PerFilter: expected a module, 'linear' or 'mlp', got {module!r}")
        check_hidden("PerFilter", hidden)
        self.recipe = module if isinstance(module, str) else None
        self.module = None if isinstance(module, str) else module
        self.anchored = self.recipe is not None if anchored is None else anchored
        self.hidden, self.max_taps = hidden, max_taps

    def wants(self, slot: Slot, space: ParameterSpace) -> bool:
        # A user's module was written for kernels: a Linear over a flattened map is one only for our own.
        kinds = ("conv", "conv_transpose") if self.recipe is None else ("conv", "conv_transpose", "linear")
        return slot.kind in kinds and slot.n_taps > 1 and (self.recipe is None or slot.n_taps <= self.max_taps)

    def setup(self, slot: Slot, code_dim: int) -> None:
        if self.recipe == "linear":
            self.module = _Bilinear(slot.n_taps, code_dim)
        elif self.recipe == "mlp":
            self.module = _Mlp(slot.n_taps, code_dim, self.hidden)

    def value(self, weight: Tensor, code: Tensor) -> Tensor:
        canonical = self.slot.canonical(weight)
        mapped = self._map(canonical.reshape(-1, canonical.shape[-1]), code)
        return self.slot.restore(mapped.reshape(*code.shape[:-1], *canonical.shape))

    def _map(self, taps: Tensor, code: Tensor) -> Tensor:
        """The module on every filter: taps `(F, T)`, code `(*B, K)` -> `(*B, F, T)`."""
        assert self.module is not None
        f, t = taps.shape
        batch, k = code.shape[:-1], code.shape[-1]
        rows = taps.expand(*batch, f, t).reshape(-1, t)
        codes = code.unsqueeze(-2).expand(*batch, f, k).reshape(-1, k)
        try:
            out = self.module(rows, codes)
        except (RuntimeError, TypeError) as error:
            raise TransformError(
                f"layer {self.slot.layer or self.slot.name!r}: {type(self.module).__name__} failed on taps "
                f"{tuple(rows.shape)} and code {tuple(codes.shape)}: {error}. PerFilter calls it with (filters, taps) "
                "and (filters, code); select the layers whose kernels it was written for with select="
            ) from error
        return self._checked(out, tuple(rows.shape), "give new taps of shape").reshape(*batch, f, t)

    def config(self) -> dict[str, Any]:
        inner = self.recipe or f"<{type(self.module).__name__}>"
        return {
            "type": "PerFilter", "module": inner, "anchored": self.anchored, "hidden": self.hidden,
            "max_taps": self.max_taps,
        }  # fmt: skip


class _Bilinear(nn.Module):
    r"""$m(w, c) = \sum_k c_k L_k w$, with $L$ starting at zero."""

    def __init__(self, taps: int, code_dim: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.zeros(code_dim, taps, taps))

    def forward(self, taps: Tensor, code: Tensor) -> Tensor:
        return torch.einsum("nk,kst,ns->nt", code, self.maps, taps)


class _Mlp(nn.Module):
    """One hidden layer on `[taps, code]`; the last layer starts at zero."""

    def __init__(self, taps: int, code_dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(taps + code_dim, hidden)
        self.outer = nn.Linear(hidden, taps, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, taps: Tensor, code: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(self.inner(torch.cat((taps, code), -1)))
        out: Tensor = self.outer(hidden)
        return out
