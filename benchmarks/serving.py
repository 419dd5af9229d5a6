"""Serving: 64 clients at once, each with its own θ, on a server that batches them and on two that do not.

    python benchmarks/serving.py [--quick] [--threads 1] [--requests 10000] [--clients 64]

| server | what it runs |
|---|---|
| together | `weightmorph.serving` as it comes: requests that wait are one call with one θ per sample |
| one at a time | the same, with `batch=1`: a call for each request |
| one baked network per θ | the same HTTP, and behind it 64 plain networks, each made for one client's θ |

All run at once, each in processes of its own, and are asked in turns on the loopback interface. Clients keep a
connection for a round and send the next request when the last is answered. Images go as .npy, answers come as JSON.
Every answer is compared with the baked network's for its client's θ. Writes serving.md and serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import angles, condition, network
from timing import parser, say, table, times, write
from torch import Tensor, nn

import weightmorph as wm
from weightmorph.serving import Inputs, Limits, run

NETWORK, FAMILY = "demo CNN 28²", "full sum"
TOGETHER, ALONE, BAKED = "together", "one at a time", "one baked network per θ"
SERVERS = (TOGETHER, ALONE, BAKED)
IMAGES = 128
TOLERANCE = 1e-5


def made() -> tuple[wm.Conditioned, Tensor]:
    """The model, the same in every process, and the images that are sent."""
    found = network(NETWORK)
    x, _ = found.inputs(IMAGES)
    return condition(found.make(), FAMILY, x), x


# The servers


class Baked:
    """A plain network for each θ."""

    def __init__(self, model: wm.Conditioned, settings: list[float]) -> None:
        self.networks: dict[float, nn.Module] = {np.float32(a).item(): model.bake(angle=a) for a in settings}

    def __call__(self, x: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
        rows = zip(theta["angle"].float().tolist(), x.split(1), strict=True)
        return torch.cat([self.networks[angle](row) for angle, row in rows])


def serve(kind: str, options: argparse.Namespace) -> None:
    """One of the servers, on a free port that it prints."""
    torch.set_num_threads(options.threads[0])
    model, x = made()
    backend = Baked(model, angles(options.clients).tolist()) if kind == BAKED else None
    inputs, limits = Inputs(tuple(x.shape[1:])), Limits(batch=1 if kind == ALONE else 64, timeout=600)
    run(model, inputs, port=0, limits=limits, backend=backend, ready=lambda address: print(address, flush=True))


@contextlib.contextmanager
def running(kind: str, options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """A server's port and process id while it lasts."""
    words = [sys.executable, __file__, "--serve", kind, "--clients", str(options.clients)]
    words += ["--threads", str(options.threads[0])]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def memory(pid: int) -> float | None:
    """Resident MiB of a process, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return None


# The clients


@dataclass
class Found:
    """What a server's clients saw."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sent: int = 0
    answers: list[tuple[int, int, list[float]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    resident: float | None = None


class Client:
    """One connection, one θ; it sends an image and waits for the answer."""

    def __init__(self, number: int, angle: float, port: int, bodies: list[bytes], found: Found) -> None:
        self.number, self.angle, self.port, self.bodies, self.found = number, angle, port, bodies, found
        self.turn = 0

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, requests: int) -> None:
        for _ in range(requests):
            image = (31 * self.number + self.turn) % len(self.bodies)
            self.turn += 1
            self.found.sent += 1
            start = time.perf_counter()
            status, body = await self._post(self.bodies[image])
            self.found.seconds.append(time.perf_counter() - start)
            if status == 200:
                self.found.answers.append((self.number, image, json.loads(body)["output"]))
            else:
                self.found.failures.append(f"{status}: {body[:200]!r}")

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        head = f"POST /predict?angle={self.angle!r} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(answer.split(b" ", 2)[1]), await self.reader.readexactly(length)


def npy(array: Tensor) -> bytes:
    """An .npy file."""
    file = io.BytesIO()
    np.save(file, array.numpy())
    return file.getvalue()


async def measure(ports: Mapping[str, int], found: Mapping[str, Found], x: Tensor, options: argparse.Namespace) -> None:
    """Rounds, in each of which every server gets its share of the requests, in an order drawn anew."""
    bodies = [npy(image) for image in x]
    settings = angles(options.clients).tolist()
    clients = {
        name: [Client(number, angle, port, bodies, found[name]) for number, angle in enumerate(settings)]
        for name, port in ports.items()
    }
    for group in clients.values():
        async with connected(group):
            await asyncio.gather(*(client.ask(2) for client in group))
    for one in found.values():  # what came before the clock
        one.sent, one.seconds = 0, []
        one.answers.clear()
    order, draw = list(ports), random.Random(0)
    for turn in range(options.rounds):
        draw.shuffle(order)
        for name in order:
            share = options.requests * (turn + 1) // options.rounds - options.requests * turn // options.rounds
            counts = [share // options.clients + (n < share % options.clients) for n in range(options.clients)]
            async with connected(clients[name]):
                start = time.perf_counter()
                await asyncio.gather(*(c.ask(n) for c, n in zip(clients[name], counts, strict=True)))
                found[name].rates.append(share / (time.perf_counter() - start))
        say(f"round {turn + 1} of {options.rounds}: " + ", ".join(f"{n} {found[n].rates[-1]:.0f}/s" for n in ports))


@contextlib.asynccontextmanager
async def connected(clients: list[Client]) -> AsyncIterator[None]:
    """Each client with a connection: a server closes one on which nothing comes for long."""
    await asyncio.gather(*(client.connect() for client in clients))
    try:
        yield
    finally:
        for client in clients:
            client.writer.close()


# The judge


def judged(found: Mapping[str, Found], model: wm.Conditioned, x: Tensor, clients: int) -> list[dict[str, Any]]:
    """A row for each server: rate, times, and how far its answers are from the baked networks'."""
    with torch.no_grad():
        expected = torch.stack([model.bake(angle=a)(x) for a in angles(clients).tolist()])
    rows = []
    for name, one in found.items():
        errors = [
            float((torch.tensor(output) - expected[client, image]).abs().max()) for client, image, output in one.answers
        ]
        rows.append(
            {
                "server": name,
                "rate": statistics.median(one.rates),
                "rates": one.rates,
                "median": statistics.median(one.seconds),
                "p99": float(np.quantile(one.seconds, 0.99)),
                "sent": one.sent,
                "lost": one.sent - len(one.answers),
                "wrong": sum(error > TOLERANCE for error in errors),
                "largest error": max(errors, default=float("nan")),
                "resident": one.resident,
                "failures": one.failures[:5],
            }
        )
    return rows


def apart(model: wm.Conditioned, x: Tensor, clients: int) -> float:
    """How near two clients' right answers to one image come: an answer mixed up would show by at least so much."""
    with torch.no_grad():
        outputs = torch.stack([model.bake(angle=a)(x[:16]) for a in angles(clients).tolist()])
    distance = (outputs[:, None] - outputs[None]).abs().amax(-1)
    distance += torch.eye(clients)[..., None] * 1e9
    return float(distance.min())


def blocks(rows: list[dict[str, Any]], near: float, options: argparse.Namespace) -> list[str]:
    """The table and what it has to be read with."""
    first = rows[0]["rates"]
    cells = [
        (
            row["server"],
            f"{row['rate']:,.0f}",
            times(statistics.median(rate / other for rate, other in zip(row["rates"], first, strict=True))),
            f"{row['median'] * 1e3:.0f} / {row['p99'] * 1e3:.0f}",
            f"{row['sent']:,}",
            row["lost"],
            row["wrong"],
            f"{row['largest error']:.1e}",
            "-" if row["resident"] is None else f"{row['resident']:.0f}",
        )
        for row in rows
    ]
    head = (
        "server",
        ">requests/s",
        ">relative",
        ">median / p99, ms",
        ">sent",
        ">lost",
        ">wrong",
        ">largest error",
        ">MiB",
    )
    return [
        f"{options.clients} clients at once, each with its own angle, {NETWORK} under Warp + LowRank(8) + Scale, "
        f"{options.threads[0]} thread a server; medians over {options.rounds} rounds in turns, ratios within a round.",
        table(head, cells),
        f"*Wrong* is further than {TOLERANCE:g} from the baked network of the client's own angle. Right answers of two "
        f"clients to one image differ by {near:.1e} at the least, so an answer that went to another would be found.",
    ]


def main() -> None:
    """Start the servers, ask them in turns, compare, write."""
    made_parser = parser(__doc__, thread_counts=(1,))
    made_parser.add_argument("--requests", type=int, help="to each server (default: 10000; 1280 with --quick)")
    made_parser.add_argument("--clients", type=int, default=64, help="(default: 64)")
    made_parser.add_argument("--rounds", type=int, default=10, help="in which they are sent (default: 10)")
    made_parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    options = made_parser.parse_args()
    options.requests = options.requests or (1280 if options.quick else 10_000)
    options.rounds = min(options.rounds, 2) if options.quick else options.rounds
    if options.serve:
        serve(options.serve, options)
        return
    torch.set_num_threads(options.threads[0])
    model, x = made()
    found = {name: Found() for name in SERVERS}
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(running(name, options)) for name in SERVERS}
        asyncio.run(measure({name: port for name, (port, _) in started.items()}, found, x, options))
        for name, (_, pid) in started.items():
            found[name].resident = memory(pid)
    rows = judged(found, model, x, options.clients)
    text = blocks(rows, apart(model, x, options.clients), options)
    say("\n\n".join(text))
    write(options, "serving", "Serving many settings at once", text, rows)
    if any(row["lost"] or row["wrong"] for row in rows):
        sys.exit(f"lost or wrong answers: {[row['failures'] for row in rows]}")


if __name__ == "__main__":
    main()
