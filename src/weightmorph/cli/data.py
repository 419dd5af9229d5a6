"""Images and labels from where a configuration says they are."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError, require
from .sources import call

__all__ = ["Folder", "example", "labelled", "read"]

IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Folder(Dataset[Any]):
    """Images in a folder, one subfolder a class; without subfolders, images without labels.

    Classes are the subfolders' names in order. Images are read when they are asked for, turned upright as their EXIF
    entry says, cropped to the middle and resized.

    Args:
        folder: where.
        size: height and width in px, or one number for both; null keeps the images' own, which must then agree.
        channels: 3 (colour) or 1 (grey).
        mean: subtracted from the values, which lie from 0 to 1; one number, or one for each channel.
        std: the difference is divided by it.

    Shapes:
        an image `(channels, height, width)` in float32, its class a 0-d integer tensor.

    Raises:
        ConfigError: if there is no image, or one cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        size: int | Sequence[int] | None = None,
        channels: int = 3,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        if not folder.is_dir():
            raise ConfigError(f"data: there is no folder {folder}")
        if channels not in (1, 3):
            raise ConfigError(f"data_options: channels must be 1 or 3, got {channels!r}")
        sizes = [size, size] if isinstance(size, int) else size
        if sizes is not None and (len(sizes) != 2 or not all(isinstance(n, int) and n > 0 for n in sizes)):
            raise ConfigError(f"data_options: size must be one or two numbers of px, got {size!r}")
        try:
            self.mean, self.std = (torch.tensor(v, dtype=torch.float32).expand(channels) for v in (mean, std))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"data_options: mean and std must be one number or one for each of {channels} channels, got {mean!r} "
                f"and {std!r}"
            ) from error
        if not bool((self.std > 0).all()):
            raise ConfigError(f"data_options: std must be above 0, got {std!r}")
        self.folder, self.size, self.channels = folder, sizes, channels
        self.classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
        places: list[tuple[Path, int | None]]
        places = [(folder / name, number) for number, name in enumerate(self.classes)] or [(folder, None)]
        self.files = [
            (file, label)
            for place, label in places
            for file in sorted(place.rglob("*"))
            if file.suffix.lower() in IMAGES and file.is_file()
        ]
        if not self.files:
            raise ConfigError(f"data: no image in {folder} or its subfolders ({', '.join(sorted(IMAGES))})")
        self._pillow = require("PIL.Image", "cli", "reading images")
        self._ops = require("PIL.ImageOps", "cli", "reading images")

    @property
    def names(self) -> list[str]:
        """The files, relative to the folder, in the order of the images."""
        return [file.relative_to(self.folder).as_posix() for file, _ in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        file, label = self.files[index]
        try:
            with self._pillow.open(file) as opened:
                image = self._ops.exif_transpose(opened).convert("RGB" if self.channels == 3 else "L")
        except Exception as error:  # whatever Pillow says to a damaged file
            raise ConfigError(f"data: {file} cannot be read as an image: {error}") from error
        if self.size is not None:
            image = self._ops.fit(image, (self.size[1], self.size[0]), self._pillow.Resampling.BILINEAR)
        values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
        x = (values.reshape(*values.shape[:2], self.channels) - self.mean) / self.std
        x = x.permute(2, 0, 1).contiguous()
        return x if label is None else (x, torch.tensor(label))


def read(options: Any, key: str) -> Any:
    """Data as [`fit`][weightmorph.fit] and [`evaluate`][weightmorph.evaluate] take them.

    Args:
        options: with `key`, as the help of `--data` says, `key_options` and `key_take`.
        key: `data` or `test_data`.

    Raises:
        ConfigError: if they cannot be read.
    """
    source, arguments, take = options[key], options[f"{key}_options"], options[f"{key}_take"]
    if source is None:
        raise ConfigError(
            f"{key}: which data? expected 'folder:PATH', 'idx:PATH', 'npz:PATH', 'package.module:function' or "
            "'file.py:function'"
        )
    kind, _, path = source.partition(":")
    readers: dict[str, Any] = {"folder": Folder, "idx": _idx, "npz": _npz}
    if kind not in readers:
        found = call(source, arguments, key)
    else:
        try:
            found = readers[kind](Path(path).expanduser(), **arguments)
        except TypeError as error:
            raise ConfigError(f"{key}_options: {error}") from error
        except ConfigError as error:  # which speaks of data
            raise ConfigError(str(error).replace("data", key, 1)) from error
    if take is not None:
        size = len(found) if isinstance(found, tuple | list) else 0
        if not all(0 <= n < size for n in take) or len(take) not in (1, 2):
            held = f"{size} values" if size else f"a {type(found).__name__}"
            raise ConfigError(f"{key}_take: expected the numbers of x and y, or of x, among {held}, got {list(take)}")
        found = tuple(found[n] for n in take)
    if isinstance(found, list | tuple):
        found = tuple(torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in found)
        found = found[0] if len(found) == 1 else found
    return found


def labelled(options: Any, key: str) -> Any:
    """Data with labels, or an error; arguments as for `read`."""
    data = read(options, key)
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if pair or (isinstance(data, Dataset) and not (isinstance(data, Folder) and not data.classes)):
        return data
    raise ConfigError(f"{key}: labels are needed: expected (x, y) as tensors, a Dataset of pairs, or class subfolders")


def example(data: Any, key: str) -> Tensor:
    """One input with its batch axis.

    Raises:
        ConfigError: if the data give none.
    """
    try:
        first = data if isinstance(data, Tensor) else data[0]
        if isinstance(data, Dataset):
            return torch.as_tensor(first[0] if isinstance(first, tuple | list) else first).unsqueeze(0)
        if isinstance(first, Tensor) and len(first):
            return first[:1]
    except ConfigError:
        raise
    except Exception as error:  # of a Dataset of the user's
        raise ConfigError(f"{key}: reading the first sample failed: {type(error).__name__}: {error}") from error
    raise ConfigError(f"{key}: expected tensors (x, y) or x, or a Dataset that can be indexed, with a sample at least")


def _idx(folder: Path, split: str = "train") -> tuple[Tensor, Tensor]:
    """MNIST's files: images `(N, 1, H, W)` from 0 to 1, and labels `(N,)`."""
    if split not in ("train", "test"):
        raise ConfigError(f"data_options: split must be train or test, got {split!r}")
    stem = "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ConfigError(f"data: {folder} has {len(images)} images but {len(labels)} labels for {split}")
    return images.unsqueeze(1).float() / 255, labels.long()


def _read_idx(file: Path, axes: int) -> Tensor:
    """One IDX file, plain or gzipped: big-endian magic number and sizes, then bytes."""
    zipped = file.with_name(f"{file.name}.gz")
    try:
        raw = file.read_bytes() if file.exists() else gzip.decompress(zipped.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"data: neither {file} nor {zipped.name} beside it can be read: {error}") from error
    header = 4 * (1 + axes)
    magic, *shape = np.frombuffer(raw[:header], dtype=">i4").tolist() if len(raw) >= header else [0]
    if magic != 0x0800 + axes or len(raw) - header != math.prod(shape):
        raise ConfigError(f"data: {file} is no IDX file of bytes with {axes} axes, or is cut short")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=header).copy()).reshape(shape)


def _npz(file: Path) -> tuple[Tensor, ...]:
    """Arrays x and, if there are labels, y."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = [torch.from_numpy(arrays[name]) for name in ("x", "y") if name in arrays]
    except Exception as error:  # whatever NumPy says to a damaged file
        raise ConfigError(f"data: {file} cannot be read as .npz: {str(error).partition(chr(10))[0]}") from error
    if not found:
        raise ConfigError(f"data: {file} holds no array named x")
    return tuple(found)
