"""Wait for other threads, processes and transactions.

A deadline is for failures only: no test measures how fast the machine is. Every deadline, every limit of a test and
the heartbeats of the scenarios are multiplied by one factor, the patience of the run. ``PUPSOURCING_TEST_PATIENCE``
sets it. By default it is the load per processor at the start of the run, at least 1 and at most 5.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

__all__ = ["PATIENCE", "patiently", "wait_until"]


def _patience() -> float:
    configured = os.environ.get("PUPSOURCING_TEST_PATIENCE")
    if configured:
        return float(configured)
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 5.0)


PATIENCE: Final = _patience()


def patiently(seconds: float) -> float:
    """Return a deadline, scaled by the patience of this run."""
    return seconds * PATIENCE


def wait_until(is_so: Callable[[], object], *, seconds: float = 30) -> None:
    """Wait for a condition. Fail after ``seconds``, scaled by the patience of this run."""
    deadline = time.monotonic() + patiently(seconds)
    while not is_so():
        assert time.monotonic() < deadline, f"still not so after {patiently(seconds)} s"
        time.sleep(0.01)
