"""`weightmorph serve` as a process: many clients at once, and an end on which nobody is left without an answer."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from served import post, sample, started, theta

import weightmorph as wm


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, wm.Conditioned]]:
    with started(tmp_path, "--max_body", "0.05") as found:
        yield found


@pytest.mark.slow
def test_many_clients_each_with_its_own_setting(served: Any) -> None:
    """None lost, none mixed up; then it ends as it is told to, with what is at hand answered."""
    process, port, model = served
    clients, each = 16, 20
    failures: list[Any] = []
    baked = [model.bake(**theta(number)) for number in range(clients)]

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            for turn in range(each):
                x = sample(number * each + turn)
                status, got = post(connection, json.dumps({"input": x.tolist(), "theta": theta(number)}).encode())
                expected = baked[number](x[None])[0].detach()
                if status != 200 or not torch.allclose(torch.tensor(got["output"]), expected, atol=1e-5, rtol=0):
                    failures.append((number, turn, status, got))
            if number == 0:
                status, got = post(connection, b"{bad")
                if status != 400:
                    failures.append((status, got))
        except Exception as error:
            failures.append((number, repr(error)))
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures, failures[:3]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert f'weightmorph_requests_total{{status="200"}} {float(clients * each)}' in text
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, (out, err)
    assert "Traceback" not in err


@pytest.mark.slow
def test_interrupted_with_a_request_at_hand(served: Any) -> None:
    """Ctrl-C: the request that is being sent is still answered."""
    process, port, model = served
    body = json.dumps({"input": sample(0).tolist(), "theta": theta(1)}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:50])
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    connection.send(body[50:])
    response = connection.getresponse()
    got = json.loads(response.read())
    assert response.status == 200, got
    torch.testing.assert_close(
        torch.tensor(got["output"]), model.bake(**theta(1))(sample(0)[None])[0].detach(), atol=1e-5, rtol=0
    )
    process.communicate(timeout=30)
    assert process.returncode == 0
