"""The question that started the project, with the asker's class names and numbers.

*I have a pre-trained CNN, fixed. I want a second, trainable network that transforms the CNN's filter weights depending
on a parameter. My transformation network gets no gradient.* (discuss.pytorch.org, thread 127906)

Assigning the output to `conv.weight.data` cuts the graph. `condition` does not assign: the CNN is called with the
computed weights, and the gradient arrives.

    python examples/forum_question.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import weightmorph as wm


class CNN(nn.Module):
    """The fixed network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x).flatten(1)


class TransformationNet(nn.Module):
    """The asker's: nine taps and one parameter in, nine taps out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 9, bias=False)

    def forward(self, x: Tensor, param: Tensor) -> Tensor:
        return self.linear(torch.cat([x, param], dim=1))  # (filters, 9), (filters, 1) -> (filters, 9)


def two_steps() -> None:
    """The asker's script: the gradient is there, and training moves the transformation network alone."""
    cnn, transformation = CNN(), TransformationNet()
    before = cnn.conv1.weight.detach().clone()
    model = wm.condition(cnn, {"p": wm.Interval(0.0, 2.0, encode="raw")}, transform=wm.PerFilter(transformation))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, target = torch.ones(1, 1, 3, 3), torch.zeros(1, 10)
    for step, p in enumerate((1.0, 2.0)):
        loss = (model(inputs, p=p) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        print(f"step {step}: loss {loss.item():.4f}, gradient of TransformationNet.linear.weight:")
        print(transformation.linear.weight.grad)
        optimizer.step()
    print("the CNN's own weights are as they were:", torch.equal(cnn.conv1.weight, before))


def why_it_cannot_turn() -> None:
    r"""A linear layer on `[weights, θ]` adds the same kernel to every filter, whatever θ is.

    $A [w; \theta] = A_w w + A_\theta \theta$: the part that sees the filter does not see θ, and the part that sees θ
    does not see the filter. A turned filter needs their product, $w R(\theta)$.
    """
    transformation = TransformationNet()
    filters = torch.randn(5, 9)
    with torch.no_grad():
        moved = transformation(filters, torch.full((5, 1), 2.0)) - transformation(filters, torch.full((5, 1), 0.0))
    print("\nwhat θ = 2 adds to five different filters (rows are equal):")
    print(moved[:, :4])

    space = {"angle": wm.Angle("deg")}
    corner = torch.zeros(1, 1, 3, 3)
    corner[0, 0, 0, 0] = 1.0
    net = nn.Conv2d(1, 1, 3, bias=False)
    net.weight.data.copy_(corner)  # fine here: it is the fixed network that is being made, no graph to cut
    turned = wm.condition(net, space, wm.Warp()).weights(angle=90.0)["weight"]
    print("Warp turns each filter by the angle, before any training; a corner at 90 degrees:")
    print((turned.detach().round(decimals=2) + 0.0).reshape(3, 3))
    print('and PerFilter("linear"), m(w, c) = sum_k c_k L_k w, can learn to, for it multiplies the filter by θ.')


def main() -> None:
    """Run both parts."""
    torch.manual_seed(0)
    two_steps()
    why_it_cannot_turn()


if __name__ == "__main__":
    main()
