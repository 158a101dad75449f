"""How long to wait after a failure. Pure: the randomness is a parameter."""

from __future__ import annotations

__all__ = ["delay_after", "limit_after"]


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


def limit_after(events: int, failed: int | None) -> int:
    """How many events to try after a batch failed.

    Args:
        events: how many the batch had.
        failed: index of the event whose handler failed; ``None`` when it is not known which one it was.

    Returns:
        The events before the failing one, or half of a batch in which it has to be searched; 1 once it is isolated.
    """
    return max(1, events // 2 if failed is None else failed)
