"""Law 9, second half: torch.export and ONNX agree with eager, θ being an input and the batch open."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import FAMILIES, conditioned, settings, shake

import weightmorph as wm
from weightmorph import errors
from weightmorph.layers import TransposedConvolution
from weightmorph.transforms.lie import exponential
from weightmorph.transforms.resample import solve

ANGLES = torch.tensor([0.0, 10.0, 200.0, 33.0, 90.0])
EXPORT, ONNX = 1e-5, 1e-4
LONG = ("warp_grown", "sum", "everything")  # graphs of many nodes, whose kinds of nodes the other families have

LAYERS = {  # where one weight per sample is dense, or the layer does something of its own
    "conv1d": "perfilter_linear",
    "conv3d_groups_stride": "subspace",
    "conv2d_dilated": "subspace",
    "conv2d_same": "perfilter_linear",
    "conv2d_circular": "lowrank",
    "transposed1d": "perfilter_linear",
    "transposed2d": "subspace",
    "transposed2d_groups": "perfilter_mlp",
    "transposed3d": "lowrank",
    "standardised": "lowrank",
    "own_padding": "lie",
    "called_twice": "custom",
    "linear_tokens": "lowrank",
    "groupnorm": "scale",
    "layernorm_tokens": "scale",
}


def make(family: str) -> tuple[wm.Conditioned, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 9, 3),
    )  # fmt: skip
    x = torch.randn(5, 1, 6, 6)
    model = wm.condition(net, {"angle": wm.Angle("deg", harmonics=2)}, FAMILIES[family](), example=x)
    shake(model)
    return model, x


def angle(per_sample: bool, size: int) -> Tensor:
    return ANGLES[:size] if per_sample else ANGLES[3]


def ort(path: Path) -> Any:
    """A session that takes and gives arrays by name."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(**inputs: Tensor) -> list[np.ndarray[Any, Any]]:
        return list(session.run(None, {name: value.numpy() for name, value in inputs.items()}))

    run.session = session  # type: ignore[attr-defined]
    return run


# torch.export.


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) if f in LONG else f for f in FAMILIES])
def test_an_exported_program_agrees_with_eager(family: str, per_sample: bool) -> None:
    """At other batch sizes than the example's and other values of θ, the anchor among them."""
    model, x = make(family)
    module = wm.export_program(model, x[:3], per_sample=per_sample).module()
    with torch.no_grad():
        for size in (5, 2, 1):
            theta = angle(per_sample, size)
            got, expected = module(x[:size], angle=theta), model(x[:size], angle=theta)
            torch.testing.assert_close(got, expected, rtol=EXPORT, atol=EXPORT)
        assert not torch.allclose(module(x, angle=angle(per_sample, 5) + 90), model(x, angle=angle(per_sample, 5)))


@pytest.mark.parametrize("layer", list(LAYERS))
def test_every_kind_of_layer_is_exported_per_sample(layer: str) -> None:
    """No layer needs a grouped convolution with an open number of groups; in float64."""
    model, x = conditioned(layer, LAYERS[layer])
    module = wm.export_program(model, x[:3], per_sample=True).module()
    with torch.no_grad():
        theta = settings(layer)
        torch.testing.assert_close(module(x, **theta), model(x, **theta), rtol=1e-10, atol=1e-10)


def test_parameters_keep_their_units_and_the_whole_range_agrees() -> None:
    """Radians, a raw value, a category's index, and a zoom so large that the resampling is badly conditioned."""
    space = {
        "turn": wm.Angle("rad"), "zoom": wm.LogInterval(0.25, 4.0, affine="zoom"),
        "knob": wm.Interval(0.0, 2.0, encode="raw"), "mirror": wm.Categorical(("no", "yes"), affine="flip_x"),
    }  # fmt: skip
    torch.manual_seed(0)
    x = torch.randn(4, 1, 5, 5)
    model = wm.condition(nn.Conv2d(1, 2, 3), space, wm.Warp() + wm.Scale())
    shake(model, 0.05)
    module = wm.export_program(model, x, per_sample=True).module()
    theta = {
        "turn": [0.0, 1.0, -2.0, 7.0], "zoom": [0.25, 4.0, 1.0, 2.0], "knob": [0.0, 1.0, 2.0, 0.5],
        "mirror": ["yes", "no", "yes", "no"],
    }  # fmt: skip
    values = {name: torch.tensor(v) for name, v in theta.items() if name != "mirror"}
    with torch.no_grad():
        got = module(x, **values, mirror=torch.tensor([1.0, 0.0, 1.0, 0.0]))
        torch.testing.assert_close(got, model(x, **theta), rtol=EXPORT, atol=EXPORT)


def test_strict_export_and_a_saved_program(tmp_path: Path) -> None:
    """The base's tensors and the transform's are in the program under their names, each once."""
    model, x = make("lowrank")
    program = wm.export_program(model, x[:3], per_sample=True, strict=True)
    transform = [name.replace("transform.", "model.transform.") for name in model.state_dict()]
    base = [f"base.{name}" for name in model.frozen().state_dict()]
    assert sorted(program.state_dict) == sorted(transform + base)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        expected = model(x, angle=ANGLES)
        torch.testing.assert_close(again(x, angle=ANGLES), expected, rtol=EXPORT, atol=EXPORT)


def test_one_sample_is_example_enough_and_a_fixed_batch_stays_fixed() -> None:
    model, x = make("scale")
    with torch.no_grad():
        module = wm.export_program(model, x[:1]).module()
        torch.testing.assert_close(module(x, angle=ANGLES[1]), model(x, angle=10.0), rtol=EXPORT, atol=EXPORT)
        module = wm.export_program(model, x[:3], dynamic_batch=False).module()
        torch.testing.assert_close(module(x[:3], angle=ANGLES[1]), model(x[:3], angle=10.0), rtol=EXPORT, atol=EXPORT)
        with pytest.raises(AssertionError, match="Guard failed"):
            module(x, angle=ANGLES[1])


class Two(nn.Module):
    """Several inputs, one of them without a batch, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        total = self.left(a) + self.right(b)
        return {"sum": total if scale is None else total * scale, "tanh": torch.tanh(total)}


def two() -> tuple[wm.Conditioned, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = wm.condition(Two(), {"p": wm.Interval(0.0, 1.0)}, wm.LowRank(2) + wm.Scale())
    shake(model)
    return model, {"a": torch.randn(5, 4), "b": torch.randn(5, 5), "scale": torch.tensor(2.0)}


@pytest.mark.parametrize("keywords", [(), ("scale",), ("a", "b", "scale")], ids=lambda k: f"{len(k)}_keywords")
def test_inputs_by_position_and_by_keyword(keywords: tuple[str, ...]) -> None:
    """The program is called as the model is; only batched inputs are open."""
    model, inputs = two()
    if keywords == ("a", "b", "scale"):
        example: Any = {name: value[:2] if value.dim() else value for name, value in inputs.items()}
        positional, keyword = (), inputs
    else:
        positional = tuple(value for name, value in inputs.items() if name not in keywords)
        keyword = {}
        example = tuple(value[:2] if value.dim() else value for value in positional)
    module = wm.export_program(model, example, per_sample=True).module()
    theta = torch.linspace(0, 1, 5)
    with torch.no_grad():
        got, expected = module(*positional, **keyword, p=theta), model(*positional, **keyword, p=theta)
    assert list(got) == ["sum", "tanh"]
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=EXPORT, atol=EXPORT)


def test_the_model_is_left_as_it_is() -> None:
    """In train mode, with gradients, and with no weights left in the clone that is traced."""
    model, x = make("lowrank")
    model.train()
    before = model(x, angle=ANGLES)
    wm.export_program(model, x, per_sample=True)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.base.traced.current.context is None and torch.equal(model(x, angle=ANGLES), before)


def test_what_cannot_be_exported_is_said() -> None:
    """No conditioned model, no input, the wrong inputs, and a network that knows its batch size."""
    model, x = make("scale")
    with pytest.raises(errors.ExecutionError, match=r"made by condition\(\), got Sequential"):
        wm.export_program(model.frozen(), x)  # type: ignore[arg-type]
    with pytest.raises(errors.ExecutionError, match="expected an example input"):
        wm.export_program(model, ())
    with pytest.raises(errors.ExecutionError, match="does not fit the network's forward"):
        wm.export_program(model, (x, x))

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (2 if x.shape[0] == 3 else 1)

    fixed = wm.condition(Three(), {"p": wm.Interval(0.0, 1.0)}, wm.Scale())
    x = torch.randn(3, 6)
    with pytest.raises(errors.ExecutionError, match=r"try dynamic_batch=False.*model\.bake"):
        wm.export_program(fixed, x)
    module = wm.export_program(fixed, x, dynamic_batch=False).module()
    torch.testing.assert_close(module(x, p=torch.tensor(0.5)), fixed(x, p=0.5), rtol=EXPORT, atol=EXPORT)


# What stands in for operations that export does not know, against those operations.


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "padding": 2, "dilation": 2},
        {"padding": 2},
        {"groups": 2, "stride": 2},
        {"groups": 2, "dilation": 2, "output_padding": 1},
    ],
    ids=str,
)
def test_a_transposed_convolution_as_a_plain_one(dims: int, options: dict[str, Any]) -> None:
    """Zeros between the pixels and the kernel reversed give what torch's own gives, sample by sample."""
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    x = torch.randn(2, 4, *(5, 4, 3)[:dims], dtype=torch.float64)
    dense = torch.randn(2, 4, 3, *(3, 2, 4)[:dims], dtype=torch.float64)

    def each(name: str, default: int) -> tuple[int, ...]:
        return (options.get(name, default),) * dims

    for traced in (True, False):
        op = TransposedConvolution(
            dims, each("stride", 1), each("padding", 0), each("dilation", 1), options.get("groups", 1), traced,
            each("output_padding", 0),
        )  # fmt: skip
        got = op.per_sample(x, [(x, lambda: dense)], "product", (), False)
        expected = torch.cat([function(x[i : i + 1], dense[i], None, **options) for i in range(2)])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_exponential_that_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over norms from nothing to more than any weight bears, in both types, alone and in a batch."""
    generator = torch.Generator().manual_seed(0)
    for norm in (0.0, 1e-3, 1.0, 10.0):
        matrix = torch.randn(3, 9, 9, generator=generator, dtype=torch.float64)
        matrix = matrix * (norm / torch.linalg.matrix_norm(matrix, 2)[:, None, None])
        expected = torch.linalg.matrix_exp(matrix)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            got, single = exponential(matrix), exponential(matrix[0].float())
        scale = float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * scale)
        torch.testing.assert_close(single, expected[0].float(), rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("nugget", [1e-1, 1e-3, 1e-6])
def test_the_solver_that_is_exported(nugget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as elimination on the equations of badly placed sites."""
    place = torch.linspace(0, 0.3, 16, dtype=torch.float64)
    matrix = torch.exp(-((place[:, None] - place) ** 2)) + nugget * torch.eye(16, dtype=torch.float64)
    matrix = torch.stack((matrix, torch.eye(16, dtype=torch.float64)))
    right = torch.randn(2, 16, 3, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, right)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for got, want in ((solve(matrix, right, nugget), expected), (solve(matrix[0], right[0], nugget), expected[0])):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


# ONNX.


def check_onnx(family: str, per_sample: bool, folder: Path) -> None:
    model, x = make(family)
    path = folder / "model.onnx"
    wm.export_onnx(model, path, x[:3], per_sample=per_sample)
    run = ort(path)
    shapes = {i.name: i.shape for i in run.session.get_inputs()}
    assert shapes == {"input": ["batch", 1, 6, 6], "angle": ["batch"] if per_sample else []}
    for size in (5, 2, 1):
        theta = angle(per_sample, size)
        [got] = run(input=x[:size], angle=theta)
        with torch.no_grad():
            np.testing.assert_allclose(got, model(x[:size], angle=theta).numpy(), rtol=ONNX, atol=ONNX)
    assert [o.name for o in run.session.get_outputs()] == ["output"]
    about = json.loads(run.session.get_modelmeta().custom_metadata_map["weightmorph"])
    assert dict(wm.ParameterSpace.from_config(about["parameters"])) == dict(model.space)
    assert (about["per_sample"], about["transform"]) == (per_sample, model.recipe)
    assert [p.name for p in folder.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
def test_onnx_runtime_agrees_with_eager(per_sample: bool, tmp_path: Path) -> None:
    """One family, whenever the tests run."""
    check_onnx("lowrank", per_sample, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "lowrank"])
def test_onnx_runtime_agrees_with_eager_in_every_family(family: str, per_sample: bool, tmp_path: Path) -> None:
    check_onnx(family, per_sample, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["transposed2d_groups", "conv3d_groups_stride", "conv1d", "linear_tokens"])
def test_onnx_runtime_agrees_on_other_layers(layer: str, tmp_path: Path) -> None:
    """One dense weight per sample, in float32."""
    model, x = conditioned(layer, "perfilter_linear" if layer != "linear_tokens" else "subspace")
    model, x = model.float(), x.float()
    wm.export_onnx(model, tmp_path / "model.onnx", x[:3], per_sample=True)
    theta = {name: value.float() for name, value in settings(layer).items()}
    [got] = ort(tmp_path / "model.onnx")(input=x, **theta)
    with torch.no_grad():
        np.testing.assert_allclose(got, model(x, **theta).numpy(), rtol=ONNX, atol=ONNX)


def whole(name: str) -> tuple[nn.Module, Tensor, Callable[[Any], Tensor]]:
    """The demo's network, ResNet's shape (bottlenecks, strides, shortcuts) and EfficientNet-Lite0."""
    if name == "demo":
        from digits import SmallCNN

        return SmallCNN(), torch.randn(4, 1, 28, 28), lambda output: output
    from test_bases import efficientnet, transformers_resnet

    net, (x,), read = efficientnet() if name == "efficientnet" else transformers_resnet()
    return net, torch.cat((x, x[:1])), read


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "per_sample"),
    [
        ("demo", "sum", True), ("demo", "lie", False), ("resnet", "sum", False), ("resnet", "lowrank", True),
        ("efficientnet", "lowrank", False),
    ],
)  # fmt: skip
def test_onnx_runtime_agrees_on_whole_networks(name: str, family: str, per_sample: bool, tmp_path: Path) -> None:
    """A few of all; `benchmarks/onnx_files.py` goes through every family on each."""
    net, x, read = whole(name)
    model = wm.condition(net.eval(), {"angle": wm.Angle("deg", harmonics=2)}, FAMILIES[family](), example=x[:1])
    shake(model, 0.02)
    wm.export_onnx(model, tmp_path / "model.onnx", x[:2], per_sample=per_sample)
    run = ort(tmp_path / "model.onnx")
    first = run.session.get_inputs()[0].name
    for size in (4, 1):
        theta = angle(per_sample, size)
        [got] = run(**{first: x[:size], "angle": theta})
        with torch.no_grad():
            np.testing.assert_allclose(got, read(model(x[:size], angle=theta)).numpy(), rtol=ONNX, atol=ONNX)


def test_onnx_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    """Inputs keep their names; outputs are numbered."""
    model, inputs = two()
    wm.export_onnx(model, tmp_path / "model.onnx", {k: v[:2] if v.dim() else v for k, v in inputs.items()})
    run = ort(tmp_path / "model.onnx")
    assert [o.name for o in run.session.get_outputs()] == ["output_0", "output_1"]
    got = run(**inputs, p=torch.tensor(0.3))
    with torch.no_grad():
        for value, expected in zip(got, model(**inputs, p=0.3).values(), strict=True):
            np.testing.assert_allclose(value, expected.numpy(), rtol=ONNX, atol=ONNX)


class Exotic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(F.linear(x, self.layer.weight))


def test_an_operation_that_onnx_does_not_know_is_named(tmp_path: Path) -> None:
    """And no file is left."""
    model = wm.condition(Exotic(), {"p": wm.Interval(0.0, 1.0)}, wm.Scale())
    with pytest.raises(errors.ExecutionError, match=r"written as ONNX.*matrix_exp"):
        wm.export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 3, 3))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = two()
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        wm.export_onnx(model, path, inputs)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_packages_the_message_says_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = two()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.MissingDependencyError, match=rf"'{package}'.*pip install 'weightmorph\[onnx\]'"):
        wm.export_onnx(model, tmp_path / "model.onnx", inputs)
