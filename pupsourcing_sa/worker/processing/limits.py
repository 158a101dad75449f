"""Limits of a batch: how many events it handles and how many positions it reads. Pure: values in, new values out.

::

    event                                     limit                 divisor
    a handler failed, or a race was lost      see `limit_after`     unchanged
    a statement of the worker timed out       unchanged             doubled
    a batch with events was committed         doubled               halved
    a batch without events was committed      unchanged             halved

The divisor divides both the limit of events and the number of positions to read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pupsourcing_sa.worker.processing.outcomes import BatchError, BatchResult

__all__ = ["BatchLimits", "checkpoint_delay", "checkpoint_threshold", "limit_after"]

#: Maximum number of positions that a batch reads, so that a rare scope does not scan the whole log in one transaction.
_WINDOW: Final = 100_000
#: The checkpoint moves past positions without events of the scope after this number of positions, or of seconds.
_IDLE_POSITIONS: Final = 10_000
_IDLE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of the next batch.

    Attributes:
        batch_size: maximum number of events, by the consumer's or the worker's settings.
        limit: maximum number of events after failures; at most ``batch_size``.
        divisor: divides the number of positions and of events, after a statement has timed out.
    """

    batch_size: int
    limit: int
    divisor: int = 1

    @classmethod
    def of(cls, batch_size: int) -> BatchLimits:
        """Return the limits of a first batch."""
        return cls(batch_size, batch_size)

    @property
    def max_events(self) -> int:
        """Maximum number of events of the next batch."""
        return max(1, self.limit // self.divisor)

    @property
    def window(self) -> int:
        """Maximum number of positions that the next batch reads."""
        return max(1, _WINDOW // self.divisor)

    @property
    def is_smallest(self) -> bool:
        """True if `shrunk` would not make a difference: a batch reads one position."""
        return self.divisor >= max(_WINDOW, self.batch_size)

    def narrowed(self, error: BatchError) -> BatchLimits:
        """Return the limits after a failure, or a lost race: fewer events hold fewer locks, for a shorter time."""
        return replace(self, limit=limit_after(len(error.events), error.failed))

    def shrunk(self) -> BatchLimits:
        """Return the limits after a statement of the worker timed out.

        It was the statement that reads events, because the others find one row. The events are large, or the scope is
        rare, and the role has a ``statement_timeout``.
        """
        return self if self.is_smallest else replace(self, divisor=self.divisor * 2)

    def grown(self, *, has_events: bool) -> BatchLimits:
        """Return the limits after a batch was committed."""
        limit = min(2 * self.limit, self.batch_size) if has_events else self.limit
        divisor = max(1, self.divisor // 2)
        # Most batches have the largest limits already.
        return self if (limit, divisor) == (self.limit, self.divisor) else replace(self, limit=limit, divisor=divisor)


def limit_after(events: int, failed: int | None) -> int:
    """Return the maximum number of events for the batch after one that failed.

    Args:
        events: number of events in the failed batch.
        failed: index of the failing event; ``None`` if it is not known.

    Returns:
        The number of events before the failing one, or half of the batch to search for it. The event is isolated when
        that is 1.
    """
    return max(1, events // 2 if failed is None else failed)


def checkpoint_threshold(idle_seconds: float) -> int:
    """Return the number of positions without events of the scope after which the checkpoint moves.

    Args:
        idle_seconds: seconds since the checkpoint moved.
    """
    return 1 if idle_seconds >= _IDLE_SECONDS else _IDLE_POSITIONS


def checkpoint_delay(last: BatchResult, idle_seconds: float) -> float | None:
    """Return the seconds until the checkpoint moves past positions without events; ``None`` if there are none.

    Args:
        last: result of the last batch.
        idle_seconds: seconds since the checkpoint moved.
    """
    has_positions = 0 <= last.checkpoint < last.scanned
    return _IDLE_SECONDS - idle_seconds if has_positions else None
