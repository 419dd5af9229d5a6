"""Serving: each answer is the baked network's for its own θ, and what cannot be answered is told so."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served import SHAPE, SPACE, Client, conditioned, npy, sample, theta
from torch import Tensor, nn

import weightmorph as wm
from weightmorph.errors import ConfigError, MissingDependencyError, RequestError
from weightmorph.serving import Inputs, Limits, OneSetting, PerSample, PredictRequest, application
from weightmorph.serving.backend import answer, backend_for
from weightmorph.serving.batcher import Batcher

SOURCE = Path(__file__).resolve().parents[1] / "src"


@pytest.fixture(scope="module")
def model() -> wm.Conditioned:
    return conditioned()


@pytest.fixture
def client(model: wm.Conditioned) -> Iterator[Client]:
    made = Client(application(model, Inputs(SHAPE), Limits(body=20_000)))
    yield made
    made.close()


# Answers


def test_every_form_of_a_request_gets_the_baked_networks_answer(client: Client, model: wm.Conditioned) -> None:
    x, setting = sample(0), theta(3)
    expected = model.bake(**setting)(x[None])[0]
    packed = {"npy": base64.b64encode(npy(x.double())).decode()}
    query = "&".join(f"{name}={value}" for name, value in setting.items())
    answers = [
        client.predict({"input": x.tolist(), "theta": setting}),
        client.predict({"input": packed, "theta": setting | {"time": 1}}),
        client.ask("POST", f"/predict?{query}", npy(np.asfortranarray(x)), {"content-type": "application/x-npy"}),
        client.ask("POST", f"/predict?{query}", npy(x), {"content-type": "application/octet-stream"}),
    ]
    for got in answers:
        assert got.status == 200, got.body
        torch.testing.assert_close(torch.tensor(json.loads(got.body)["output"]), expected, atol=1e-5, rtol=0)
    raw = client.predict({"input": x.tolist(), "theta": setting}, accept="application/x-npy")
    assert raw.headers["content-type"] == "application/x-npy"
    torch.testing.assert_close(torch.from_numpy(np.load(io.BytesIO(raw.body))), expected, atol=1e-5, rtol=0)


def test_requests_that_come_together_are_one_call(model: wm.Conditioned) -> None:
    """Different θ share a call of the network, and nobody gets another's answer."""
    sizes: list[int] = []
    backend = PerSample(model)

    def counted(x: Tensor, values: Mapping[str, Tensor]) -> Any:
        sizes.append(len(x))
        return backend(x, values)

    client = Client(application(model, Inputs(SHAPE), Limits(batch=16, wait=0.5), backend=counted))
    try:
        bodies = [json.dumps({"input": sample(n).tolist(), "theta": theta(n)}).encode() for n in range(40)]

        async def all_at_once() -> Any:
            head = {"content-type": "application/json"}
            return await asyncio.gather(*(client._ask("POST", "/predict", body, head) for body in bodies))

        for number, got in enumerate(client.run(all_at_once())):
            expected = model.bake(**theta(number))(sample(number)[None])[0]
            torch.testing.assert_close(torch.tensor(json.loads(got.body)["output"]), expected, atol=1e-5, rtol=0)
    finally:
        client.close()
    assert sizes == [16, 16, 8]


def test_a_network_that_cannot_take_one_setting_per_sample_is_asked_setting_by_setting() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x, x, x, need_weights=False)[0]
            return out.mean(1)

    torch.manual_seed(0)
    model = conditioned(Attention(), {"blur": SPACE["blur"]})
    inputs = Inputs((4, 8))
    backend, why = backend_for(model, inputs)
    assert isinstance(backend, OneSetting)
    assert why
    asked = [PredictRequest(np.random.rand(4, 8).astype(np.float32), {"blur": float(n % 3)}) for n in range(7)]
    for one, got in zip(asked, answer(backend, asked, inputs), strict=True):
        expected = model.bake(blur=one.theta["blur"])(torch.from_numpy(one.x)[None])[0].detach()
        torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-5, rtol=0)


def test_nested_outputs_and_open_axes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            maps = self.conv(x)
            return {"map": maps, "pooled": (maps.mean((2, 3)), maps.new_full((len(x),), torch.inf).half())}

    model = conditioned(Two(), {"angle": SPACE["angle"]})
    client = Client(application(model, Inputs((1, None, None)), Limits(wait=0.2)))
    try:
        shapes = [(1, 5, 5), (1, 4, 7), (1, 5, 5)]

        async def together() -> Any:
            bodies = [json.dumps({"input": np.ones(s).tolist(), "theta": {"angle": 30}}).encode() for s in shapes]
            return await asyncio.gather(*(client._ask("POST", "/predict", body, {}) for body in bodies))

        for shape, got in zip(shapes, client.run(together()), strict=True):
            output = json.loads(got.body)["output"]
            assert np.shape(output["map"]) == (2, *shape[1:])
            assert np.shape(output["pooled"][0]) == (2,)
            assert output["pooled"][1] is None, "JSON has no infinity"
        refused = client.predict(
            {"input": np.ones((1, 4, 4)).tolist(), "theta": {"angle": 1}}, accept="application/x-npy"
        )
        assert refused.status == 406
    finally:
        client.close()


def test_one_request_does_not_suffer_for_another() -> None:
    """Where an axis is open, only the network knows what it cannot take; the others of its batch are answered."""
    model = conditioned(nn.Sequential(nn.Conv1d(1, 2, 5), nn.Flatten(), nn.Linear(8, 3)), {"angle": SPACE["angle"]})
    asked = [PredictRequest(np.ones((1, n), np.float32), {"angle": 1.0}) for n in (8, 3, 8, 9)]
    results = answer(PerSample(model), asked, Inputs((1, None)))
    assert [isinstance(one, RequestError) for one in results] == [False, True, False, True]

    def picky(x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        if bool((x[:, 0, 0] == 2).any()):
            raise ZeroDivisionError("2 is not to my taste")
        return x[:, 0]

    asked = [PredictRequest(np.full((1, 1), value, np.float32), {"angle": 1.0}) for value in (1, 2, 3)]
    good, bad, fine = answer(picky, asked, Inputs((1, 1)))
    assert (good.tolist(), fine.tolist()) == ([1.0], [3.0])
    assert isinstance(bad, ZeroDivisionError)


# Refusals


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"{bad", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[" * 50_000, 413, "larger than 20,000 bytes"),
        (b"[" * 9_000, 400, "the body is not JSON"),
        ([1, 2], 422, "expected an object"),
        ({}, 422, '"input" is missing'),
        ({"input": 1, "thet": {}}, 422, "unknown key 'thet'; expected 'input' and 'theta'; did you mean 'theta'"),
        ({"input": np.zeros((6, 6)).tolist()}, 422, "expected shape 1×6×6 float32, got 6×6"),
        ({"input": np.zeros((1, 1, 6, 6)).tolist()}, 422, "one sample, without a batch axis"),
        ({"input": [[1, 2], [3]]}, 422, "the nested lists are no array"),
        ({"input": [["1"]]}, 422, "expected numbers"),
        ({"input": [[None]]}, 422, "expected numbers"),
        ({"input": [[True, 0.5]]}, 422, "expected numbers, got a boolean among them"),
        ({"input": np.full(SHAPE, np.nan).tolist()}, 422, "finite numbers"),
        ({"input": np.full(SHAPE, 1e300).tolist()}, 422, "finite numbers of float32"),
        ({"input": {"npy": "%%%"}}, 400, "not base64"),
        ({"input": {"npy": base64.b64encode(b"no npy").decode()}}, 400, "not an .npy file"),
        ({"input": {"npz": "x"}}, 422, "got another object"),
        ({"theta": {}}, 422, "no value for 'angle', 'blur', 'time'; at the anchor it is angle=0.0, blur="),
        ({"theta": {"angl": 3}}, 422, "unknown parameter 'angl'; the model is conditioned on angle, blur, time; did"),
        ({"theta": theta(1) | {"angle": None}}, 422, "parameter 'angle': expected one value, got null"),
        ({"theta": theta(1) | {"angle": [1, 2]}}, 422, "parameter 'angle': expected one value, got a list"),
        ({"theta": theta(1) | {"angle": True}}, 422, "parameter 'angle': expected a number, got True"),
        ({"theta": theta(1) | {"angle": "30"}}, 422, "parameter 'angle': expected a number"),
        ({"theta": theta(1) | {"angle": float("nan")}}, 422, "parameter 'angle': expected a finite number, got nan"),
        ({"theta": theta(1) | {"angle": 1e300}}, 422, "parameter 'angle': expected a finite number"),
        ({"theta": theta(1) | {"blur": 4.5}}, 422, "parameter 'blur': expected a value in [0, 4] px, got 4.5"),
        ({"theta": theta(1) | {"time": "nigth"}}, 422, "did you mean 'night'"),
        ({"theta": theta(1) | {"time": 0.5}}, 422, "parameter 'time': expected indices 0 to 1"),
        ({"theta": [30]}, 422, "theta: expected an object"),
        (b'{"input": [1], "input": [2]}', 400, "the key 'input' is there twice"),
    ],
)  # fmt: skip
def test_bad_requests_are_told_what_is_wrong(client: Client, content: Any, status: int, told: str) -> None:
    if isinstance(content, dict) and "theta" in content:
        content = {"input": sample(0).tolist()} | content
    got = client.predict(content)
    assert got.status == status, got.body
    assert told in json.loads(got.body)["error"]
    assert client.predict({"input": sample(0).tolist(), "theta": theta(0)}).status == 200


def test_wrong_paths_methods_types_and_sizes(client: Client) -> None:
    assert client.ask("GET", "/predict").status == 405
    missing = client.ask("GET", "/nowhere")
    assert missing.status == 404
    assert "POST /predict" in json.loads(missing.body)["error"]
    assert client.ask("POST", "/predict", b"x", {"content-type": "image/png"}).status == 415
    assert client.predict(b"{}", **{"content-length": "30000"}).status == 413
    assert client.predict([b"x" * 15_000, b"x" * 15_000]).status == 413
    twice = client.ask("POST", "/predict?angle=1&angle=2", npy(sample(0)), {"content-type": "application/x-npy"})
    assert (twice.status, json.loads(twice.body)["error"]) == (422, "parameter 'angle' is given twice")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("text/html, application/*;q=0.8", "application/json"),
        ("application/json, application/x-npy", "application/x-npy"),
        ("text/xml", None),
        ("text/html, image/*", None),
    ],
)
def test_the_answer_is_of_a_type_that_the_client_accepts(client: Client, accept: str, kind: str | None) -> None:
    got = client.predict({"input": sample(0).tolist(), "theta": theta(0)}, accept=accept)
    if kind is None:
        assert got.status == 406
        assert accept in json.loads(got.body)["error"]
    else:
        assert (got.status, got.headers["content-type"]) == (200, kind)


@pytest.mark.parametrize(
    "content",
    [
        npy(sample(0))[:-1],
        npy(sample(0)) + b"x",
        npy(np.array(["a"])),
        b"\x93NUMPY\x03\x00" + npy(sample(0))[8:],
        npy(sample(0)).replace(b"(1, 6, 6)", b"(1, 6,-6)"),
        npy(sample(0)).replace(b"(1, 6, 6), ", b"(9**9**9,) "),
        npy(sample(0)).replace(b"'<f4'", b"'|O' "),
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
)
def test_damaged_arrays(client: Client, content: bytes) -> None:
    """What a header announces is not believed, and nothing in it is run."""
    got = client.ask("POST", "/predict?angle=0&blur=0&time=day", content, {"content-type": "application/x-npy"})
    assert got.status in (400, 422)
    assert json.loads(got.body)["error"]


def test_a_failing_network_is_our_fault_and_the_server_lives(model: wm.Conditioned) -> None:
    broken = True

    def backend(x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        if broken:
            raise RuntimeError("out of memory")
        return x

    client = Client(application(model, Inputs(SHAPE), backend=backend))
    try:
        content = {"input": sample(0).tolist(), "theta": theta(0)}
        got = client.predict(content)
        assert got.status == 500
        assert json.loads(got.body) == {"error": "the network failed: RuntimeError: out of memory"}
        broken = False
        assert client.predict(content).status == 200
    finally:
        client.close()


def test_too_many_and_too_slow(model: wm.Conditioned) -> None:
    """More requests than may wait get 503, those that waited too long 504, and the rest are answered."""
    release = threading.Event()

    def backend(x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        release.wait(30)
        return x

    limits = Limits(batch=1, wait=0.0, queue=3, timeout=0.4)
    client = Client(application(model, Inputs(SHAPE), limits, backend=backend))
    try:
        body = json.dumps({"input": sample(0).tolist(), "theta": theta(0)}).encode()

        async def eight() -> Any:
            return await asyncio.gather(*(client._ask("POST", "/predict", body, {}) for _ in range(8)))

        statuses = [got.status for got in client.run(eight())]
        assert statuses.count(503) >= 4
        assert statuses.count(504) == 8 - statuses.count(503)
        release.set()
        assert client.predict(body).status == 200

        async def never() -> Any:
            head = {"content-type": "application/json"}
            task = client._ask("POST", "/predict", [], head)
            return await task

        assert client.run(never()).status == 408
    finally:
        release.set()
        client.close()


# Around it


def test_health_metrics_and_description(client: Client) -> None:
    assert json.loads(client.ask("GET", "/health").body) == {"status": "ok"}
    client.predict({"input": sample(0).tolist(), "theta": theta(0)})
    client.predict(b"{bad")
    text = client.ask("GET", "/metrics").body.decode()
    assert 'weightmorph_requests_total{status="200"} 1.0' in text
    assert 'weightmorph_requests_total{status="400"} 1.0' in text
    assert "weightmorph_batch_size_count 1.0" in text
    assert "weightmorph_queue 0.0" in text
    about = json.loads(client.ask("GET", "/").body)
    assert about["input"] == {"shape": [1, 6, 6], "dtype": "float32"}
    assert about["theta"]["blur"] == {"kind": "Interval", "unit": "px", "range": [0.0, 4.0], "anchor": 0.0}
    assert about["theta"]["time"]["names"] == ["day", "night"]
    assert about["batching"] == "one call per batch"


def test_a_model_that_does_not_fit_is_found_before_serving(model: wm.Conditioned) -> None:
    with pytest.raises(ConfigError, match=r"input_shape: the network cannot take a sample of 1×7×7 float32"):
        application(model, Inputs((1, 7, 7)))
    with pytest.raises(ConfigError, match="sizes of 1 or more"):
        Inputs((0,))
    with pytest.raises(ConfigError, match="timeout: expected a number above 0"):
        Limits(timeout=0)
    with pytest.raises(ConfigError, match="tensors whose first axis is the batch's"):
        application(conditioned(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0))), Inputs(SHAPE))


@pytest.mark.parametrize("package", ["starlette", "pydantic", "prometheus_client"])
def test_a_missing_package_is_named(package: str, model: wm.Conditioned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"'{package}'.*pip install 'weightmorph\[serve\]'"):
        application(model, Inputs(SHAPE))


def test_the_batcher_answers_what_waits_before_it_stops() -> None:
    def answers(asked: Any) -> list[Any]:
        time.sleep(0.02)
        return [one.theta["n"] for one in asked]

    async def scene() -> list[Any]:
        batcher = Batcher(answers, Limits(batch=4), lambda size, seconds: None)
        batcher.start()
        until = time.monotonic() + 30
        asked = [asyncio.create_task(batcher.ask(PredictRequest(np.zeros(1), {"n": n}), until)) for n in range(20)]
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0.001)
        with pytest.raises(RequestError) as refused:
            await batcher.ask(PredictRequest(np.zeros(1), {"n": 0}), until)
        assert refused.value.status == 503
        await stopping
        return [await one for one in asked]

    assert asyncio.run(scene()) == list(range(20))
