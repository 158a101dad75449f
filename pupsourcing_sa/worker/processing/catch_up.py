"""Catch-up: the log messages of a partition that is behind the log. Pure: the time is a parameter.

::

                                       every 30 s: "consumer is catching up"
                                         ┌───────┐
                 reaches the end         ▼       │
    silent  ◀──────────────────────  reported behind   ◀── start of a processor
      │    "consumer has caught up"      ▲
      │                                  │
      └── has been behind for 30 s ──────┘

A partition that keeps up with new events logs nothing.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CATCHING_UP", "CAUGHT_UP", "CatchUp"]

CATCHING_UP: Final = "consumer is catching up"
CAUGHT_UP: Final = "consumer has caught up"

#: Seconds between two messages of a partition that is behind.
_INTERVAL: Final = 30.0


class CatchUp:
    """The last line that was logged about a partition, and when the next one is due."""

    def __init__(self) -> None:
        self._is_reported_behind = True
        self._next_line_at: float | None = None  # None while it keeps up

    def line(self, scanned: int, stable: int, now: float) -> str | None:
        """Return the log message that is due after some batches.

        Args:
            scanned: every event up to this position is handled.
            stable: the stable position that the batches aimed at.
            now: the time, in seconds.
        """
        if scanned >= stable:
            was_behind, self._is_reported_behind, self._next_line_at = self._is_reported_behind, False, None
            return CAUGHT_UP if was_behind else None
        if self._next_line_at is None:
            self._next_line_at = now + _INTERVAL
        if now < self._next_line_at:
            return None
        self._is_reported_behind, self._next_line_at = True, now + _INTERVAL
        return CATCHING_UP
