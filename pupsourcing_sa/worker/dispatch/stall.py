"""Whether the stable position stands still. Pure: the time is a parameter."""

from __future__ import annotations

__all__ = ["StallWatch"]


class StallWatch:
    """Follows the stable position and the log's head, and tells when to complain.

    Args:
        patience: how long the position may stand still below the head, in seconds; the pause between two complaints.
        now: the time, in seconds from anywhere.
    """

    def __init__(self, patience: float, now: float) -> None:
        self._patience = patience
        self._position = -1
        self._since = now
        self._complained_at: float | None = None

    def is_due(self, position: int, head: int, now: float) -> bool:
        """Take notice of what was seen; whether it is time to complain."""
        if position > self._position or position >= head:
            self._position, self._since = position, now
            return False
        last = self._since if self._complained_at is None else self._complained_at
        return now - last >= self._patience

    def complained(self, now: float) -> None:
        """What was due has been done."""
        self._complained_at = now

    def has_ended(self) -> bool:
        """Whether what was complained of has come to an end since; says so once."""
        if self._complained_at is None or self._since <= self._complained_at:
            return False
        self._complained_at = None
        return True

    def seconds(self, now: float) -> float:
        """For how long it has been standing still."""
        return now - self._since
