"""Training a head that estimates θ, beside the transform or alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..estimation import attach
from ..inputs import InputTransform
from ..model import Conditioned
from ..parameters import Theta
from .data import Batches, draw, preserved_rng, seeded
from .plan import Plan

__all__ = ["attach_first", "head_loss"]


def _settings(plan: Plan) -> int | None:
    """One θ per image, except for a function that may be used to one for all."""
    return 1 if plan.settings == 1 and not isinstance(plan.input_transform, InputTransform) else None


def drawn(plan: Plan, size: int, step: int) -> Theta:
    """θ of one step for the head, which learns most if every image has its own."""
    return draw(plan.space, size, _settings(plan), plan.seed, step, "parameter")


def attach_first(plan: Plan) -> None:
    """Make a head that fits the first batch, its start following from the seed."""
    model = plan.module
    assert isinstance(model, Conditioned)
    with preserved_rng():
        ((x, _),) = Batches(plan.source, 0, 1)
        seeded(plan.seed, "estimator")
        with torch.no_grad():
            x = x.to(model.device)
            attach(model, plan.input_transform(x, **drawn(plan, len(x), 0)))


def head_loss(plan: Plan, x: Tensor, theta: Theta) -> Tensor:
    """The head's loss on images, transformed anew by θ."""
    model, head = plan.module, plan.estimator
    assert isinstance(model, Conditioned) and head is not None
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        turned = plan.input_transform(x, **theta)
        features = head.read(model.frozen(), (turned,), {})
        true = {name: value.to(turned.device).expand(len(x)) for name, value in theta.items()}
    return head.loss(features, true)
