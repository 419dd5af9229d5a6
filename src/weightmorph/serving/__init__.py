"""A conditioned network over HTTP: each request with its own θ, many of them in one per-sample call.

On [Starlette](https://www.starlette.io) and [uvicorn](https://www.uvicorn.org), in one process: the event loop reads
and checks requests, and one thread runs the network. What cannot be answered is refused before it joins a batch, so no
request suffers for another's fault. `lit_api` and `lit_run` are the same on LitServe. `docs/command_line.md` has the
protocol.

    >>> import torch, weightmorph as wm
    >>> from weightmorph.serving import Inputs, application
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10))
    >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
    >>> app = application(model, Inputs((1, 8, 8)))  # any ASGI server runs it; weightmorph.serving.run(…) does
    >>> sorted(route.path for route in app.routes)
    ['/', '/health', '/metrics', '/predict']
"""

from .backend import Backend, OneSetting, PerSample
from .limits import Limits
from .lit import lit_api, lit_run
from .request import Asked, Inputs
from .run import application, run

__all__ = [
    "Asked", "Backend", "Inputs", "Limits", "OneSetting", "PerSample", "application", "lit_api", "lit_run", "run",
]  # fmt: skip
