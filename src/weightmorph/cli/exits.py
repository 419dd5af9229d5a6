"""Exit codes."""

from __future__ import annotations

import signal

__all__ = ["DONE", "FAILED", "INTERRUPTED", "TERMINATED", "UNUSABLE"]

DONE = 0
FAILED = 1
UNUSABLE = 2
"""A flag or a configuration cannot be used."""

INTERRUPTED, TERMINATED = 128 + int(signal.SIGINT), 128 + int(signal.SIGTERM)
"""As a shell gives it."""
