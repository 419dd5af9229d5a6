"""Malformed requests, some hundreds of them: always a clear error, never a crash or a hang."""

from __future__ import annotations

import base64
import json
import random
import time
from typing import Any

import numpy as np
from served import SHAPE, SPACE, Client, conditioned, npy, sample, theta

from weightmorph.serving import Inputs, Limits, application


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
