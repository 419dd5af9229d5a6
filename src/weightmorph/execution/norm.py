"""Norm layers: the statistics are shared work, the scale and shift are per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ExecutionError
from ..layers import current, reshape_owned
from ..slots import Slot
from ..terms import WeightExpression
from .batch import Batch, NormAffine, vector_values

__all__ = ["HANDLERS", "Norm", "mixes_samples", "prepare_norms"]

Operand = Tensor | WeightExpression | None


def per_channel(value: Tensor, like: Tensor) -> Tensor:
    """`(B, C)` shaped and typed to multiply or be added to `like (B, C, …)`."""
    return value.to(like.dtype).reshape(*value.shape, *(1,) * (like.dim() - 2))


def channels(batch: Batch, y: Tensor, weight: Operand, bias: Operand) -> Tensor:
    """`y * weight + bias`, the channels being axis 1."""
    scale, shift = (None if v is None else vector_values(batch, v) for v in (weight, bias))
    if scale is not None and shift is not None:
        return affine(y, scale, shift)
    scale, shift = (v if v is None or v.dim() == 2 else v.unsqueeze(0) for v in (scale, shift))
    y = y if scale is None else y * per_channel(scale, y)
    return y if shift is None else y + per_channel(shift, y)


def _per_sample(batch: Batch, *operands: Operand) -> bool:
    return any(isinstance(o, WeightExpression) and o.batch for o in operands)


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * scale + shift`, both `(B, C)` or `(C,)`, the channels being axis 1.

    It is what a batch norm does to one sample of B·C channels, in one pass over x, and in half the time a multiply and
    an add take, in the forward and in the backward pass.
    """
    scale, shift = (v if v.dim() == 2 else v.unsqueeze(0) for v in (scale, shift))
    size, width, *extents = x.shape
    if torch.compiler.is_compiling() or not size or not x.is_contiguous() or math.prod(extents) < current().few_pixels:
        return (x * per_channel(scale, x)).add_(per_channel(shift, x))
    wide = torch.promote_types(x.dtype, torch.float32)  # what batch norm keeps its own in, also where x is shorter
    rows = [v.expand(size, width).reshape(-1).to(wide) for v in (scale, shift)]
    zero = rows[0].new_zeros(size * width)
    y = F.batch_norm(x.view(1, size * width, *extents), zero, torch.ones_like(zero), rows[0], rows[1], False, 0.0, 0.0)
    return reshape_owned(y, x.shape)


@dataclass(frozen=True)
class Norm:
    """A BatchNorm layer whose scale and shift are both conditioned: its slots, and its module's dictionary."""

    layer: str
    weight: str
    bias: str
    entries: Mapping[str, Any]

    @classmethod
    def of(cls, slots: Iterable[Slot], entries: Callable[[str], tuple[type, Mapping[str, Any]]]) -> list[Norm]:
        """Those among the slots; `entries` gives a layer's class and dictionary."""
        found: dict[str, dict[str, str]] = {}
        for slot in slots:
            if slot.kind in ("norm", "bias"):
                found.setdefault(slot.layer, {})[slot.attribute] = slot.name
        norms = []
        for layer, names in found.items():
            kind, own = entries(layer)
            if kind in BATCH_NORMS and own["track_running_stats"] and {"weight", "bias"} <= names.keys():
                norms.append(cls(layer, names["weight"], names["bias"], own))
        return norms


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def mixes_samples(kind: type, entries: Mapping[str, Any]) -> bool:
    """Do the samples of a batch see each other in a layer of that class and dictionary?"""
    return issubclass(kind, nn.modules.batchnorm._BatchNorm) and entries["_buffers"].get("running_mean") is None


def prepare_norms(
    norms: Sequence[Norm], weights: Mapping[str, Tensor | WeightExpression], index: Tensor | None
) -> dict[str, NormAffine]:
    r"""The multiply and the add of all BatchNorm layers that merely scale and shift, in a handful of operations.

    $\alpha = \gamma (1 + s) / \sqrt{\sigma^2 + \epsilon}$ and $\beta + \delta - \mu\alpha$, all layers' channels in one
    row.
    """
    rows: list[tuple[Norm, Tensor, Tensor, Tensor]] = []
    for norm in norms:
        weight, bias = weights[norm.weight], weights[norm.bias]
        if not isinstance(weight, WeightExpression) or not isinstance(bias, WeightExpression):
            continue
        if len(weight.terms) == 1 == len(bias.terms):
            scale, shift = weight.terms[0].scale, bias.terms[0].shift
            if scale is not None and shift is not None:
                rows.append((norm, weight.base, scale, shift))
    if len(rows) < 2 or len({norm.entries["eps"] for norm, *_ in rows}) > 1:
        return {}
    buffers = [norm.entries["_buffers"] for norm, *_ in rows]
    means = [b["running_mean"] for b in buffers]
    inverse = (torch.cat([b["running_var"] for b in buffers]) + rows[0][0].entries["eps"]).rsqrt()
    frozen = torch.cat([weight for _, weight, _, _ in rows]) * inverse
    alpha = torch.addcmul(frozen, frozen, torch.cat([scale for _, _, scale, _ in rows], -1))
    biases = torch.cat([norm.entries["_parameters"]["bias"] for norm, *_ in rows])
    shift = torch.cat([shift for *_, shift in rows], -1).add_(biases).addcmul_(torch.cat(means), alpha, value=-1)
    if index is not None:
        alpha, shift = alpha.index_select(0, index), shift.index_select(0, index)
    sizes = [mean.shape[0] for mean in means]
    pieces = zip(rows, means, alpha.split(sizes, -1), shift.split(sizes, -1), strict=True)
    return {norm.layer: (mean, a, b) for (norm, *_), mean, a, b in pieces}


def batch_norm(
    batch: Batch,
    where: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Operand = None,
    bias: Operand = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` with running statistics; without them the samples would see each other."""
    batch.check(input, where)
    ready = batch.norms.get(weight.slot.layer) if isinstance(weight, WeightExpression) else None
    if ready is not None and ready[0] is running_mean and not training:
        return affine(input, ready[1], ready[2])
    if training or running_mean is None:
        raise ExecutionError(
            f"{where}: BatchNorm without running statistics mixes the samples of a batch, so one θ per sample has no "
            "meaning for it. Give one θ for the whole batch, or use track_running_stats=True"
        )
    if running_var is None or not _per_sample(batch, weight, bias):
        y = F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps)
        return channels(batch, y, weight, bias)
    # Statistics, scale and shift are one multiply and one add per channel, as in torch's own kernel.
    alpha = (running_var + eps).rsqrt()
    alpha = alpha if weight is None else vector_values(batch, weight) * alpha
    shift = -running_mean * alpha
    shift = shift if bias is None else vector_values(batch, bias) + shift
    return affine(input, alpha, shift)


def instance_norm(
    batch: Batch,
    where: str,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Operand = None,
    bias: Operand = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.instance_norm`."""
    batch.check(input, where)
    y = F.instance_norm(input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return channels(batch, y, weight, bias)


def group_norm(
    batch: Batch,
    where: str,
    input: Tensor,
    num_groups: int,
    weight: Operand = None,
    bias: Operand = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.group_norm`."""
    batch.check(input, where)
    return channels(batch, F.group_norm(input, num_groups, None, None, eps), weight, bias)


def _trailing(batch: Batch, y: Tensor, weight: Operand, bias: Operand) -> Tensor:
    def shaped(operand: Tensor | WeightExpression) -> Tensor:
        value = vector_values(batch, operand)
        dims = operand.base.dim() if isinstance(operand, WeightExpression) else operand.dim()
        if value.dim() == dims:
            return value.to(y.dtype)
        return value.to(y.dtype).reshape(batch.size, *(1,) * (y.dim() - 1 - dims), *value.shape[1:])

    y = y if weight is None else y * shaped(weight)
    return y if bias is None else y + shaped(bias)


def layer_norm(
    batch: Batch,
    where: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Operand = None,
    bias: Operand = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.layer_norm`."""
    batch.check(input, where)
    return _trailing(batch, F.layer_norm(input, list(normalized_shape), None, None, eps), weight, bias)


def rms_norm(
    batch: Batch,
    where: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Operand = None,
    eps: float | None = None,
) -> Tensor:
    """`F.rms_norm`."""
    batch.check(input, where)
    return _trailing(batch, F.rms_norm(input, list(normalized_shape), None, eps), weight, None)


HANDLERS: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
}
