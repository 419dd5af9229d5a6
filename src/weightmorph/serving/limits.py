"""The limits beyond which a server refuses a request."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Args:
        batch: requests in one call of the network.
        wait: how long the first request of a batch waits for others, in seconds. Requests that come while the network
            runs are the next batch anyway.
        body: bytes of a request's body; a larger one gets 413.
        queue: requests that may wait; one more gets 503.
        timeout: seconds from a request's first byte to its answer. After that it gets 408 while its body is being
            read, and 504 while it waits.
        grace: seconds for the requests in progress when the server stops.

    Raises:
        ConfigError: if one of them is not above 0 (`wait`: below 0).

    Example:
        >>> Limits(batch=0)
        Traceback (most recent call last):
        weightmorph.errors.ConfigError: batch: expected a number above 0, got 0
    """

    batch: int = 64
    wait: float = 0.002
    body: int = 16 * 2**20
    queue: int = 1024
    timeout: float = 30.0
    grace: float = 10.0

    def __post_init__(self) -> None:
        for name in ("batch", "body", "queue", "timeout", "grace"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a number above 0, got {getattr(self, name)!r}")
        if not self.wait >= 0:
            raise ConfigError(f"wait: expected 0 or more seconds, got {self.wait!r}")
