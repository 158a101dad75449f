"""How long to wait after a failure. Pure: the randomness is a parameter."""

from __future__ import annotations

__all__ = ["delay_after"]


def delay_after(failures: int, *, first: float, most: float, jitter: float) -> float:
    """Seconds to wait after so many failures in a row: exponential, with up to a quarter taken off at random.

    Args:
        failures: 1 or more.
        first: delay after the first failure, in seconds.
        most: the delay grows up to this, in seconds.
        jitter: a random number between 0 and 1; it keeps processes that failed together from trying again together.
    """
    doublings = min(failures - 1, 64)  # a float holds no more than 2**1023
    return min(first * 2.0**doublings, most) * (1 - jitter / 4)


