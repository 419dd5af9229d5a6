"""Patches in each layout, and the convolution with mixed taps as a product over them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pieces import LAYERS, OPERATIONS, draw, operation
from torch import Tensor

from weightmorph.layers import Convolution, using
from weightmorph.layers.mixed import mixed_convolution
from weightmorph.layers.patches import PatchGeometry, col2im, im2col, im2col_channels_last, pad_channels_last

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's note on even kernels


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", [name for name, found in OPERATIONS.items() if found.slot.kind == "conv"])
def test_patches_in_each_layout_are_torchs(layer: str) -> None:
    """`im2col` is a convolution with one-hot kernels; channels last are the same, and `col2im` is the transpose."""
    found = LAYERS[layer]
    slot, op = found.slot, operation(found)
    assert isinstance(op, Convolution)
    single = replace(op, groups=1)
    x = draw(2, *found.x)
    for grow in {(), found.grow}:
        g: PatchGeometry = op.geometry(x, slot.kernel, grow)
        taps = torch.Size(g.kernel).numel()
        one_hot = torch.eye(taps, dtype=x.dtype).reshape(taps, 1, *g.kernel)
        seen = single(x.reshape(-1, 1, *x.shape[2:]), one_hot, grow=grow)  # (B·C, T', …)
        expected = seen.reshape(2, x.shape[1], taps, g.positions)
        close(im2col(x, g), expected)
        last = pad_channels_last(x, g)
        pixels = im2col_channels_last(last, g)
        close(pixels.reshape(2, g.positions, taps, -1), expected.permute(0, 3, 2, 1))
        out = torch.empty_like(pixels, memory_format=torch.contiguous_format)
        close(im2col_channels_last(last, g, out), pixels)
        grad = torch.randn_like(out)
        close((col2im(grad, g, x.shape[2:]) * x).sum(), (grad * pixels).sum())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("update", [True, False], ids=["low_rank", "taps_alone"])
def test_mixed_patches_are_the_mixed_convolution(dims: int, update: bool) -> None:
    """Values, gradients and gradients of gradients, over strides, dilation, padding and a grown support."""
    torch.manual_seed(dims)
    stride, padding, dilation = (2, 1, 1)[:dims], (1, 0, 2)[:dims], (1, 2, 1)[:dims]
    grow = ((0, 1), (1, 1), (0, 0))[:dims]
    size, c, o, t, r = 5, 3, 4, 3**dims, 2
    op = Convolution(dims, stride, padding, dilation, 1)
    x = draw(size, c, *(7, 6, 5)[:dims]).requires_grad_()
    frozen = draw(o, c, *(3,) * dims)
    g = op.geometry(x, (3,) * dims, grow)
    wide = torch.Size(g.kernel).numel()
    mix = draw(size, t, wide).requires_grad_()
    left, right = draw(size, o, r).requires_grad_(), draw(r, wide * c).requires_grad_()
    flat = frozen.reshape(o, c * t)

    def fast(*given: Tensor) -> Tensor:
        return mixed_convolution(given[0], flat, given[1], (given[2], given[3]) if update else None, g)

    inputs = (x, mix, left, right) if update else (x, mix)
    rows = []
    for b in range(size):
        dense = (frozen.reshape(o * c, t) @ mix[b]).reshape(o, c, *g.kernel)
        if update:
            dense = dense + (left[b] @ right).reshape(o, wide, c).transpose(1, 2).reshape(dense.shape)
        rows.append(op(x[b : b + 1], dense, grow=grow))
    for cache in (1, 2**40):
        with using(cache=cache):
            torch.testing.assert_close(fast(*inputs), torch.cat(rows), rtol=1e-12, atol=1e-12)
            assert torch.autograd.gradcheck(fast, inputs, fast_mode=True)
            assert torch.autograd.gradgradcheck(fast, inputs, fast_mode=True)


@pytest.mark.parametrize("leaf", range(4))
def test_mixed_patches_give_each_gradient_alone(leaf: int) -> None:
    """Whichever of the inputs has a gradient, it is the same as with all of them."""
    op = Convolution(2, (1, 1), (1, 1), (1, 1), 1)
    x, mix = draw(3, 2, 5, 4), draw(3, 9, 9)
    left, right, flat = draw(3, 4, 2), draw(2, 18), draw(4, 18)
    g = op.geometry(x, (3, 3))
    inputs = [t.requires_grad_() for t in (x, mix, left, right)]

    def fast(given: list[Tensor]) -> Tensor:
        return mixed_convolution(given[0], flat, given[1], (given[2], given[3]), g).tanh().sum()

    expected = torch.autograd.grad(fast(inputs), inputs)[leaf]
    alone = [t if number == leaf else t.detach() for number, t in enumerate(inputs)]
    with using(cache=1):
        (got,) = torch.autograd.grad(fast(alone), alone[leaf])
    close(got, expected)
