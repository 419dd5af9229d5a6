"""Counts and times of a server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["Metrics"]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counts and times that `/metrics` shows.

    | name | meaning |
    |---|---|
    | `weightmorph_requests_total{status}` | requests answered, by HTTP status |
    | `weightmorph_request_seconds` | from a request's arrival to its answer |
    | `weightmorph_batch_size` | requests in one call of the network |
    | `weightmorph_batch_seconds` | seconds of that call |
    | `weightmorph_queue` | requests that wait now |

    Args:
        waiting: returns the number of requests that wait.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("weightmorph_requests", "Requests answered", ["status"], registry=registry)
        self._seconds = Histogram(
            "weightmorph_request_seconds", "From a request's arrival to its answer", buckets=SECONDS, registry=registry
        )
        self._sizes = Histogram("weightmorph_batch_size", "Requests in one call", buckets=SIZES, registry=registry)
        self._batches = Histogram("weightmorph_batch_seconds", "Of one call", buckets=SECONDS, registry=registry)
        Gauge("weightmorph_queue", "Requests that wait", registry=registry).set_function(waiting)

    def request(self, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Count one batch."""
        self._sizes.observe(size)
        self._batches.observe(seconds)
