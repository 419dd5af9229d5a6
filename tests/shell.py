"""The command line in tests: a folder with a tiny network, data and a configuration, and the command run there."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from weightmorph.cli import main

SOURCE = Path(__file__).resolve().parents[1] / "src"

TINY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width * 36, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def images(seed=0, count=48):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 6, 6, generator=generator), torch.arange(count) % 3


def four():
    return (*images(0), *images(1))


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, weight, code):
        shift = self.gain * (code[..., 0] - 1)
        return weight * (1 + shift).reshape(*code.shape[:-1], *[1] * weight.dim())


def broken(**options):
    raise RuntimeError("the disk is on fire")


def slow(x, angle):
    import os, time

    if os.path.exists("hold"):
        time.sleep(1.0)
    return x


number = 3
"""

CONFIG: dict[str, Any] = {
    "base": "tiny.py:Net",
    "base_options": {"width": 3},
    "data": "tiny.py:four",
    "data_take": [0, 1],
    "test_data": "tiny.py:images",
    "test_data_options": {"seed": 1},
    "input_transform": "Rotate",
    "parameters": {"angle": "Angle(deg, harmonics=2)"},
    "transform": "Warp + LowRank(2)",
    "trainer": {"steps": 2, "batch_size": 16, "check_prior": False},
    "grid": 2,
    "rounds": 0,
    "out": "run",
    "threads": 1,
}


@contextlib.contextmanager
def standing_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a network, data and a configuration, at which the shell stands."""
    (folder / "tiny.py").write_text(TINY)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(folder)
    path, modules = list(sys.path), set(sys.modules)
    yield folder
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def run(*argv: str) -> SimpleNamespace:
    """The command in this process: its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(argv))
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def shell(*argv: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    """The command as a shell starts it."""
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "weightmorph.cli", *argv], cwd=cwd, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip
