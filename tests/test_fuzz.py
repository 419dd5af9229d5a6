"""A thousand broken files: always an error of ours that names the file, or the very same thing; never anything else."""

from __future__ import annotations

import json
import random
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import shake

import weightmorph as wm
from weightmorph import errors, storage

Damage = Callable[[bytearray, random.Random], bytes]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 4, 2)).eval()


X = torch.ones(2, 1, 4, 4)


@pytest.fixture(scope="module")
def model() -> wm.Conditioned:
    made = wm.condition(
        network(), {"angle": wm.Angle("deg", harmonics=1)}, wm.Warp() + wm.LowRank(1) + wm.Scale(), example=X
    )
    shake(made)
    return made


def truncated(whole: bytearray, generator: random.Random) -> bytes:
    """Cut anywhere, also within the first bytes."""
    return bytes(whole[: generator.randrange(0, generator.choice((16, len(whole))))])


def flipped(whole: bytearray, generator: random.Random) -> bytes:
    """One bit; half of them among the tensors, whose bytes say nothing of themselves."""
    length = 8 + int.from_bytes(whole[:8], "little")
    place = generator.randrange(*generator.choice(((0, len(whole)), (length, len(whole)))))
    whole[place] ^= 1 << generator.randrange(8)
    return bytes(whole)


def overwritten(whole: bytearray, generator: random.Random) -> bytes:
    """A run of bytes that mean nothing."""
    place = generator.randrange(len(whole))
    run = generator.randrange(1, 200)
    whole[place : place + run] = generator.randbytes(len(whole[place : place + run]))
    return bytes(whole)


def lengthened(whole: bytearray, generator: random.Random) -> bytes:
    """Bytes too many, in the middle or at the end; or the file twice."""
    place = generator.choice((len(whole), generator.randrange(len(whole))))
    whole[place:place] = generator.choice((generator.randbytes(generator.randrange(1, 64)), bytes(whole)))
    return bytes(whole)


def wrong_length(whole: bytearray, generator: random.Random) -> bytes:
    """Another length of the header than it has, up to the largest number there is."""
    length = int.from_bytes(whole[:8], "little")
    whole[:8] = struct.pack("<Q", generator.choice((0, 1, length - 1, length + 1, 2**31, 2**62, 2**64 - 1)))
    return bytes(whole)


def wrong_offsets(whole: bytearray, generator: random.Random) -> bytes:
    """A header that is JSON, and of which one thing is another: a type, a shape, an offset, a name, a text."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    return _with_header(_changed(header, generator), whole[8 + length :])


def _with_header(header: Any, rest: bytes | bytearray) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(rest)


DAMAGES: list[Damage] = [truncated, flipped, overwritten, lengthened, wrong_length, wrong_offsets]

ODD = [
    None, True, False, 0, -1, 1, 7, 3.5, 1e308, 2**63, 10**30, "", "x", "../../etc/passwd", "θ" * 300, [], {}, [[]],
    [None], {"a": 1}, [1, 2, 3], float("nan"), float("inf"), "float64", "__import__('os')",
]  # fmt: skip
"""What a value may be replaced by."""


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield (*path, key)
        yield from _places(value, (*path, key))


def _changed(data: Any, generator: random.Random) -> Any:
    """Nested data in which one value is another, or gone, or one key is another."""
    data = json.loads(json.dumps(data))
    *path, last = generator.choice(list(_places(data)))
    here = data
    for key in path:
        here = here[key]
    act = generator.randrange(4)
    if act == 0:
        del here[last]
    elif act == 1 and isinstance(here, dict):
        here[generator.choice(("x", "", "type", "θ", last + " "))] = here.pop(last)
    else:
        here[last] = generator.choice(ODD)
    return data


def refused(act: Callable[[], Any]) -> bool:
    """Was it refused in our own words? Anything else that is raised is a failure; so is a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            act()
        except (errors.CheckpointError, errors.BaseError) as error:
            assert len(str(error)) > 10
            return True
    return False


def alike(one: wm.Conditioned, other: wm.Conditioned) -> bool:
    """The same model, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    equal = list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    return equal and torch.equal(one(X, angle=33.0), other(X, angle=33.0))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_checkpoint_is_refused_or_is_the_same(damage: Damage, model: wm.Conditioned, tmp_path: Path) -> None:
    """Over a hundred of each; where the damage hit nothing that counts, the model is the same to the bit."""
    path, net = tmp_path / "model.safetensors", network()
    model.save(path)
    whole = path.read_bytes()
    generator = random.Random(damage.__name__)
    count = 0
    for _ in range(110):
        content = damage(bytearray(whole), generator)
        path.write_bytes(content)
        loaded: list[wm.Conditioned] = []
        if refused(lambda: loaded.append(wm.load(path, net))):  # noqa: B023
            count += 1
        else:
            assert alike(loaded[0], model)
        assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert count >= 104


def test_a_flipped_bit_in_a_tensor_is_always_found(model: wm.Conditioned, tmp_path: Path) -> None:
    """Every one of the tensors' bytes is under a checksum."""
    path, net = tmp_path / "model.safetensors", network()
    model.save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(bytes(broken))
        assert refused(lambda: wm.load(path, net))


def _repacked(path: Path, alter: Callable[[dict[str, Any]], Any]) -> None:
    """The file with its own header altered, and the checksum made right: what an editor does and no accident."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    outer = json.loads(whole[8 : 8 + length])
    inner = json.loads(outer["__metadata__"]["weightmorph"])
    del inner["sha256"]
    inner = alter(inner)
    if isinstance(inner, dict):
        inner = {**inner, "sha256": storage.checksum(inner)}
    outer["__metadata__"]["weightmorph"] = json.dumps(inner)
    path.write_bytes(_with_header(outer, whole[8 + length :]))


def test_an_edited_header_is_refused_or_gives_a_model(model: wm.Conditioned, tmp_path: Path) -> None:
    """Three hundred headers in which one value is another, under a right checksum: no crash, no stray exception."""
    path, net = tmp_path / "model.safetensors", network()
    generator = random.Random(0)
    count = 0
    for _ in range(300):
        model.save(path)
        _repacked(path, lambda data: _changed(data, generator))
        count += refused(lambda: wm.load(path, net))
    assert 150 < count < 300


VAST: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "hidden": (lambda d: d["transform"]["parts"][1].update(hidden=10**12), "hidden cannot be 1000000000000"),
    "many hidden": (lambda d: d["transform"]["parts"][1].update(hidden=2**16), r"do not fit.*gains\.0\.weight"),
    "grow": (lambda d: d["transform"]["parts"][0].update(grow=2**63), "grow cannot be"),
    "harmonics": (lambda d: d["parameters"]["angle"].update(harmonics=10**30), "harmonics cannot be"),
    "kernel": (lambda d: d["slots"][0].update(kernel=[2**40, 2**40], taps=[]), "kernel cannot be"),
    "shape": (lambda d: d["slots"][0].update(shape=[2**40, 1, 3, 3]), r"the base has no tensor 0\.weight of shape"),
}


@pytest.mark.parametrize("what", list(VAST))
def test_a_file_that_asks_for_all_memory_is_refused_before_it_gets_any(
    what: str, model: wm.Conditioned, tmp_path: Path
) -> None:
    """A file of a few kilobytes must not make the loader reserve a terabyte, nor count to it."""
    path, net = tmp_path / "model.safetensors", network()
    model.save(path)
    alter, words = VAST[what]
    _repacked(path, lambda data: (alter(data), data)[1])
    start = time.perf_counter()
    with pytest.raises(errors.CheckpointError, match=words):
        wm.load(path, net)
    assert time.perf_counter() - start < 2


def test_damaged_deltas_are_refused_or_are_the_same(model: wm.Conditioned, tmp_path: Path) -> None:
    """A hundred files, damaged in every way."""
    path, net = tmp_path / "delta.safetensors", network()
    wm.Delta.of(model, angle=33.0).save(path)
    whole = path.read_bytes()
    expected = model.bake(angle=33.0).state_dict()

    def read() -> None:
        with wm.apply_delta(net, wm.Delta.load(path)):
            for name, value in net.state_dict().items():
                assert torch.equal(value, expected[name])

    generator = random.Random("delta")
    count = 0
    for number in range(102):
        path.write_bytes(DAMAGES[number % len(DAMAGES)](bytearray(whole), generator))
        count += refused(read)
    assert count > 90


def test_edited_deltas_are_refused_or_can_be_applied(model: wm.Conditioned, tmp_path: Path) -> None:
    """Headers that somebody has changed, under a right checksum; what is read is either refused or put in whole."""
    path, net = tmp_path / "delta.safetensors", network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = random.Random(0)
    count = 0

    def read() -> None:
        with wm.apply_delta(net, wm.Delta.load(path)):
            net(X)

    for _ in range(120):
        wm.Delta.of(model, angle=33.0).save(path)
        _repacked(path, lambda data: _changed(data, generator))
        count += refused(read)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert 50 < count < 120
