"""Peers that come from PyPI: an environment for them, HyperLight and PEFT's LoRA."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

PACKAGES = ("hyperlight==0.0.5", "peft==0.21.2", "accelerate==1.15.0", "psutil==7.2.2")
"""What is compared, and what PEFT imports and development does not."""

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def prepare(folder: Path) -> Path:
    """A virtual environment with [`PACKAGES`][]; gives its interpreter.

    It sees this environment's packages behind its own, so that both sides of a comparison run on one torch.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    source = Path(__file__).resolve().parent.parent / "src"
    (Path(found.stdout.strip()) / "behind.pth").write_text(f"{source}\n{sysconfig.get_path('purelib')}\n")
    subprocess.run([python, "-m", "pip", "install", "-qq", "--no-deps", *PACKAGES], check=True)
    return python


def missing() -> list[str]:
    """Which of the two peers are not installed."""
    return [name for name in ("hyperlight", "peft") if importlib.util.find_spec(name) is None]


def named(net: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers by name, which is what both packages change."""
    return {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}


class HyperLight(nn.Module):
    """HyperLight's hypernetwork on a network, and `vmap` for one θ per sample.

    Its output layer generates every weight of the convolutions and linear layers from 16 hidden units, with the
    network's own weights as its bias. It leaves norm layers alone.
    """

    def __init__(self, net: nn.Module, hidden: int = 16) -> None:
        super().__init__()
        hl = importlib.import_module("hyperlight")
        net = copy.deepcopy(net).requires_grad_(False)
        layers = list(named(net).values())
        self.mainnet: Any
        self.mainnet, values = hl.hypernetize(net, modules=layers, return_values=True)
        shapes = {"h": (1,)}
        self.hypernet = hl.HyperNet.from_existing(values, input_shapes=shapes, hidden_sizes=[hidden])

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        """One angle per sample, in degrees."""
        weights = self.hypernet(h=angle.unsqueeze(1) / 360)
        return vmap(self.one)(weights, x)

    def one(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """One sample with its weights."""
        with self.mainnet.using_externals(weights):
            return cast(Tensor, self.mainnet(x.unsqueeze(0))).squeeze(0)

    def one_by_one(self, x: Tensor, angle: Tensor) -> Tensor:
        """What `forward` must equal: its own way, one θ at a time."""
        outputs = []
        for image, theta in zip(x, angle, strict=True):
            weights = self.hypernet(h=theta.reshape(1, 1) / 360)
            outputs.append(self.one(weights, image))
        return torch.stack(outputs)


class StackedLoRA(nn.Module):
    """PEFT's LoRA, which adds a constant ΔW = B·A to a layer; one adapter per sample, stacked, and `vmap` over them.

    Args:
        net: the network.
        differences: ΔW `(B, *S)` by name, of rank `rank`: factored here, so that the adapters are the same weights.
        rank: of the adapters.
    """

    def __init__(self, net: nn.Module, differences: Mapping[str, Tensor], rank: int = 8) -> None:
        super().__init__()
        peft = importlib.import_module("peft")
        layers = named(net)
        others = {name for name in differences if name.rpartition(".")[0] not in layers}
        if others:
            raise TypeError(f"PEFT's LoRA changes convolutions and linear layers, and not {', '.join(sorted(others))}")
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), lora_dropout=0.0)
        self.net: nn.Module = peft.inject_adapter_in_model(config, copy.deepcopy(net)).eval().requires_grad_(False)
        self.names: list[str] = []
        self.adapters = nn.ParameterList()
        for layer, module in layers.items():
            down, up = factors(differences[f"{layer}.weight"], rank)
            ones = (1,) * (cast(Tensor, module.weight).dim() - 2)
            self.names += [f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"]
            self.adapters += [nn.Parameter(down), nn.Parameter(up.reshape(*up.shape, *ones))]

    def forward(self, x: Tensor) -> Tensor:
        """Sample i under adapter i."""
        stacked = dict(zip(self.names, self.adapters, strict=True))

        def one(adapter: dict[str, Tensor], x: Tensor) -> Tensor:
            return cast(Tensor, functional_call(self.net, adapter, (x.unsqueeze(0),))).squeeze(0)

        return vmap(one)(stacked, x)


def factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """ΔW `(B, O, I, …)` as `down (B, r, I, …)` and `up (B, O, r)`."""
    matrix = difference.detach().flatten(2)
    rank_there = min(rank, *matrix.shape[1:])
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(matrix, q=min(rank_there + 4, *matrix.shape[1:]), niter=3)
    root = s[:, :rank_there].sqrt().unsqueeze(1)
    up, down = u[..., :rank_there] * root, (v[..., :rank_there] * root).transpose(1, 2)
    if rank_there < rank:
        up = nn.functional.pad(up, (0, rank - rank_there))
        down = nn.functional.pad(down, (0, 0, 0, rank - rank_there))
    return down.reshape(len(down), rank, *difference.shape[2:]).contiguous(), up.contiguous()


def interpreter(folder: Path) -> str:
    """The interpreter to run under: this one if it has the peers, else that of the environment in `folder`."""
    return sys.executable if not missing() else str(prepare(folder))
