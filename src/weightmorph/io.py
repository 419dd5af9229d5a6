"""Files that are written atomically, and values as JSON holds them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["plain", "replacing", "write_atomically"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and put what was written in the place of `path` at the end of the block.

    The temporary path has the file's name in a new folder beside it. Further files that a writer leaves in that folder
    (an ONNX file's tensors) are put beside `path`, and `path` itself comes last. If the block or the writing fails,
    what was there stays as it was, and nothing else is left behind.

    Args:
        path: the file; its folder must exist.

    Raises:
        OSError: if a file cannot be written or moved.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.txt"
        ...     with replacing(path) as temporary:
        ...         _ = temporary.write_text("new")
        ...     path.read_text()
        'new'
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        written = sorted(temporary.parent.iterdir(), key=lambda file: file.name == path.name)
        for file in written:
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        for file in written:
            os.replace(file, path.parent / file.name)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file whole, or leave what was there. Missing folders are created.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/new/a.txt", b"text").read_bytes()
        b'text'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def plain(value: Any) -> Any:
    """Data as JSON gives it back: tuples as lists, NumPy's and torch's numbers as Python's, a name for anything else.

    Example:
        >>> plain({"size": (2, 3), "dtype": object()})
        {'size': [2, 3], 'dtype': '<object>'}
    """

    def other(item: Any) -> Any:
        if isinstance(item, np.generic | np.ndarray | Tensor):
            return item.tolist()
        return f"<{type(item).__name__}>"

    return json.loads(json.dumps(value, default=other))
