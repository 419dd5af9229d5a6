"""The server in tests: a small conditioned network, its requests, and the application without a network in between."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import weightmorph as wm

SOURCE = Path(__file__).resolve().parents[1] / "src"
SHAPE = (1, 6, 6)
SPACE = {"angle": wm.Angle("deg"), "blur": wm.Interval(0.0, 4.0, unit="px"), "time": wm.Categorical(("day", "night"))}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def conditioned(net: nn.Module | None = None, space: Mapping[str, Any] | None = None) -> wm.Conditioned:
    """With a transform away from its start, so that θ matters."""
    model = wm.condition(net or network(), space or SPACE, wm.LowRank(2) + wm.Scale())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


class Client:
    """The application without a network: one event loop in a thread, the lifespan run around it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.life = app.router.lifespan_context(app)
        self.run(self.life.__aenter__())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.run(self.life.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _ask(self, method: str, target: str, body: bytes | list[bytes], headers: dict[str, str]) -> Any:
        path, _, query = target.partition("?")
        chunks = body if isinstance(body, list) else [body]
        messages = [
            {"type": "http.request", "body": chunk, "more_body": number + 1 < len(chunks)}
            for number, chunk in enumerate(chunks)
        ]
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()], "http_version": "1.1",
            "scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "",
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        head = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return SimpleNamespace(
            status=sent[0]["status"], headers=head, body=b"".join(m.get("body", b"") for m in sent[1:])
        )

    def ask(
        self, method: str, target: str, body: bytes | list[bytes] = b"", headers: dict[str, str] | None = None
    ) -> Any:
        return self.run(self._ask(method, target, body, headers or {}))

    def predict(self, content: Any, **headers: str) -> Any:
        ready = isinstance(content, bytes) or (isinstance(content, list) and isinstance(content[0], bytes))
        body = content if ready else json.dumps(content).encode()
        return self.ask("POST", "/predict", body, {"content-type": "application/json"} | headers)


def sample(seed: int) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def theta(number: int) -> dict[str, Any]:
    return {"angle": 7.0 * number, "blur": (number % 5) * 0.9, "time": ("day", "night")[number % 2]}


NETWORK = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""


@contextlib.contextmanager
def started(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int, wm.Conditioned]]:
    """`weightmorph serve` on a free port of the loopback interface; always ended."""
    (folder / "net.py").write_text(NETWORK)
    model = conditioned()
    model.save(folder / "model.safetensors", metrics={"input_shape": list(SHAPE)})
    argv = ["serve", "model.safetensors", "--base", "net.py:network", "--port", "0", *more]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "weightmorph.cli", *argv], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, (line, process.communicate(timeout=10))
        yield process, int(line.partition("http://127.0.0.1:")[2].partition(":")[0].partition(" ")[0]), model
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=30)


def post(connection: http.client.HTTPConnection, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    response = connection.getresponse()
    return response.status, json.loads(response.read())
