"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightmorph.io import replacing, write_atomically


def fail(*_: object, **__: object) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "pathlib.Path.write_bytes"])
def test_a_failure_leaves_what_was_there(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever step, and nothing is left beside it."""
    path = write_atomically(tmp_path / "a" / "b.txt", b"old")
    assert path.read_bytes() == b"old"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(step, fail)
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_an_error_in_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "b.txt", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_further_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself is of no use without them, so it comes last."""
    moved: list[str] = []
    real = os.replace

    def watched(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr("os.replace", watched)
    with replacing(tmp_path / "a.onnx") as temporary:
        assert temporary.name == "a.onnx" and temporary.parent.parent == tmp_path
        temporary.write_bytes(b"graph")
        temporary.with_name("z.data").write_bytes(b"tensors")
    assert moved == ["z.data", "a.onnx"] == sorted((file.name for file in tmp_path.iterdir()), reverse=True)


def test_missing_folders_are_created_only_by_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "a"):
        pass
    assert write_atomically(tmp_path / "yes" / "deep" / "a", b"1").read_bytes() == b"1"
