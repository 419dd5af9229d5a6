r"""Input transforms $T_\theta(x)$: batched, differentiable in θ and in x, with one θ for all images or one per image.

An [`InputTransform`][weightmorph.inputs.InputTransform] holds a
[`ParameterSpace`][weightmorph.ParameterSpace] and is called like the networks conditioned on it:

    >>> import torch
    >>> from weightmorph.inputs import Blur, Compose, Rotate
    >>> turn = Rotate()
    >>> turn(torch.zeros(2, 3, 28, 28), angle=[0.0, 30.0]).shape
    torch.Size([2, 3, 28, 28])
    >>> list(Compose([turn, Blur(high=2.0)]).parameters)
    ['angle', 'blur']

At the anchor the output of every transform is its input, bit for bit.
"""

from .base import Compose, InputTransform, Inverse
from .functional import gaussian_blur, gaussian_kernel, resample
from .geometric import Flip, Rotate, Shear, Translate, Zoom
from .photometric import Blur, Brightness, Contrast, Noise

__all__ = [
    "Blur",
    "Brightness",
    "Compose",
    "Contrast",
    "Flip",
    "InputTransform",
    "Inverse",
    "Noise",
    "Rotate",
    "Shear",
    "Translate",
    "Zoom",
    "gaussian_blur",
    "gaussian_kernel",
    "resample",
]
