"""Autocast and memory formats: the routes give what the base would."""

from __future__ import annotations

import pytest
import torch
from zoo import ANGLES, Bend, block, forced, one_by_one

import weightmorph as wm


@pytest.mark.parametrize("route", ["factored", "dense", "product", "bucketed"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_autocast_casts_as_the_base_would(route: str, grad: bool) -> None:
    """bfloat16 on every route, near the full result, gradients in full precision; θ is never rounded to it."""
    model, x = block()
    model, x = model.float(), x.float()
    theta = torch.tensor([33.0, 140.0]).repeat_interleave(4) if route == "bucketed" else ANGLES
    x = torch.cat([x, x[:2]]) if route == "bucketed" else x
    with forced(model, route), torch.set_grad_enabled(grad):
        exact = model(x, angle=theta)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, angle=theta)
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * float(exact.detach().abs().max()))
        if grad:
            rough.float().square().sum().backward()
            assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_formats(channels_last: bool) -> None:
    """An input in channels-last order is no reason for another result."""
    model, x = block()
    expected = model(x, angle=ANGLES)
    given = x.contiguous(memory_format=torch.channels_last) if channels_last else x.transpose(2, 3).contiguous().mT
    for route in ("factored", "dense", "product", "rule"):
        with forced(model, route):
            torch.testing.assert_close(model(given, angle=ANGLES), expected, rtol=1e-10, atol=1e-10)


def test_a_users_own_module_runs_beside_ours() -> None:
    """Dense terms keep their own way in a sum; each part on its best route is still the sum."""
    model, x = block(wm.Warp() + wm.LowRank(2) + wm.Custom(Bend(), anchored=True) + wm.Scale())
    for route in ("rule", "dense", "product"):
        with forced(model, route):
            torch.testing.assert_close(
                model(x, angle=ANGLES), one_by_one(model, x, {"angle": ANGLES}), rtol=1e-10, atol=1e-10
            )


def test_weights_of_one_setting_are_in_full_precision_under_autocast() -> None:
    """`encode`, `weights`, `at` and `bake` make the same weights inside and outside of it: the layers cast."""
    model = block()[0].float()
    outside = model.weights(angle=33.0)
    with torch.autocast("cpu", torch.bfloat16):
        code, inside, at = model.encode(angle=33.0), model.weights(angle=33.0), model.at(angle=33.0)
        baked = model.bake(angle=33.0)
    assert torch.equal(code, model.encode(angle=33.0))
    for name, weight in outside.items():
        assert torch.equal(inside[name], weight)
        assert torch.equal(at.state_dict()[name], weight) and torch.equal(baked.state_dict()[name], weight)
