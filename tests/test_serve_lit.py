"""The server on LitServe: the same requests get the same answers, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import pickle
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from served import NETWORK, SHAPE, Client, conditioned, post, sample, started, theta
from torch import Tensor

import weightmorph as wm
from weightmorph.cli.commands.serve import in_worker
from weightmorph.cli.options import Serve
from weightmorph.errors import ConfigError, MissingDependencyError, RequestError
from weightmorph.serving import Asked, Inputs, Limits, application, lit_api, lit_run

pytest.importorskip("litserve")
BODY = 20_000


@pytest.fixture(scope="module")
def model() -> wm.Conditioned:
    return conditioned()


BAD: list[Any] = [
    b"{bad",
    b"\xff\xfe",
    [1, 2],
    {},
    {"input": 1, "thet": {}},
    {"input": np.zeros((1, 1, 6, 6)).tolist()},
    {"input": {"npy": "%%%"}},
    {"input": sample(0).tolist(), "theta": {"angl": 3}},
    {"input": sample(0).tolist(), "theta": theta(1) | {"blur": 4.5}},
    {"input": sample(0).tolist(), "theta": theta(1) | {"time": "nigth"}},
    b"[" * (BODY + 10),
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there LitServe cannot end its threads")
def test_many_clients_some_of_whom_are_wrong(tmp_path: Path) -> None:
    """Each gets its own answer or its own 4xx, as the other server gives it; then all processes end."""
    clients, each = 16, 6
    other = Client(application(conditioned(), Inputs(SHAPE), Limits(body=BODY)))
    bodies = [content if isinstance(content, bytes) else json.dumps(content).encode() for content in BAD]
    refusals = [(got.status, json.loads(got.body)) for got in map(other.predict, bodies)]
    other.close()
    assert all(400 <= status < 500 for status, _ in refusals)
    failures: list[Any] = []

    def work(number: int, port: int, baked: Any) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            for turn in range(each):
                x = sample(number * each + turn)
                status, got = post(connection, json.dumps({"input": x.tolist(), "theta": theta(number)}).encode())
                if status != 200 or not torch.allclose(
                    torch.tensor(got["output"]), baked(x[None])[0].detach(), atol=1e-5, rtol=0
                ):
                    failures.append((number, turn, status, got))
                wrong = (number + turn) % len(bodies)
                if (refused := post(connection, bodies[wrong])) != refusals[wrong]:
                    failures.append((wrong, refused, refusals[wrong]))
        except Exception as error:
            failures.append((number, repr(error)))
        finally:
            connection.close()

    words = ["--engine", "litserve", "--max_wait", "20", "--max_body", str(BODY / 2**20)]
    with started(tmp_path, *words) as (process, port, model):
        threads = [
            threading.Thread(target=work, args=(number, port, model.bake(**theta(number)))) for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failures, failures[:3]
        texts = {}
        for path in ("/health", "/metrics", "/info"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path)
            response = connection.getresponse()
            texts[path] = response.status, response.read().decode()
            connection.close()
        assert texts["/health"] == (200, "ok")
        assert f'weightmorph_requests_total{{status="200"}} {float(clients * each)}' in texts["/metrics"][1]
        assert f"weightmorph_batch_size_sum {float(clients * each)}" in texts["/metrics"][1]
        assert f"weightmorph_batch_size_count {float(clients * each)}" not in texts["/metrics"][1], "none shared a call"
        assert json.loads(texts["/info"][1])["model"]["theta"]["blur"]["unit"] == "px"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)  # to the end of the pipes, which every process of it holds
    assert process.returncode == 0, (out, err)
    assert "Traceback" not in out + err


def test_what_a_worker_runs(model: wm.Conditioned) -> None:
    """It gets there by pickle, answers a batch in one call, and what the network fails on harms nobody else."""
    sizes: list[int] = []
    made = lit_api(model, Inputs(SHAPE))
    made.pre_setup()
    api = pickle.loads(pickle.dumps(made))
    api.setup("cpu")
    inner = api.backend

    def picky(x: Tensor, values: Mapping[str, Tensor]) -> Any:
        sizes.append(len(x))
        if bool((x == 2).any()):
            raise ZeroDivisionError("2 is not to my taste")
        return inner(x, values)

    indices = [theta(n) | {"time": float(n % 2)} for n in range(4)]
    asked = [Asked(sample(n).numpy(), setting) for n, setting in enumerate(indices)]
    assert len(repr(asked[0])) < 100, "LitServe makes a text of every request, and of an array that takes milliseconds"
    api.backend = picky
    answers = [api.encode_response(one) for one in api.unbatch(api.predict([api.decode_request(one) for one in asked]))]
    assert sizes == [4]
    assert [one.batch is not None for one in answers] == [True, False, False, False]
    for number, one in enumerate(answers):
        expected = model.bake(**theta(number))(sample(number)[None])[0].detach()
        torch.testing.assert_close(torch.from_numpy(one.output), expected, atol=1e-5, rtol=0)
    asked[1] = Asked(np.full(SHAPE, 2, np.float32), indices[1])
    good, bad, *_ = pickle.loads(pickle.dumps(api.predict(asked)))
    assert good.output.tolist() == pytest.approx(answers[0].output.tolist(), abs=1e-5)
    assert isinstance(bad.output, RequestError)
    assert (bad.output.status, str(bad.output)) == (500, "the network failed: ZeroDivisionError: 2 is not to my taste")


def test_a_worker_is_loaded_as_the_command_line_says(tmp_path: Path) -> None:
    """It is a process of its own: the threads and the model have to be told once more."""
    (tmp_path / "net.py").write_text(NETWORK)
    conditioned().save(tmp_path / "model.safetensors", metrics={"input_shape": list(SHAPE)})
    options = Serve(model=str(tmp_path / "model.safetensors"), base=f"{tmp_path / 'net.py'}:network", threads=3)
    with mock.patch("torch.set_num_threads") as told:
        loaded = in_worker(options)
    told.assert_called_once_with(3)
    torch.testing.assert_close(loaded(sample(0)[None], **theta(1)), conditioned()(sample(0)[None], **theta(1)))


def test_one_at_a_time_and_at_once(model: wm.Conditioned) -> None:
    """A batch of 1 is a list all the same, and a worker that waits for no other request still sleeps when idle."""
    from litserve.loops.simple_loops import BatchedLoop

    api = lit_api(model, Inputs(SHAPE), Limits(batch=1, wait=0))
    assert isinstance(api.loop, BatchedLoop)
    assert api.batch_timeout > 0


def test_too_many_and_too_slow(model: wm.Conditioned, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 when too many wait, 504 when it takes too long; what comes later is still taken from LitServe."""
    from weightmorph.serving import lit_app

    release = asyncio.Event()

    class Slow:
        def __init__(self, api: Any, server: Any) -> None: ...

        async def handle_request(self, asked: Any, kind: Any) -> Any:
            await release.wait()
            return lit_app.Answer(asked.theta["n"], (1, 0.1))

    monkeypatch.setattr(lit_app, "RegularRequestHandler", Slow)
    api = lit_api(model, Inputs(SHAPE), Limits(batch=1, queue=2, timeout=0.3))
    api.pre_setup()
    door = api.spec

    async def scene() -> None:
        until = time.monotonic() + 0.3
        waiting = [asyncio.ensure_future(door.ask(Asked(np.zeros(1), {"n": n}), until)) for n in range(4)]
        texts = [str(one) for one in await asyncio.gather(*waiting, return_exceptions=True)]
        assert texts[:3] == ["no answer within 0.3 s; the server is too busy"] * 3
        assert texts[3] == "2 requests wait already; try again later"
        assert door.waiting == 3
        release.set()
        await asyncio.sleep(0.01)
        assert door.waiting == 0
        assert await door.ask(Asked(np.zeros(1), {"n": 7}), time.monotonic() + 30) == 7

    asyncio.run(scene())


def test_what_it_cannot_do_is_told_first(model: wm.Conditioned, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"host": "localhost"}, "host: LitServe listens on 127.0.0.1, 0.0.0.0, :: alone, got 'localhost'"),
        ({"port": 80}, "port: LitServe takes 1024 to 65535, or 0, got 80"),
        ({"workers": 0}, "workers: expected 1 or more, got 0"),
        ({"device": "tpu0"}, "device: expected one that this machine has, got 'tpu0'"),
        ({"device": "meta"}, "device: LitServe knows cpu, cuda and mps, got 'meta'"),
    ]
    for words, told in cases:
        with pytest.raises(ConfigError) as error:
            lit_run(model, Inputs(SHAPE), **words)
        assert told in str(error.value)
    with pytest.raises(ConfigError, match=r"input_shape: the network cannot take a sample of 1×7×7 float32"):
        lit_api(model, Inputs((1, 7, 7)))
    monkeypatch.setitem(sys.modules, "litserve", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'weightmorph\[litserve\]'"):
        lit_api(model, Inputs(SHAPE))
