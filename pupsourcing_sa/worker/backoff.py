"""Back-off: the delay after a failure. Pure: the randomness is a parameter."""

from __future__ import annotations

__all__ = ["delay_after"]


def delay_after(failures: int, *, first: float, max_delay: float, jitter: float) -> float:
    """Return the seconds to wait after consecutive failures: doubled for each, minus up to a quarter at random.

    Args:
        failures: number of failures in a row, 1 or more.
        first: delay after the first failure, in seconds.
        max_delay: upper limit of the delay, in seconds.
        jitter: a random number between 0 and 1. It spreads the retries of processes that failed at the same time.
    """
    doublings = min(failures - 1, 64)  # 2.0**1024 is too large for a float
    return min(first * 2.0**doublings, max_delay) * (1 - jitter / 4)
