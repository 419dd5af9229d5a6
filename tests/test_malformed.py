"""Malformed configurations and requests, some hundreds of each: always a clear error, never a crash or a hang."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import SHAPE, SPACE, Client, conditioned, npy, sample, theta
from shell import CONFIG, run, standing_in

from weightmorph.cli import UNUSABLE
from weightmorph.serving import Inputs, Limits, application


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with standing_in(tmp_path, monkeypatch) as here:
        yield here


# Malformed configurations

Malformed = Callable[[random.Random], str]


def _text(text: str) -> Malformed:
    return lambda rng: text


def _changed(key: str, *values: Any) -> Malformed:
    """The configuration with a value that cannot be."""

    def made(rng: random.Random) -> str:
        config = json.loads(json.dumps(CONFIG))
        *groups, last = key.split(".")
        into = config
        for group in groups:
            into = into.setdefault(group, {})
        into[last] = rng.choice(values)
        return json.dumps(config)

    return made


def _cut(rng: random.Random) -> str:
    """Cut off inside a string or a bracket."""
    text = json.dumps(CONFIG)
    return text[: rng.randrange(2, len(text) - 1)]


def _noise(rng: random.Random) -> str:
    return "\x00" + "".join(chr(rng.choice((0, 7, 11, 34, 58, 91, 123, 0xD7FF))) for _ in range(rng.randrange(1, 200)))


def _misspelt(rng: random.Random) -> str:
    config = dict(CONFIG)
    key = rng.choice(sorted(config))
    at = rng.randrange(len(key))
    config[f"{key[:at]}{rng.choice('xqz_')}{key[at:]}"] = config.pop(key)
    return json.dumps(config)


def _nested(rng: random.Random) -> str:
    depth = rng.choice((60, 3_000, 100_000))
    return f"base_options: {'[' * depth}{']' * rng.choice((0, depth))}"


NUMBER, TEXT, LIST, MAP = (3, 2.5), ("x y", "θ", ""), ([], [1, [2]]), ({}, {"a": 1})
MALFORMED: list[Malformed] = [
    _cut, _cut, _cut, _noise, _noise, _misspelt, _misspelt, _misspelt, _nested,
    _text("a: &a [*a]"), _text("\n".join(["a0: &a0 [x, x, x, x, x, x, x, x]", *(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12))])),
    _text("base: a\nbase: b"), _text("- a\n- b"), _text("just words"), _text("3"), _text("!!python/object:os.system x"),
    _text("? [a]\n: b"), _text("\tbase: a"), _text("base: 'a"), _text("{1: 2}"), _text("%YAML 9.9\n---\n{"),
    _text("base: !!binary x"), _text("seed: " + "9" * 6000), _text("on: 1"),
    _changed("base", *NUMBER, *TEXT, *LIST, *MAP, True, "Net", "tiny.py", "tiny.py:", ":Net", "tiny.py:Nett",
             "os.path:sep"),
    _changed("base_options", *NUMBER, "x", [1], {"depth": 1}, {"width": "wide"}, {"width": -3}, True),
    _changed("weights", *NUMBER, *LIST, *MAP, "none.safetensors", "tiny.py", "."),
    _changed("seed", "x", 1.5, -1, 2**63, [1], {}, None, True),
    _changed("threads", "x", 1.5, 0, -2, 10**6, [1], {}),
    _changed("data", *NUMBER, *TEXT, *LIST, *MAP, "folder:none", "idx:.", "npz:tiny.py", "tiny.py:broken",
             "tiny.py:number"),
    _changed("data_options", *NUMBER, "x", [1], {"a": 1}),
    _changed("data_take", *NUMBER, "x", {}, [9, 1], [-1, 0], [], [0, 1, 2], ["x"], [1.5], [0]),
    _changed("input_transform", *NUMBER, *TEXT, *LIST, {}, {"a": 1}, "Rotat", "Rotate(low=1)", "Rotate(1, 0)",
             {"type": 3}, {"type": "Rotate", "mode": "cubic"}, ["Rotate", "Rotate"], "tiny.py:number", None),
    _changed("parameters", *NUMBER, *TEXT, *LIST, {}, {"angle": 3}, {"angle": "Angle(grad)"},
             {"angle": {"type": "Angel"}}, {"angle": "Interval(1, 0)"}, {"angle": "Interval(0, .inf)"},
             {"an gle": "Angle"}, {"angle": ["Angle", "Angle"]}),
    _changed("transform", *NUMBER, *TEXT, *LIST, {}, {"a": 1}, "Warp + ", "Warp + Nope", "LowRank", "LowRank(0)",
             "LowRank('x')", "LowRank(2, 3, 4, 5)", {"type": "LowRank", "rank": "two"}, {"type": []}, None,
             "tiny.py:images"),
    _changed("select", *NUMBER, {}, ["nothing.*"], "nothing.*", [3]),
    _changed("objective", *NUMBER, *TEXT, *LIST, *MAP, None, "supervisd", "tiny.py:number", "tiny.py:none"),
    _changed("objective_options", *NUMBER, "x", [1], {"temperature": 2.0}),
    _changed("trainer", *NUMBER, "x", [1], {"stps": 3}, True),
    _changed("trainer.steps", "x", 1.5, -1, [1], {}),
    _changed("trainer.batch_size", "x", 1.5, 0, -1, [1], {}, None),
    _changed("trainer.settings", "x", 1.5, 0, -3, [1], {}),
    _changed("trainer.lr", "x", 0, -1, [1], {}, None, float("inf"), float("nan")),
    _changed("trainer.schedule", "linear", 3, [1], {}, None),
    _changed("trainer.epochs", "x", 1.5, 3, -1, [1], {}),
    _changed("trainer.lightning", *NUMBER, "x", [1]),
    _changed("out", *NUMBER, *LIST, *MAP, None, True),
]  # fmt: skip


def refused(folder: Path, text: str) -> str:
    """One clear line, exit code 2, and nothing left behind."""
    (folder / "config.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    start = time.monotonic()
    done = run("fit", "--config", "config.yaml")
    told = f"{text[:300]!r}: {done.err!r}"
    assert done.code == UNUSABLE, told
    assert re.fullmatch(r"weightmorph fit: error: [^\n]{10,900}\n", done.err), told
    assert "Traceback" not in done.err, told
    assert done.out == "", told
    assert time.monotonic() - start < 20, told
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in str(path)}
    assert left == {"config.yaml", "tiny.py"}, told
    return str(done.err)


def test_malformed_configurations(folder: Path) -> None:
    rng = random.Random(5)
    for number in range(300):
        refused(folder, MALFORMED[number % len(MALFORMED)](rng))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * 70_000, "larger than 65,536 bytes"),
        ("- " * 30_000, "not YAML"),
        (f"base_options: [{'1,' * 10_000}]", "base_options: expected"),
        (f"base_options: [{'1,' * 25_000}]", "too large or too deeply nested"),
        ("a:\n" * 8_000, "the key 'a' is there twice"),
        (f"base: {'[' * 60_000}", "too deeply nested"),
    ],
)
def test_large_configurations(folder: Path, text: str, told: str) -> None:
    """What would take a parser long, or its stack whole."""
    assert told in refused(folder, text)


# Requests


def _theta(rng: random.Random) -> Any:
    """θ of which one value cannot be."""
    good = theta(rng.randrange(9))
    name = rng.choice(sorted(good))
    junk: list[Any] = [None, True, [], [1, 2], {}, "", "north", float("nan"), float("inf"), -1e308, 10**400]
    if rng.random() < 0.3:
        good.pop(name)
    elif rng.random() < 0.3:
        good[f"{name}_"] = 1
    else:
        good[name] = rng.choice([*junk, 99, -0.5] if name != "angle" else junk)
    return good


def _input(rng: random.Random) -> Any:
    """An input that cannot be."""
    array = sample(rng.randrange(9)).tolist()
    row = array[0][rng.randrange(6)]
    kind = rng.randrange(5)
    if kind == 0:
        row[rng.randrange(6)] = rng.choice([None, "1", True, [], {}, float("nan"), float("-inf"), 1e39, 10**60])
    elif kind == 1:
        row[:] = row[1:] if rng.random() < 0.5 else [*row, 0.0]
    elif kind == 2:
        shapes: list[Any] = [array[0], [array], [], [[]], [[[]]], array * 2]
        return rng.choice([*shapes, 3, 0.5, "x", None, {}, {"npy": 3}, [[["a" * 99]]]])
    elif kind == 3:
        return {"npy": base64.b64encode(_array(rng)).decode()[: rng.choice((None, -1, 7))] or "?"}
    else:
        return rng.choice([np.zeros((1, 6, 5)), np.zeros((2, 6, 6)), np.zeros(36), np.zeros((1, 0, 6))]).tolist()
    return array


def _array(rng: random.Random) -> bytes:
    """An .npy file that is damaged, or of the wrong kind."""
    content = bytearray(npy(sample(rng.randrange(9))))
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(content[: rng.randrange(len(content))])
    if kind == 1:
        content[rng.randrange(8)] ^= 1 << rng.randrange(1, 8)
        return bytes(content) + b"x"  # were the changed byte harmless, the length would not be
    if kind == 2:
        return npy(rng.choice([np.zeros((6, 6)), np.zeros(SHAPE, bool), np.zeros(SHAPE, "U3"), np.full(SHAPE, np.nan)]))
    if kind == 3:
        words = (b"(1, 6, 6)", rng.choice([b"(9, 9, 9)", b"(1, 6, 0)", b"(-1,6,6)", b"((1,6),6)", b"print()  "]))
        return bytes(content).replace(*words)
    return bytes(rng.randrange(256) for _ in range(rng.randrange(300)))


def _request(rng: random.Random) -> tuple[bytes, dict[str, str], str]:
    """Body, headers and query of one that cannot be answered."""
    head = {"content-type": "application/json"}
    whole = json.dumps({"input": sample(1).tolist(), "theta": theta(1)}).encode()
    kind = rng.randrange(8)
    if kind == 0:
        return whole[: rng.randrange(len(whole))], head, ""
    if kind == 1:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(400))) + b"{", head, ""
    if kind == 2:
        return json.dumps(rng.choice([[], 3, "x", None, {}, {"inputs": 1}, {"theta": theta(1)}])).encode(), head, ""
    if kind in (3, 4):
        return json.dumps({"input": sample(1).tolist(), "theta": _theta(rng)}).encode(), head, ""
    if kind == 5:
        return json.dumps({"input": _input(rng), "theta": theta(1)}).encode(), head, ""
    if kind == 6:
        others = "?angle=x&blur=1&time=day", "?angle=nan&blur=1&time=day", "?angle=1&angle=1", "?%00", "?angle=1", ""
        return npy(sample(1)), {"content-type": "application/x-npy"}, rng.choice(others)
    types = "application/x-npy", "APPLICATION/OCTET-STREAM; x=y"
    return _array(rng), {"content-type": rng.choice(types)}, "?angle=1&blur=1&time=day"


def test_malformed_requests() -> None:
    """Two hundred of them, each with a 4xx that says why; the server answers the next as if nothing had been."""
    rng = random.Random(7)
    model = conditioned(space=SPACE)
    client = Client(application(model, Inputs(SHAPE), Limits(body=50_000)))
    good = {"input": sample(0).tolist(), "theta": theta(2)}
    try:
        first = client.predict(good).body
        for _ in range(200):
            body, headers, query = _request(rng)
            start = time.monotonic()
            got = client.ask("POST", f"/predict{query}", body, headers)
            told = f"{body[:200]!r} {headers} {query}: {got.status} {got.body!r}"
            assert 400 <= got.status < 500, told
            error = json.loads(got.body)
            assert list(error) == ["error"], told
            assert 10 < len(error["error"]) < 600, told
            assert time.monotonic() - start < 5, told
        assert client.predict(good).body == first
    finally:
        client.close()
