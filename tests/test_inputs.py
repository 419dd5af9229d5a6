"""Input transforms: each against its formula written again in NumPy, and the laws that all of them keep."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from weightmorph import affine, inputs
from weightmorph.errors import (
    InputError,
    MissingParameterError,
    OutOfRangeWarning,
    ParameterError,
    ParameterLengthError,
    ParameterValueError,
    UnknownParameterError,
    WeightmorphError,
)
from weightmorph.inputs import (
    Blur,
    Brightness,
    Compose,
    Contrast,
    Flip,
    InputTransform,
    Inverse,
    Noise,
    Rotate,
    Shear,
    Translate,
    Zoom,
)
from weightmorph.parameters import Angle, Categorical, Interval, LogInterval, ParameterSpace


@dataclass(frozen=True)
class Case:
    """A transform, three settings for it (the second at its anchor), and whether θ has a derivative."""

    name: str
    make: Callable[[], InputTransform]
    theta: dict[str, list[Any]]
    smooth: bool = True

    def __str__(self) -> str:
        return self.name


def everything() -> InputTransform:
    return Compose([Flip(), Rotate(), Zoom(), Brightness(), Compose([Shear(names=("sx", "sy")), Blur(high=1.5)])])


CASES = [
    Case("rotate", Rotate, {"angle": [31.0, 0.0, -123.4]}),
    Case("rotate_rad", lambda: Rotate(parameter=Angle("rad"), name="tilt"), {"tilt": [0.3, 0.0, 2.0]}),
    Case(
        "rotate_bicubic", lambda: Rotate(-50, 50, mode="bicubic", padding_mode="border"), {"angle": [31.0, 0.0, -7.3]}
    ),
    Case("zoom", Zoom, {"zoom": [0.61, 1.0, 1.37]}),
    Case("zoom_reflection", lambda: Zoom(0.4, 3.0, padding_mode="reflection"), {"zoom": [0.47, 1.0, 2.31]}),
    Case("shear", Shear, {"shear_x": [0.31, 0.0, -0.2], "shear_y": [-0.17, 0.0, 0.41]}),
    Case(
        "shear_one",
        lambda: Shear(parameters={"slant": Interval(-1, 1, affine="shear_y")}, padding_mode="reflection"),
        {"slant": [0.31, 0.0, -0.83]},
    ),
    Case("translate", Translate, {"dx": [1.3, 0.0, -2.6], "dy": [0.4, 0.0, 3.3]}),
    Case("flip_x", Flip, {"flip": ["yes", "no", "yes"]}, smooth=False),
    Case("flip_y", lambda: Flip("y", name="mirror"), {"mirror": [1, 0, 1]}, smooth=False),
    Case("blur", Blur, {"blur": [0.8, 0.0, 2.3]}),
    Case("blur_zeros", lambda: Blur(3.0, padding_mode="zeros"), {"blur": [0.8, 0.0, 2.3]}),
    Case("blur_border", lambda: Blur(3.0, padding_mode="border"), {"blur": [0.8, 0.0, 2.3]}),
    Case("noise", lambda: Noise(seed=3), {"noise": [0.1, 0.0, 0.5]}),
    Case("brightness", Brightness, {"brightness": [0.25, 0.0, -0.4]}),
    Case("contrast", Contrast, {"contrast": [0.55, 1.0, 1.9]}),
    Case("contrast_zero", lambda: Contrast(-0.5, 2.0), {"contrast": [0.0, 1.0, -0.3]}),
    Case("undo_rotate", lambda: undo(Rotate()), {"angle": [31.0, 0.0, -123.4]}),
    Case("undo_zoom", lambda: undo(Zoom()), {"zoom": [0.61, 1.0, 1.37]}),
    Case("undo_contrast", lambda: undo(Contrast()), {"contrast": [0.55, 1.0, 1.9]}),
    # Anchors other than the neutral value: the transform acts relative to them.
    Case("rotate_anchored", lambda: Rotate(parameter=Angle(anchor=33.3)), {"angle": [31.0, 33.3, -123.4]}),
    Case(
        "zoom_anchored",
        lambda: Zoom(parameter=LogInterval(0.1, 0.9, anchor=0.3, affine="zoom")),
        {"zoom": [0.17, 0.3, 0.83]},
    ),
    Case(
        "translate_anchored",
        lambda: Translate(parameters={"right": Interval(-1, 1, anchor=0.1, affine="translate_x")}),
        {"right": [0.6, 0.1, -0.7]},
    ),
    Case("blur_anchored", lambda: Blur(parameter=Interval(0.7, 2.0)), {"blur": [1.1, 0.7, 1.9]}),
    Case(
        "noise_anchored", lambda: Noise(parameter=LogInterval(0.1, 2.0, anchor=0.1), seed=0), {"noise": [0.3, 0.1, 1.9]}
    ),
    Case(
        "brightness_anchored",
        lambda: Brightness(parameter=Interval(0.1, 0.7), name="glow"),
        {"glow": [0.3, 0.1, 0.7]},
    ),
    Case(
        "contrast_anchored",
        lambda: Contrast(parameter=Interval(-3, -0.3, anchor=-0.7)),
        {"contrast": [-2.0, -0.7, -0.3]},
    ),
    Case(
        "flip_anchored",
        lambda: Flip(parameter=Categorical(("left", "right"), anchor="right", affine="flip_x")),
        {"flip": ["left", "right", "left"]},
        smooth=False,
    ),
    Case(
        "compose",
        everything,
        {
            "flip": [1, 0, 0],
            "angle": [31.0, 0.0, -123.4],
            "zoom": [0.81, 1.0, 1.2],
            "brightness": [0.2, 0.0, -0.1],
            "sx": [0.1, 0.0, -0.22],
            "sy": [0.13, 0.0, 0.21],
            "blur": [0.9, 0.0, 1.1],
        },
        smooth=False,
    ),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The images are tiny: starting threads costs more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


every_case = pytest.mark.parametrize("case", CASES, ids=str)


def undo(transform: InputTransform) -> InputTransform:
    inverse = transform.inverse()
    assert inverse is not None
    return inverse


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def smooth_images(size: tuple[int, int] = (60, 64)) -> Tensor:
    """Two soft blobs off the centre, one per channel, that are next to nothing at the edge."""
    rows = (torch.arange(size[0], dtype=torch.float64) - size[0] / 2)[:, None]
    columns = torch.arange(size[1], dtype=torch.float64) - size[1] / 2
    blobs = [torch.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 72) for r, c in ((2.0, -3.0), (-1.0, 4.0))]
    return torch.stack(blobs)[None]


# --- the formulas, written again ------------------------------------------------------------------------------------


def outside(i: int, n: int, padding_mode: str) -> int | None:
    """Where a pixel outside the image takes its value from."""
    if 0 <= i < n:
        return i
    if padding_mode == "zeros":
        return None
    if padding_mode == "border":
        return min(max(i, 0), n - 1)
    while not 0 <= i < n:
        i = -1 - i if i < 0 else 2 * n - 1 - i
    return i


def pixel(image: np.ndarray, i: int, j: int, padding_mode: str) -> float:
    row, column = outside(i, image.shape[0], padding_mode), outside(j, image.shape[1], padding_mode)
    return 0.0 if row is None or column is None else float(image[row, column])


def tent(t: float) -> float:
    return max(0.0, 1 - abs(t))


def cubic(t: float, a: float = -0.75) -> float:
    """Keys' kernel with torch's constant."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def numpy_resample(image: np.ndarray, matrix: np.ndarray, mode: str, padding_mode: str) -> np.ndarray:
    """One channel, pixel by pixel: what is shown at q is what was at the position that the map takes to q."""
    height, width = image.shape
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    kernel, reach = (tent, 1) if mode == "bilinear" else (cubic, 2)
    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x, y, _ = back @ [j - (width - 1) / 2, i - (height - 1) / 2, 1]
            u, v = x + (width - 1) / 2, y + (height - 1) / 2
            for m in range(math.floor(v) - reach + 1, math.floor(v) + reach + 1):
                for n in range(math.floor(u) - reach + 1, math.floor(u) + reach + 1):
                    result[i, j] += kernel(v - m) * kernel(u - n) * pixel(image, m, n, padding_mode)
    return result


def numpy_blur(image: np.ndarray, sigma: float, radius: int, padding_mode: str) -> np.ndarray:
    """One channel, pixel by pixel, with the kernel as a square."""
    if sigma == 0:
        return image.copy()
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    result = np.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            for r, m in enumerate(offsets):
                for s, n in enumerate(offsets):
                    result[i, j] += kernel[r, s] * pixel(image, i + int(m), j + int(n), padding_mode)
    return result


def matrix_of(name: str, value: float) -> np.ndarray:
    """The maps of the plane, in pixels from the centre, y downwards."""
    c, s = math.cos(value), math.sin(value)
    return {
        "rotation": np.array([[c, s, 0], [-s, c, 0]]),
        "zoom": np.array([[value, 0, 0], [0, value, 0]]),
        "shear_x": np.array([[1, value, 0], [0, 1, 0]]),
        "shear_y": np.array([[1, 0, 0], [value, 1, 0]]),
        "translate_x": np.array([[1, 0, value], [0, 1, 0]]),
        "translate_y": np.array([[1, 0, 0], [0, 1, value]]),
    }[name]


def after(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return second @ np.vstack([first, [0, 0, 1]])


def close(got: Tensor, expected: np.ndarray | Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(5, 8), (7, 4)])
def test_resample_agrees_with_a_loop_over_pixels(mode: Any, padding_mode: Any, size: tuple[int, int]) -> None:
    """$y(q) = x(A^{-1}(q - t))$ in isotropic pixels from the centre, whatever the shape, also far outside."""
    x = images(3, 1, *size)
    matrices = [
        after(after(matrix_of("rotation", 0.4), matrix_of("zoom", 0.7)), matrix_of("translate_x", 1.3)),
        after(matrix_of("shear_y", 0.3), matrix_of("translate_y", -2.6)),
        after(matrix_of("zoom", 0.31), matrix_of("shear_x", 0.2)),
    ]
    got = inputs.resample(x, torch.tensor(np.stack(matrices)), mode, padding_mode)
    expected = [numpy_resample(x[b, 0].numpy(), m, mode, padding_mode) for b, m in enumerate(matrices)]
    close(got[:, 0], np.stack(expected))


@pytest.mark.parametrize(
    ("transform", "theta", "matrix"),
    [
        (Rotate(), {"angle": 37.0}, matrix_of("rotation", math.radians(37))),
        (Rotate(parameter=Angle("rad")), {"angle": 0.5}, matrix_of("rotation", 0.5)),
        (Zoom(), {"zoom": 1.7}, matrix_of("zoom", 1.7)),
        (
            Shear(),
            {"shear_x": 0.3, "shear_y": -0.2},
            after(matrix_of("shear_x", 0.3), matrix_of("shear_y", -0.2)),
        ),
        (Translate(), {"dx": 1.3, "dy": -0.4}, after(matrix_of("translate_x", 1.3), matrix_of("translate_y", -0.4))),
        (Rotate(parameter=Angle(anchor=30.0)), {"angle": 37.0}, matrix_of("rotation", math.radians(7))),
        (
            Zoom(parameter=LogInterval(0.5, 4, anchor=2.0, affine="zoom")),
            {"zoom": 3.0},
            matrix_of("zoom", 1.5),
        ),
    ],
    ids=["rotate", "radians", "zoom", "shear", "translate", "anchored_rotate", "anchored_zoom"],
)
def test_geometric_transforms_agree_with_a_loop_over_pixels(
    transform: InputTransform, theta: dict[str, float], matrix: np.ndarray
) -> None:
    """Each is the resampling under its own map, and `affine` is that map; the inverse's is its inverse."""
    x = images(2, 2, 6, 9)
    expected = np.stack([[numpy_resample(c.numpy(), matrix, "bilinear", "zeros") for c in image] for image in x])
    close(transform(x, **theta), expected)
    theta64 = {name: torch.tensor(value, dtype=torch.float64) for name, value in theta.items()}
    map_ = transform.affine(**theta64)
    assert map_ is not None and map_.dtype == torch.float64
    close(map_, matrix)
    back = undo(transform).affine(**theta64)
    assert back is not None
    close(affine.compose(back, map_), affine.identity(torch.zeros((), dtype=torch.float64)))


@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
@pytest.mark.parametrize("zoom", [0.5, 0.7])
def test_zooming_out_blurs_first(padding_mode: Any, zoom: float) -> None:
    """Shrinking is a Gaussian of variance $(\\theta^{-2} - 1) / 4$, then the resampling."""
    x = images(1, 1, 8, 7)
    transform = Zoom(0.5, 2.0, padding_mode=padding_mode)
    blurred = numpy_blur(x[0, 0].numpy(), math.sqrt((zoom**-2 - 1) / 4), transform.radius, padding_mode)
    expected = numpy_resample(blurred, matrix_of("zoom", zoom), "bilinear", padding_mode)
    close(transform(x, zoom=torch.tensor(zoom, dtype=torch.float64))[0, 0], expected)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_blur_agrees_with_a_loop_over_pixels(padding_mode: Any) -> None:
    """Convolution with a sampled, normalised Gaussian; the radius may be larger than the image."""
    x = images(3, 2, 5, 6)
    sigmas = [0.0, 0.6, 1.7]
    transform = Blur(high=1.75, padding_mode=padding_mode)
    assert transform.radius == 7
    got = transform(x, blur=sigmas)
    for b, sigma in enumerate(sigmas):
        for c in range(2):
            close(got[b, c], numpy_blur(x[b, c].numpy(), sigma, 7, padding_mode))


def test_brightness_contrast_and_flip_agree_with_numpy() -> None:
    """$x + \\theta$; $m + \\theta (x - m)$ about the mean over channels and pixels; pixels exchanged."""
    x = images(2, 3, 4, 5)
    n = x.numpy()
    offset, factor = np.array([0.3, -0.2]), np.array([0.6, 1.8])
    close(Brightness()(x, brightness=offset.tolist()), n + offset[:, None, None, None])
    mean = n.mean((1, 2, 3), keepdims=True)
    close(Contrast()(x, contrast=factor.tolist()), mean + factor[:, None, None, None] * (n - mean))
    assert np.array_equal(Flip()(x, flip="yes").numpy(), n[..., ::-1])
    assert np.array_equal(Flip("y")(x, flip=["yes", "no"]).numpy(), np.stack([n[0, :, ::-1], n[1]]))


def test_noise_is_gaussian_with_the_stated_deviation() -> None:
    """Mean 0 and standard deviation θ, per image; what is added scales with θ and is the same otherwise."""
    x = images(2, 1, 100, 100)
    y = Noise(seed=0)(x, noise=[0.1, 0.4]) - x
    assert y.mean((1, 2, 3)).abs().max() < 0.02
    torch.testing.assert_close(y.std((1, 2, 3)), torch.tensor([0.1, 0.4]).double(), rtol=0.03, atol=0)
    inside = (y[1].abs() < 0.4).double().mean()
    assert abs(inside - 0.683) < 0.02  # a normal law, not only its first two moments
    close(Noise(seed=0)(x, noise=[0.2, 0.2])[0] - x[0], 2 * y[0])


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quarter_turns_are_rot90(size: int, turns: int, mode: Any, dtype: torch.dtype) -> None:
    """On a square image 90° counter-clockwise is `torch.rot90(x, 1, (2, 3))`, borders included."""
    x = images(2, 3, size, size, dtype=dtype)
    close(Rotate(mode=mode)(x, angle=90.0 * turns), torch.rot90(x, turns, (2, 3)), 1e-5)


def test_a_quarter_turn_of_a_wide_image_is_isotropic() -> None:
    """A non-square image turns without being stretched: its central square is that of `rot90`."""
    x = images(1, 1, 5, 9)
    square = x[..., 2:7]
    close(Rotate()(x, angle=90)[..., 2:7], torch.rot90(square, 1, (2, 3)), 1e-6)


def test_whole_pixel_shifts_and_doubling_are_exact() -> None:
    """Content goes right and down for positive shifts; zoom 2 makes things twice as large, to all sides."""
    x = images(1, 1, 6, 7)
    expected = torch.zeros_like(x)
    expected[..., 1:, 2:] = x[..., :-1, :-2]
    close(Translate()(x, dx=2, dy=1), expected)
    spike = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    spike[..., 4, 6] = spike[..., 3, 4] = 1  # two right of the centre; one above it
    zoomed = Zoom()(spike, zoom=2)
    assert zoomed[0, 0, 4, 8] == zoomed[0, 0, 2, 4] == 1


@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("zoom", [0.3, 0.77, 1.0, 2.6])
def test_zoom_does_not_change_a_constant(zoom: float, mode: Any, padding_mode: Any) -> None:
    """A grey wall stays grey at every distance."""
    x = torch.full((1, 2, 9, 6), 0.7, dtype=torch.float64)
    close(Zoom(0.3, 3.0, mode=mode, padding_mode=padding_mode)(x, zoom=zoom), x)


def test_zooming_out_does_not_alias() -> None:
    """Stripes too fine for the smaller image come out grey; without the blur they would come out black or white."""
    stripes = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    stripes[..., ::2] = 1
    half = Zoom(padding_mode="reflection")(stripes, zoom=0.5)
    plain = inputs.resample(stripes, affine.zoom(torch.tensor(0.5, dtype=torch.float64)), padding_mode="reflection")
    middle = (..., slice(10, 23), slice(10, 23))
    assert (plain[middle] - 0.5).abs().max() > 0.49
    assert (half[middle] - 0.5).abs().max() < 0.05


def test_zooming_out_keeps_the_light() -> None:
    """With zeros outside, the sum shrinks with the area and by no more: the blur's spill over the edge is not lost."""
    x = torch.ones(1, 1, 40, 40, dtype=torch.float64)
    for zoom in (0.5, 0.8):
        assert Zoom()(x, zoom=zoom).sum().item() == pytest.approx(1600 * zoom**2, rel=1e-3)


def test_the_kernel_for_zooming_out_reaches_as_far_as_either_direction_needs() -> None:
    """Four standard deviations at the smallest factor, relative to the anchor, there and back; none if not needed."""
    assert Zoom(0.5, 1.5).radius == Zoom(1.0, 2.0).radius == math.ceil(4 * math.sqrt(3 / 4))
    assert Zoom(parameter=LogInterval(2.0, 6.0, anchor=4.0, affine="zoom")).radius == Zoom(0.5, 1.5).radius
    x = images(1, 1, 9, 9)
    anchored = Zoom(parameter=LogInterval(1.0, 4.0, anchor=2.0, affine="zoom"))
    close(anchored(x, zoom=1.2), Zoom()(x, zoom=0.6), 1e-6)


def test_blur_with_reflection_keeps_the_mean() -> None:
    """Each pixel gives away as much as it has."""
    x = images(2, 3, 5, 11)
    close(Blur()(x, blur=[4.0, 1.3]).mean((-1, -2)), x.mean((-1, -2)))


def test_a_blur_anchored_above_zero_adds_what_is_missing() -> None:
    """Variances of Gaussian blurs add: from 1.5 px to 2.5 px is a blur of 2 px."""
    x = images(1, 1, 9, 9)
    anchored = Blur(parameter=Interval(1.5, 2.5))
    assert anchored.radius == Blur(high=2.0).radius == 8
    close(anchored(x, blur=2.5), Blur(high=2.0)(x, blur=2.0))


# --- laws that all of them keep --------------------------------------------------------------------------------------


@every_case
def test_per_sample_equals_each_alone(case: Case) -> None:
    """One θ per image is the same as image after image, in any form that θ may take."""
    transform, x = case.make(), images(3, 2, 8, 9)
    got = transform(x, **case.theta)
    for i in range(3):
        one = {name: values[i] for name, values in case.theta.items()}
        if "noise" not in case.name:  # a seed gives image i noise of its own; seen below in its place
            close(got[i], transform(x[i : i + 1], **one)[0])
        if not any(isinstance(value, str) for value in one.values()):
            tensors = {name: torch.tensor(float(value), dtype=torch.float64) for name, value in one.items()}
            close(got[i], transform(x, **tensors)[i])
            close(got[i], transform(x, **{name: value.repeat(3) for name, value in tensors.items()})[i])


@every_case
def test_sample_i_moves_output_i_and_no_other(case: Case) -> None:
    """The other outputs are the same to the last bit."""
    transform, x = case.make(), images(3, 2, 8, 9)
    first = transform(x, **case.theta)
    swapped = transform(x, **{name: [values[0], values[1], values[0]] for name, values in case.theta.items()})
    assert torch.equal(first[:2], swapped[:2])
    moved = {name for name, values in case.theta.items() if values[0] != values[2]}
    assert torch.equal(first[2], swapped[2]) == (not moved)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_at_the_anchor_the_output_is_the_input(case: Case, dtype: torch.dtype) -> None:
    """Bit for bit, the sign of zero included, whether θ is shared or the neighbours are elsewhere."""
    transform, x = case.make(), images(3, 2, 8, 9, dtype=dtype)
    x[1, 0, 2, 3:5] = torch.tensor([0.0, -0.0])
    mixed = transform(x, **case.theta)
    shared = transform(x, **{name: values[1] for name, values in case.theta.items()})
    anchored = transform(x, **transform.parameters.anchor)
    for got, expected in ((mixed[1], x[1]), (shared, x), (anchored, x)):
        assert got.dtype == dtype
        assert torch.equal(got, expected)
        assert torch.equal(got.signbit(), expected.signbit())
    assert not torch.equal(mixed[0], x[0])
    assert not torch.equal(mixed[2], x[2])


def test_a_full_turn_is_the_anchor() -> None:
    """360° and -720° are 0° exactly, in both units."""
    x = images(2, 1, 5, 5, dtype=torch.float32)
    assert torch.equal(Rotate()(x, angle=[360.0, -720.0]), x)
    assert torch.equal(Rotate(parameter=Angle("rad"))(x, angle=math.tau), x)


def test_at_the_anchor_a_bad_pixel_does_not_spread() -> None:
    """Infinite and missing pixels pass through unchanged, and leave their neighbours alone."""
    x = images(1, 1, 5, 5)
    x[0, 0, 2, 2], x[0, 0, 1, 1] = math.inf, math.nan
    for transform in (Rotate(), Zoom(), Blur(), Contrast()):
        got = transform(x, **transform.parameters.anchor)
        assert torch.equal(got.isnan(), x.isnan())
        assert torch.equal(got.nan_to_num(0.5), x.nan_to_num(0.5))


@pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=str)
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    """In θ and in x at once, away from the anchor."""
    transform = case.make()
    names = list(case.theta)
    x = images(2, 1, 4, 5).requires_grad_()
    theta = [torch.tensor([case.theta[n][0], case.theta[n][2]], dtype=torch.float64) for n in names]
    if case.name == "noise":
        # The seed fixes the noise, the upper end of the range is 0.5 exactly, and a step beyond it only warns.
        theta[0][1] = 0.45

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return transform(x, **dict(zip(names, values, strict=True)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfRangeWarning)
        assert torch.autograd.gradcheck(call, (x, *[t.requires_grad_() for t in theta]))
        shared = [t[0].detach().clone().requires_grad_() for t in theta]
        assert torch.autograd.gradcheck(call, (x, *shared))


def test_gradients_in_x_of_everything_in_sequence() -> None:
    """A composition is differentiable in x, with Flip in it too."""
    case = CASES[-1]
    transform = case.make()
    x = images(3, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform(x, **case.theta), x)


@every_case
def test_at_the_anchor_the_derivative_in_x_is_the_identity(case: Case) -> None:
    """Exactness in value costs nothing in derivative: no factor of two, and none lost."""
    transform, x = case.make(), images(1, 2, 6, 7).requires_grad_()
    weights = images(1, 2, 6, 7, seed=1)
    (transform(x, **transform.parameters.anchor) * weights).sum().backward()
    assert x.grad is not None
    close(x.grad, weights)


@pytest.mark.parametrize(
    ("transform", "step"),
    [
        (Rotate(mode="bicubic"), 1e-4),
        (Shear(mode="bicubic"), 1e-6),
        (Translate(mode="bicubic"), 1e-6),
        (Brightness(), 1e-6),
        (Contrast(), 1e-6),
        (Noise(seed=0), 1e-6),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, InputTransform) else "",
)
def test_the_derivative_in_theta_survives_at_the_anchor(transform: InputTransform, step: float) -> None:
    """A bare `torch.where` would give zero there. Cubic resampling has no kink at the anchor, so this is exact."""
    x, weights = images(2, 1, 6, 6), images(2, 1, 6, 6, seed=1)
    weights[..., (0, -1), :] = weights[..., (0, -1)] = 0  # the image ends there, and so does smoothness
    weights[..., (1, -2), :] = weights[..., (1, -2)] = 0
    anchor = {n: torch.full((2,), v, dtype=torch.float64) for n, v in transform.parameters.anchor.items()}
    for name in anchor:
        theta = anchor | {name: anchor[name].clone().requires_grad_()}
        (transform(x, **theta) * weights).sum((1, 2, 3)).sum().backward()

        def loss(offset: float, name: str = name) -> Tensor:
            return (transform(x, **(anchor | {name: anchor[name] + offset})) * weights).sum((1, 2, 3))

        if isinstance(transform, Noise):  # nothing below zero
            expected = (loss(step) - loss(0.0)) / step
        else:
            expected = (loss(step) - loss(-step)) / (2 * step)
        gradient = theta[name].grad
        assert gradient is not None
        assert gradient.abs().min() > 1e-6
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "transform", [Blur(), Blur(parameter=Interval(0.7, 2.0)), Zoom(), Noise(parameter=Interval(1, 2))]
)
def test_derivatives_at_the_anchor_are_finite(transform: InputTransform) -> None:
    """Roots and divisions by the width are kept away from zero."""
    x = images(2, 1, 6, 6).requires_grad_()
    (name,) = transform.parameters
    theta = torch.full((2,), transform.parameters.anchor[name], dtype=torch.float64, requires_grad=True)
    transform(x, **{name: theta}).square().sum().backward()
    assert theta.grad is not None and theta.grad.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("variance", [0.0, 1e-30, 1e-8, 1e-4, 1e-3, 0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vanishing_gaussian_has_a_finite_derivative(variance: float, dtype: torch.dtype) -> None:
    """From an impulse on, no width of kernel gives NaN."""
    value = torch.tensor(variance, dtype=dtype, requires_grad=True)
    kernel = inputs.gaussian_kernel(value, 3)
    kernel.square().sum().backward()
    assert value.grad is not None and value.grad.isfinite()
    if variance <= 1e-4:
        assert kernel.tolist() == [0, 0, 0, 1, 0, 0, 0]


@every_case
def test_inputs_are_not_written_and_shapes_are_kept(case: Case) -> None:
    """The images stay as they were; one image, one pixel, one channel and an empty batch work."""
    transform, x = case.make(), images(3, 2, 8, 9)
    before = x.clone()
    transform(x, **case.theta)
    assert torch.equal(x, before)
    one = {name: values[0] for name, values in case.theta.items()}
    first = {name: values[:1] for name, values in case.theta.items()}
    for shape in ((1, 1, 1, 1), (1, 3, 2, 7), (1, 1, 5, 1)):
        assert transform(images(*shape), **one).shape == transform(images(*shape), **first).shape == shape
    none = {name: torch.zeros(0) for name in case.theta}
    assert transform(images(0, 2, 8, 9), **none).shape == transform(images(0, 2, 8, 9), **one).shape == (0, 2, 8, 9)


@every_case
def test_channels_last_and_non_contiguous_images_give_the_same(case: Case) -> None:
    """The layout of memory does not matter."""
    transform, x = case.make(), images(3, 2, 8, 9)
    expected = transform(x, **case.theta)
    close(transform(x.to(memory_format=torch.channels_last), **case.theta), expected)
    close(transform(x.mT.contiguous().mT, **case.theta), expected)


@every_case
def test_copies_and_pickles_do_the_same(case: Case) -> None:
    """`pickle` and `deepcopy` round-trip; the repr shows every setting."""
    transform, x = case.make(), images(3, 2, 8, 9)
    expected = transform(x, **case.theta)
    for other in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert repr(other) == repr(transform)
        assert list(other.parameters) == list(transform.parameters) == list(case.theta)
        assert torch.equal(other(x, **case.theta), expected)
    assert all(f"{name}=" in repr(transform) for name in case.theta)


@every_case
def test_affine_is_what_warp_reads_from_the_space(case: Case) -> None:
    """`T.affine(θ)` and `ParameterSpace.plane` of the code are one map; at the anchor it is the identity."""
    transform = case.make()
    got = transform.affine(**case.theta)
    code = transform.parameters.encode(transform.parameters.prepare(case.theta))
    if isinstance(transform, Inverse):
        assert transform.parameters.affine_names == ()
        back, there = transform.affine(**case.theta), transform.of.affine(**case.theta)
        assert (back is None) == (there is None)
        if back is not None and there is not None:
            close(back, affine.inverse(there))
    elif not transform.parameters.affine_names:
        assert got is None
    else:
        assert got is not None and got.shape == (3, 2, 3)
        close(got, transform.parameters.plane(code), 1e-6)
        close(got[1], affine.identity(torch.tensor(0.0)), 1e-6)
        shared = transform.affine(**{name: values[0] for name, values in case.theta.items()})
        assert shared is not None and shared.shape == (2, 3)
        close(shared, got[0], 1e-6)


def test_default_spaces() -> None:
    """The parameters that each transform has unless told otherwise: names, kinds, ranges, units, maps."""
    spaces = {
        Rotate: {"angle": Angle("deg")},
        Zoom: {"zoom": LogInterval(0.5, 2.0, anchor=1.0, affine="zoom")},
        Shear: {
            "shear_x": Interval(-0.5, 0.5, affine="shear_x"),
            "shear_y": Interval(-0.5, 0.5, affine="shear_y"),
        },
        Translate: {
            "dx": Interval(-4, 4, unit="px", affine="translate_x"),
            "dy": Interval(-4, 4, unit="px", affine="translate_y"),
        },
        Flip: {"flip": Categorical(("no", "yes"), affine="flip_x")},
        Blur: {"blur": Interval(0, 4, unit="px")},
        Noise: {"noise": Interval(0, 0.5)},
        Brightness: {"brightness": Interval(-0.5, 0.5)},
        Contrast: {"contrast": LogInterval(0.5, 2.0, anchor=1.0)},
    }
    for kind, expected in spaces.items():
        assert dict(kind().parameters) == expected, kind.__name__
    assert Contrast(low=0.0).parameters["contrast"] == Interval(0.0, 2.0, anchor=1.0)
    assert Rotate(-20, 20).parameters["angle"] == Interval(-20, 20, unit="deg", affine="rotation")
    assert Flip("y").parameters["flip"].affine == "flip_y"


def test_names_and_parameters_can_be_replaced() -> None:
    """A name, a range, or the whole parameter is the user's choice."""
    tilt = Interval(-20, 20, unit="deg", affine="rotation")
    assert dict(Rotate(name="tilt", parameter=tilt).parameters) == {"tilt": tilt}
    assert list(Translate(names=("right", "down")).parameters) == ["right", "down"]
    assert Blur(high=2.5, name="sigma").parameters["sigma"].bounds == (0.0, 2.5)
    x = images(1, 1, 6, 6)
    close(Rotate(name="tilt", parameter=tilt)(x, tilt=12.0), Rotate()(x, angle=12.0))
    space = ParameterSpace(
        {"down": Interval(-2, 2, affine="translate_y"), "right": Interval(-2, 2, affine="translate_x")}
    )
    close(Translate(parameters=space)(x, down=1.0, right=-2.0), Translate()(x, dx=-2.0, dy=1.0))


# --- inverses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "theta", "tolerance"),
    [
        (Rotate(mode="bicubic"), {"angle": 33.0}, 0.015),
        (Rotate(), {"angle": [33.0]}, 0.02),
        (Zoom(mode="bicubic"), {"zoom": 1.6}, 0.04),
        (Zoom(), {"zoom": 0.8}, 0.04),
        (Shear(mode="bicubic"), {"shear_x": 0.3, "shear_y": -0.2}, 0.01),
        (Translate(mode="bicubic"), {"dx": 1.4, "dy": -2.3}, 0.01),
        (Flip(), {"flip": "yes"}, 0.0),
        (Flip("y"), {"flip": 1}, 0.0),
        (Brightness(), {"brightness": 0.3}, 1e-12),
        (Contrast(), {"contrast": 0.6}, 1e-12),
        (Contrast(parameter=Interval(-3, -0.3, anchor=-0.7)), {"contrast": -2.0}, 1e-12),
        (Brightness(parameter=Interval(0.1, 0.7)), {"brightness": 0.5}, 1e-12),
        (Rotate(parameter=Angle(anchor=50.0)), {"angle": 20.0}, 0.02),
        (Zoom(parameter=LogInterval(0.5, 4.0, anchor=2.0, affine="zoom")), {"zoom": 3.0}, 0.04),
        (
            Compose([Rotate(padding_mode="border"), Translate(padding_mode="border"), Contrast()]),
            {"angle": 20.0, "dx": 2.0, "dy": 1.0, "contrast": 1.5},
            0.03,
        ),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, InputTransform) else "",
)
def test_the_inverse_undoes(transform: InputTransform, theta: dict[str, Any], tolerance: float) -> None:
    """$T^{-1}_\\theta(T_\\theta(x)) \\approx x$ on smooth images, and exactly where nothing is interpolated."""
    x = smooth_images()
    y = transform(x, **theta)
    assert (y - x).abs().max() > 0.1
    inverse = undo(transform)
    assert set(inverse.parameters) == set(transform.parameters)
    close(inverse(y, **theta), x, tolerance)
    close(transform(inverse(x, **theta), **theta), x, tolerance)
    again = undo(inverse)
    close(again(x, **theta), y)
    for name, parameter in inverse.parameters.items():
        assert parameter.bounds == transform.parameters[name].bounds
        assert parameter.anchor == transform.parameters[name].anchor


def test_compose_inverts_in_reverse_order() -> None:
    """$(b \\circ a)^{-1} = a^{-1} \\circ b^{-1}$: rotating and then shifting is undone by shifting back first."""
    a, b = Rotate(), Translate()
    inverse = undo(Compose([a, b]))
    x = images(1, 1, 9, 9)
    theta = {"angle": 40.0, "dx": 2.0, "dy": -1.0}
    expected = undo(a)(undo(b)(x, dx=2.0, dy=-1.0), angle=40.0)
    close(inverse(x, **theta), expected)
    there, back = Compose([a, b]).affine(**theta), inverse.affine(**theta)
    assert there is not None and back is not None
    close(affine.compose(back, there), affine.identity(torch.tensor(0.0)), 1e-6)


def test_what_has_no_inverse_says_so() -> None:
    """Blur, noise, a contrast of zero, and any composition that holds one of them."""
    for transform in (Blur(), Noise(), Contrast(low=0.0), Contrast(low=-1.0), Compose([Rotate(), Blur()])):
        assert transform.inverse() is None
    assert Compose([Compose([Blur()]), Rotate()]).inverse() is None
    with pytest.raises(InputError, match="Blur has no undo"):
        Inverse(Blur())
    with pytest.raises(InputError, match="Blur has no undo"):
        Blur().undo(images(1, 1, 2, 2), {"blur": torch.tensor(1.0)})


# --- compose ---------------------------------------------------------------------------------------------------------


def test_compose_acts_in_order_and_unites_parameters() -> None:
    """The first part acts first; the space is theirs, in order; each part is exact at its own anchor."""
    x = images(2, 1, 8, 8)
    both = Compose([Contrast(), Brightness(), Rotate()])
    assert list(both.parameters) == ["contrast", "brightness", "angle"]
    expected = Rotate()(Brightness()(Contrast()(x, contrast=1.5), brightness=0.2), angle=[10.0, 20.0])
    assert torch.equal(both(x, contrast=1.5, brightness=0.2, angle=[10.0, 20.0]), expected)
    assert torch.equal(both(x, contrast=1.0, brightness=0.2, angle=0), Brightness()(x, brightness=0.2))
    assert Compose([Contrast(), Blur()]).affine(contrast=1.5, blur=1.0) is None


def test_compose_passes_the_generator_on() -> None:
    """Two noises draw one after the other from the generator of the call."""
    x = images(2, 1, 8, 8)
    two = Compose([Noise(name="a"), Noise(name="b")])
    got = two(x, a=0.1, b=0.2, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    expected = Noise()(Noise()(x, noise=0.1, generator=generator), noise=0.2, generator=generator)
    assert torch.equal(got, expected)


# --- randomness ------------------------------------------------------------------------------------------------------


def test_seeded_noise_is_repeatable() -> None:
    """With a seed, image i's noise depends on the seed, i and the image's shape, and on nothing else."""
    x, noise = images(5, 2, 6, 6), Noise(seed=7)
    first = noise(x, noise=0.3)
    state = torch.get_rng_state()
    assert torch.equal(noise(x, noise=0.3), first)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone
    assert torch.equal(noise(x[:2], noise=0.3), first[:2])
    close(noise(x.float(), noise=0.3).double(), first, 1e-6)
    close((noise(x, noise=0.1) - x) * 3, first - x)
    assert not torch.equal(Noise(seed=8)(x, noise=0.3), first)
    drawn = noise(torch.zeros(2, 1, 50, 50), noise=0.5).flatten(1)
    assert torch.corrcoef(drawn)[0, 1].abs() < 0.1  # no two images share their noise


def test_unseeded_noise_is_new_in_each_call() -> None:
    """Without a seed torch's generator decides; a generator given to the call comes before both, and moves on."""
    x = images(2, 1, 6, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = Noise()(x, noise=0.3), Noise()(x, noise=0.3)
        torch.manual_seed(0)
        assert torch.equal(Noise()(x, noise=0.3), first)
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(1)
    a, b = (Noise(seed=7)(x, noise=0.3, generator=generator) for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(Noise()(x, noise=0.3, generator=torch.Generator().manual_seed(1)), a)


# --- compile ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    """No break in the graph, and the same values, shared or per sample."""
    transform, x = Compose([Rotate(), Flip(), Blur()]), images(3, 1, 6, 6)
    compiled = torch.compile(lambda x, theta: transform(x, **theta), fullgraph=True, backend="eager")
    generator = torch.Generator().manual_seed(0)
    theta = {name: value.double() for name, value in transform.parameters.sample(3, generator).items()}
    close(compiled(x, theta), transform(x, **theta))
    shared = {name: values[2] for name, values in theta.items()}
    close(compiled(x, shared), transform(x, **shared))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform", [Rotate(), Blur(), Compose([Rotate(), Blur()])], ids=["rotate", "blur", "compose"]
)
def test_images_of_the_wrong_kind_are_refused(transform: InputTransform) -> None:
    """The message says which shape or dtype was expected, which came, and what to do."""
    name, theta = type(transform).__name__, transform.parameters.anchor
    with pytest.raises(InputError, match=rf"{name}.*\(B, C, H, W\), got shape \(3, 8, 8\).*x\.unsqueeze\(0\)"):
        transform(torch.zeros(3, 8, 8), **theta)
    with pytest.raises(InputError, match=rf"{name}.*\(B, C, H, W\), got shape \(8, 8\)$"):
        transform(torch.zeros(8, 8), **theta)
    with pytest.raises(InputError, match=rf"{name}.*floating-point.*torch\.uint8.*x\.float\(\) / 255"):
        transform(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), **theta)
    with pytest.raises(InputError, match=rf"{name}.*floating-point.*complex"):
        transform(torch.zeros(1, 3, 8, 8, dtype=torch.complex64), **theta)
    with pytest.raises(InputError, match=rf"{name}.*tensor of shape \(B, C, H, W\), got ndarray"):
        transform(np.zeros((1, 3, 8, 8)), **theta)
    assert issubclass(InputError, WeightmorphError) and issubclass(InputError, ValueError)


def test_values_that_cannot_be_used_are_refused() -> None:
    """The checks of the space, and one more: a length that is not the batch's."""
    x = torch.zeros(3, 1, 4, 4)
    with pytest.raises(ParameterLengthError, match=r"Rotate: expected one value of angle.*one per image \(3\), got 2"):
        Rotate()(x, angle=[1.0, 2.0])
    with pytest.raises(ParameterLengthError, match=r"dx, dy.*\(3\), got 1"):
        Translate()(x, dx=[1.0], dy=0.0)
    with pytest.raises(MissingParameterError, match="'angle'"):
        Rotate()(x)
    with pytest.raises(UnknownParameterError, match=r"'agnle'.*did you mean 'angle'"):
        Rotate()(x, agnle=1.0)
    with pytest.raises(ParameterValueError, match=r"'blur'.*finite"):
        Blur()(x, blur=math.nan)
    with pytest.raises(ParameterValueError, match=r"'flip'.*'no', 'yes'"):
        Flip()(x, flip="maybe")
    with pytest.raises(UnknownParameterError, match="'zoom'"):
        Rotate().affine(angle=1.0, zoom=2.0)
    with pytest.warns(OutOfRangeWarning, match="'blur'.*px"):
        Blur()(x, blur=9.0)


def test_a_seed_in_place_of_a_generator_is_refused() -> None:
    """What to write instead is in the message."""
    with pytest.raises(InputError, match=r"Noise.*torch\.Generator or None, got 3; .*manual_seed\(seed\)"):
        Noise()(torch.zeros(1, 1, 2, 2), noise=0.1, generator=3)


def test_below_its_range_nothing_is_added() -> None:
    """A negative blur or noise warns and does nothing, rather than act as if it were positive."""
    x = images(1, 1, 5, 5)
    for transform in (Blur(), Blur(parameter=Interval(0.5, 2.0)), Noise(seed=0)):
        (name,) = transform.parameters
        with pytest.warns(OutOfRangeWarning):
            assert torch.equal(transform(x, **{name: -1.0}), x)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Rotate(mode="nearest"), InputError, "Rotate: mode.*'bilinear', 'bicubic', got 'nearest'"),
        (
            lambda: Zoom(padding_mode="reflect"),
            InputError,
            "Zoom: padding_mode.*got 'reflect'; did you mean 'reflection'",
        ),
        (lambda: Blur(padding_mode="same"), InputError, "Blur: padding_mode.*got 'same'"),
        (
            lambda: inputs.resample(torch.zeros(1, 1, 2, 2), torch.eye(2, 3), "cubic"),
            InputError,
            "did you mean 'bicubic'",
        ),
        (
            lambda: inputs.resample(torch.zeros(1, 1, 2, 2), torch.eye(2, 3), padding_mode="no"),
            InputError,
            "padding_mode",
        ),
        (
            lambda: inputs.gaussian_blur(torch.zeros(1, 1, 2, 2), torch.tensor(1.0), 2, "circular"),
            InputError,
            "gaussian_blur: padding_mode",
        ),
        (lambda: Rotate(low=-20), ParameterError, "both low and high.*low=-20, high=None"),
        (lambda: Rotate(20, -20), ParameterError, "low < high"),
        (
            lambda: Rotate(parameter=Interval(-20, 20, unit="deg")),
            ParameterError,
            r"'angle'.*affine='rotation', got affine=None; write Interval\(\.\.\., affine='rotation'\)",
        ),
        (lambda: Zoom(parameter=Angle()), ParameterError, "expected affine='zoom', got affine='rotation'"),
        (lambda: Zoom(parameter=Interval(-1, 2, affine="zoom")), ParameterError, "Zoom.*above 0"),
        (lambda: Zoom(parameter=Angle(affine="zoom")), ParameterError, "Zoom.*above 0"),
        (lambda: Zoom(low=0.0), ParameterError, "low > 0"),
        (lambda: Zoom(low=2.0, high=4.0), ParameterError, r"anchor in \[2, 4\], got 1"),
        (
            lambda: Shear(parameters={c: Interval(-1, 1, affine="shear_x") for c in "ab"}),
            ParameterError,
            "Shear: each map.*shear_x, shear_x",
        ),
        (lambda: Shear(parameters={"a": Interval(-1, 1)}), ParameterError, "affine='shear_x' or 'shear_y'"),
        (lambda: Shear(names=("a", "a")), ParameterError, "names for two parameters"),
        (lambda: Translate(names="dx"), ParameterError, "names for two parameters.*'dx'"),
        (lambda: Translate(parameters={}), ParameterError, "dict of parameters"),
        (lambda: Translate(names=("d x", "dy")), ParameterError, "identifier"),
        (lambda: Flip("z"), InputError, "axis must be 'x'.*got 'z'"),
        (lambda: Flip(parameter=Interval(0, 1, affine="flip_x")), ParameterError, "Categorical of two"),
        (lambda: Flip(parameter=Categorical("abc", affine="flip_x")), ParameterError, "Categorical of two"),
        (lambda: Flip(parameter=Categorical("ab")), ParameterError, "affine='flip_x', got affine=None"),
        (lambda: Flip("y", parameter=Categorical("ab", affine="flip_x")), ParameterError, "affine='flip_y'"),
        (lambda: Blur(parameter=Interval(-1, 1)), ParameterError, "Blur.*starts at its anchor.*low=-1, anchor=0"),
        (lambda: Blur(parameter=Interval(-2, -1)), ParameterError, "Blur.*at 0 or above"),
        (lambda: Noise(parameter=Interval(0, 1, anchor=0.5)), ParameterError, "Noise.*low=0, anchor=0.5"),
        (lambda: Blur(parameter=Angle()), ParameterError, "Blur moves nothing.*got 'rotation'"),
        (lambda: Brightness(parameter=Angle(affine=None)), ParameterError, "quantity between two ends"),
        (lambda: Brightness(parameter=Categorical("ab")), ParameterError, "quantity between two ends"),
        (lambda: Contrast(parameter=Interval(-1, 1)), ParameterError, "Contrast: expected an anchor other than 0"),
        (lambda: Noise(seed=0.5), InputError, "seed must be an integer or None, got 0.5"),
        (lambda: Noise(seed=True), InputError, "seed must be an integer"),
        (lambda: Noise(name="generator"), ParameterError, "Noise.*'generator'"),
        (lambda: Compose([]), InputError, "one or more input transforms"),
        (lambda: Compose(Rotate()), InputError, r"expected a list.*got Rotate\("),
        (lambda: Compose([Rotate(), torch.nn.ReLU()]), InputError, "input transforms"),
        (lambda: Compose([Rotate(), Zoom(name="angle")]), ParameterError, "'angle' twice.*Zoom.*another name"),
    ],
)
def test_what_cannot_be_made_is_refused(make: Callable[[], object], error: type[Exception], match: str) -> None:
    """Each refusal names the transform, what was expected, what came, and the way out."""
    with pytest.raises(error, match=match):
        make()


def test_public_names_are_sorted_and_there() -> None:
    """`__all__` is the public surface, each with a docstring."""
    assert inputs.__all__ == sorted(inputs.__all__)
    for name in inputs.__all__:
        assert getattr(inputs, name).__doc__, name
