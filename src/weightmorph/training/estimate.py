"""Training of the head that estimates θ, together with the transform or alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..estimator import Estimator
from ..inputs import InputTransform
from ..model import Conditioned
from ..parameters import Theta
from .data import Batches, draw, preserved_rng, seeded
from .plan import Plan

__all__ = ["attach_default", "head_loss", "head_theta"]


def head_theta(plan: Plan, size: int, step: int) -> Theta:
    """θ of one step for the head. Each image gets its own θ, from which the head learns most.

    Only a function that is used with `settings=1` gets one θ for all images, because it may not take more.
    """
    shared = plan.options.settings == 1 and not isinstance(plan.input_transform, InputTransform)
    return draw(plan.space, size, 1 if shared else None, plan.seed, step, "parameter")


def attach_default(plan: Plan) -> None:
    """Give the model a head that fits the first batch; its first weights follow from the seed."""
    model = plan.module
    assert isinstance(model, Conditioned)
    with preserved_rng(), torch.no_grad():
        ((x, _),) = Batches(plan.source, 0, 1)
        seeded(plan.seed, "estimator")
        x = x.to(model.device)
        turned = plan.input_transform(x, **head_theta(plan, len(x), 0))
        head = Estimator.for_base(model.frozen(), model.slots, model.space, turned)
    model.estimator = head.train(model.training)


def head_loss(plan: Plan, x: Tensor, theta: Theta) -> Tensor:
    """The head's loss on a batch of images, transformed by θ: a scalar."""
    model, head = plan.module, plan.estimator
    assert isinstance(model, Conditioned) and head is not None
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        turned = plan.input_transform(x, **theta)
        features = head.read(model.frozen(), (turned,), {})
        true = {name: value.to(turned.device).expand(len(x)) for name, value in theta.items()}
    return head.loss(features, true)
