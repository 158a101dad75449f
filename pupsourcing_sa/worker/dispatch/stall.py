"""Detection of a stalled stable position. Pure: the time is a parameter."""

from __future__ import annotations

__all__ = ["StallMonitor"]


class StallMonitor:
    """Monitor that decides when to report that the stable position does not reach the last position.

    Args:
        seconds: time without progress after which a stall is reported, and the interval between two reports.
        now: the current time in seconds, of any monotonic clock.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._position = -1
        self._since = now
        self._reported_at: float | None = None

    def is_due(self, position: int, last: int, now: float) -> bool:
        """Note the current positions. Return True if a stall is due for a report."""
        if position > self._position or position >= last:
            self._position, self._since = position, now
            return False
        before = self._since if self._reported_at is None else self._reported_at
        return now - before >= self._seconds

    def reported(self, now: float) -> None:
        """Note that the stall was reported. Until then it stays due."""
        self._reported_at = now

    def has_ended(self) -> bool:
        """Return True once after a reported stall has ended."""
        if self._reported_at is None or self._since <= self._reported_at:
            return False
        self._reported_at = None
        return True

    def seconds(self, now: float) -> float:
        """Return the duration of the stall in seconds."""
        return now - self._since
