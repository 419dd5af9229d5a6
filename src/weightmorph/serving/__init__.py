"""Serve a conditioned network over HTTP: each request has its own θ, and many share one per-sample call.

One process on [Starlette](https://www.starlette.io) and [uvicorn](https://www.uvicorn.org): the event loop reads and
checks requests, and one thread runs the network. A request that cannot be answered is refused before it joins a batch,
so one client's fault never costs another its answer. `docs/command_line.md` describes the protocol.

    >>> import torch, weightmorph as wm
    >>> from weightmorph.serving import Inputs, application
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10))
    >>> model = wm.condition(net, {"angle": wm.Angle("deg")}, wm.LowRank(2))
    >>> app = application(model, Inputs((1, 8, 8)))  # any ASGI server runs it; weightmorph.serving.run(…) does
    >>> sorted(route.path for route in app.routes)
    ['/', '/health', '/metrics', '/predict']
"""

from .backend import Backend, OneSetting, PerSample
from .inputs import Inputs, PredictRequest
from .limits import Limits
from .run import application, run

__all__ = ["Backend", "Inputs", "Limits", "OneSetting", "PerSample", "PredictRequest", "application", "run"]
