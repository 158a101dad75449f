"""The overdue monitor: reports a batch that takes too long, while it runs.

The thread or greenlet of a batch assigns its progress once per event, and never reads the time. A timer on the event
loop reads the progress once per ``stall_warning``. A coroutine that blocks the event loop also blocks the timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pupsourcing_sa.event import PersistedEvent

__all__ = ["BatchProgress", "OverdueMonitor"]


class BatchProgress:
    """The progress of one batch. Its thread writes ``events`` and ``current``; the event loop reads them.

    Attributes:
        began_at: time when it began, in seconds of the monitor's clock.
        events: the events of the batch; none before they are read.
        current: index of the event that the handler is at; ``None`` before the first, and in a ``handle_batch``.
        is_reported: True if the batch was reported. Only the event loop writes it.
    """

    __slots__ = ("began_at", "current", "events", "is_reported")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.events: Sequence[PersistedEvent] = ()
        self.current: int | None = None
        self.is_reported = False

    @property
    def position(self) -> int | None:
        """Position of the current event, or of the first one; ``None`` before the events are read."""
        events, current = self.events, self.current
        return events[current or 0].global_position if events else None

    def details(self) -> dict[str, Any]:
        """Return the current event, or the first and the last position of the batch, for a log record."""
        # The thread may write them at any time, so read each only once.
        events, current = self.events, self.current
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


class OverdueMonitor:
    """Monitor that reports batches that run for too long, each once.

    Args:
        seconds: time that a batch may take.
        report: called on the event loop with the batch and the seconds since it began.
        clock: returns seconds, as ``time.monotonic`` does.
    """

    def __init__(
        self, seconds: float, report: Callable[[BatchProgress, float], None], clock: Callable[[], float]
    ) -> None:
        self._seconds = seconds
        self._report = report
        self._clock = clock
        # Written by the batch's thread, read by the event loop; None between batches and while they wait for a slot.
        self._progress: BatchProgress | None = None

    @property
    def progress(self) -> BatchProgress | None:
        """The batch that runs; ``None`` between batches."""
        return self._progress

    @contextmanager
    def batch(self) -> Iterator[BatchProgress]:
        """Wrap a batch, in its thread."""
        self._progress = progress = BatchProgress(self._clock())
        try:
            yield progress
        finally:
            self._progress = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the batches that run within the block, on the event loop."""
        self._check_after(self._seconds)
        try:
            yield
        finally:
            self._timer.cancel()

    def _check_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        progress = self._progress
        seconds = 0.0 if progress is None else self._clock() - progress.began_at
        if progress is None or seconds < self._seconds:
            self._check_after(self._seconds - seconds)
            return
        if not progress.is_reported:
            progress.is_reported = True
            self._report(progress, seconds)
        self._check_after(self._seconds)
