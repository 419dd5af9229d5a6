"""The form with constant weights: exact, and without a convolution whose weight follows an input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_export import ONNX, angle, make, ort
from torch import Tensor, nn
from zoo import CASES, LAYERS, applies, conditioned, settings, shake

import weightmorph as wm
from weightmorph import errors
from weightmorph.deploy.export import computed_weights
from weightmorph.deploy.export.constants import constant_model

onnx = pytest.importorskip("onnx")

FAMILIES = ("lowrank", "scale", "subspace", "sum", "warp_grown", "lie")
WITHOUT = {f"transposed{n}" for n in ("1d", "2d", "2d_groups", "2d_tiles", "3d")}
"""Layers whose taps cannot be mixed on activations."""
MIXING = {"sum", "warp_grown", "lie"}
UNKNOWN = {"standardised": "mean", "operator": "mul", "vmapped": "einsum"}
"""Layers that give their weight to a function without a form with constant weights."""


@pytest.mark.parametrize(("layer", "family"), [c for c in CASES if c[1] in FAMILIES and c[0] not in UNKNOWN])
def test_it_answers_as_the_model_does(layer: str, family: str) -> None:
    """Shared and per sample, on every kind of layer, in float64."""
    if not applies(layer, family):
        pytest.skip("the family wants nothing of it")
    model, x = conditioned(layer, family)
    if layer in WITHOUT and family in MIXING:
        with pytest.raises(
            errors.ExecutionError, match=r"no form with constant weights for (Warp|Lie) on .*model\.bake"
        ):
            constant_model(model)
        return
    constant = constant_model(model)
    theta = settings(layer)
    with torch.no_grad():
        torch.testing.assert_close(constant(x, **theta), model(x, **theta), rtol=1e-10, atol=1e-10)
        one = {name: value[1] for name, value in theta.items()}
        torch.testing.assert_close(constant(x, **one), model(x, **one), rtol=1e-10, atol=1e-10)
        home = {name: torch.tensor(value, dtype=torch.float64) for name, value in model.space.anchor.items()}
        torch.testing.assert_close(constant(x, **home), model.frozen()(x), rtol=1e-10, atol=1e-10)


def test_what_has_no_such_form_is_named(tmp_path: Path) -> None:
    """Every family and tensor at once, and nothing is written; bake is offered."""
    for family, words in (
        ("perfilter_mlp", r"PerFilter on 0\.weight, 3\.weight"), ("custom", r"Custom on .*6\.weight"),
        ("everything", r"for PerFilter on 0\.weight"),
    ):  # fmt: skip
        model, x = make(family)
        with pytest.raises(errors.ExecutionError, match=words) as caught:
            wm.export_onnx(model, tmp_path / "model.onnx", x, constant_weights=True)
        assert "model.bake(" in str(caught.value)
        with pytest.raises(errors.ExecutionError, match=words):
            wm.export_program(model, x, constant_weights=True)
    for layer, function in UNKNOWN.items():
        model, x = conditioned(layer, "lowrank")
        with pytest.raises(errors.ExecutionError, match=rf"gives \w+ to the function '{function}'.*constant weights"):
            wm.export_onnx(model, tmp_path / "model.onnx", x, constant_weights=True)
    assert not list(tmp_path.iterdir())


def test_a_program_has_constant_weights_too() -> None:
    model, x = make("lowrank")
    for per_sample in (False, True):
        program = wm.export_program(model, x[:3], per_sample=per_sample, constant_weights=True)
        theta = angle(per_sample, 5)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x, angle=theta), model(x, angle=theta), rtol=1e-5, atol=1e-5)
        held = {*program.graph_signature.inputs_to_parameters, *program.graph_signature.inputs_to_buffers}
        convolutions = [n for n in program.graph.nodes if "conv" in str(n.target) and n.op == "call_function"]
        assert len(convolutions) >= 8 and all(node.args[1].name in held for node in convolutions)


def check(
    family: str, per_sample: bool, folder: Path, model: wm.Conditioned | None = None, x: Tensor | None = None
) -> Any:
    """The graph agrees with eager, its layers' weights are initializers, and its metadata say so."""
    if model is None or x is None:
        model, x = make(family)
    path = folder / "model.onnx"
    wm.export_onnx(model, path, x[:3], per_sample=per_sample, constant_weights=True)
    run = ort(path)
    first = run.session.get_inputs()[0].name
    for size in (len(x), 1):
        theta = angle(per_sample, size)
        [got] = run(**{first: x[:size], "angle": theta})
        with torch.no_grad():
            np.testing.assert_allclose(got, model(x[:size], angle=theta).numpy(), rtol=ONNX, atol=ONNX)
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert layers and all(node.input[1] in constants for node in layers)
    about = json.loads(run.session.get_modelmeta().custom_metadata_map["weightmorph"])
    assert about["constant_weights"] is True and about["per_sample"] is per_sample
    return layers


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
def test_no_convolution_in_the_file_has_a_computed_weight(per_sample: bool, tmp_path: Path) -> None:
    """The base's, V's and U's: eight for three convolutions, one of them depthwise."""
    layers = check("lowrank", per_sample, tmp_path)
    assert sum(node.op_type == "Conv" for node in layers) == 8


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("family", ["scale", "subspace", "warp", "warp_grown", "lie", "sum"])
def test_every_family_that_has_the_form(family: str, per_sample: bool, tmp_path: Path) -> None:
    check(family, per_sample, tmp_path)


@pytest.mark.slow
def test_efficientnet_in_this_form(tmp_path: Path) -> None:
    """Depthwise layers and padding of its own; rank 8 and scales on all of it."""
    from test_bases import efficientnet

    net, _, _ = efficientnet()
    x = torch.randn(2, 3, 64, 64)
    model = wm.condition(net.eval(), {"angle": wm.Angle("deg")}, wm.LowRank(8) + wm.Scale(), example=x[:1])
    shake(model, 0.02)
    layers = check("", False, tmp_path, model, x)
    assert sum(node.op_type == "Conv" for node in layers) >= 49 + 2 * 32 + 17


def test_a_computed_weight_is_seen(tmp_path: Path) -> None:
    """The check can fail: the ordinary export computes every one; and a weight that the base itself computes."""
    import onnx_ir

    model, x = make("lowrank")
    wm.export_onnx(model, tmp_path / "model.onnx", x)
    found = computed_weights(onnx_ir.load(tmp_path / "model.onnx"))
    assert sum(name.startswith("Conv ") for name in found) == 3

    class Own(nn.Module):
        """Its second convolution's weight depends on the image."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.first(x), self.second.weight * x.mean())

    own = wm.condition(Own(), {"angle": wm.Angle("deg")}, wm.LowRank(1), select="first")
    with pytest.raises(errors.ExecutionError, match=r"weights of Conv .* are computed in the network itself"):
        wm.export_onnx(own, tmp_path / "own.onnx", torch.randn(2, 1, 8, 8), constant_weights=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_every_layer_of_the_zoo_is_looked_at() -> None:
    """But for those whose weight goes to other functions, which are refused by name above."""
    assert {c[0] for c in CASES} == set(LAYERS)
