"""Where a running batch is, so that one that does not end is told of while it runs.

The thread or greenlet that runs a batch writes down where it is, and never looks at the time. A timer on the event loop
looks at it, once in a long while: that costs a batch an assignment for each event. A coroutine that blocks the loop
blocks the timer as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pupsourcing_sa.event import PersistedEvent

__all__ = ["Patience", "Progress"]


class Progress:
    """How far one batch has come; written by who runs it, read by anybody.

    Attributes:
        begun_at: when it began, in seconds from anywhere.
        events: those that it was given; none before they have been read.
        current: index of the one that its handler has; ``None`` when it has all of them, or none.
        is_told: whether it was complained of.
    """

    __slots__ = ("begun_at", "current", "events", "is_told")

    def __init__(self, begun_at: float) -> None:
        self.begun_at = begun_at
        self.events: Sequence[PersistedEvent] = ()
        self.current: int | None = None
        self.is_told = False

    def where(self) -> dict[str, Any]:
        """The event that it is at, or the first and the last position of its events; nothing if it has none."""
        events, current = self.events, self.current  # which may change at any time
        if not events:
            return {}
        if current is None:
            return {"first_position": events[0].global_position, "last_position": events[-1].global_position}
        event = events[current]
        return {
            "event_id": str(event.event_id),
            "event_type": event.event_type,
            "global_position": event.global_position,
        }


class Patience:
    """Complains of batches that run for too long, once of each.

    Args:
        seconds: for how long one may run.
        complain: told of the batch, and for how many seconds it has been running; called on the event loop.
        clock: seconds from anywhere.
    """

    def __init__(self, seconds: float, complain: Callable[[Progress, float], None], clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._complain = complain
        self._clock = clock
        self._progress: Progress | None = None

    @contextmanager
    def batch(self) -> Iterator[Progress]:
        """Wrap a batch, wherever it runs."""
        self._progress = progress = Progress(self._clock())
        try:
            yield progress
        finally:
            self._progress = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look after the batches that run meanwhile, one after the other; on the event loop."""
        self._look_in(self._seconds)
        try:
            yield
        finally:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        progress = self._progress  # None between two batches, and while they wait for their turn
        seconds = 0.0 if progress is None else self._clock() - progress.begun_at
        if progress is None or seconds < self._seconds:
            self._look_in(self._seconds - seconds)
            return
        if not progress.is_told:
            progress.is_told = True
            self._complain(progress, seconds)
        self._look_in(self._seconds)  # at the next batch
