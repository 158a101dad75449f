"""Lost races: what the next batches do to lose no other one. Pure: the time and the randomness are parameters.

A batch loses a race if another transaction has changed a row that it has read (40001), or if the two wait for each
other (40P01). It is retried after milliseconds. The other transaction belongs to another partition of the same
consumer, which writes to the same rows, or to the application::

    a race was lost                         consequence
    beside other partitions of the          all partitions of the consumer take turns in this process, see `TurnPeriod`;
    consumer in this process                later they begin side by side with small batches
    alone: at the first event               the next batch is as large, and flushes early
    alone: at a later event                 the next batch has the events before it, and flushes early
    alone: at an event that is not known    the next batch has half of the events, and flushes early
    ten batches in a row without one        the next batch has twice the events; a full batch flushes once, at its end
    a batch beside other partitions         the next one beside others has twice the events
    without one

- **In turns**, full batches of several partitions are as fast as a consumer with one partition. In parallel they would
  wait for each other's rows, and a deadlock costs a second. Small batches find out if they share rows, at little cost.
- **An early flush**, after the 1st, 2nd, 4th, 8th … event, locks rows soon after they are changed, and not at the end
  of the batch. From then on, the application waits for the batch. The batch loses earlier, too, and repeats less work.
  A full batch that loses at its first event would gain nothing from fewer events.
- **The size grows slowly**, because a batch that is too large loses as often as one that is committed.

docs/decisions/0016 has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pupsourcing_sa.worker.backoff import delay_after

__all__ = ["Races", "TurnPeriod", "retry_delay"]

#: Maximum number of events of the first batch beside other partitions.
_FIRST_BESIDE: Final = 16
#: Number of batches in a row without a lost race after which the next ones are larger.
_CLEAN_BATCHES: Final = 10
#: Length of the first and of the longest period of turns, in seconds.
_FIRST_PERIOD: Final = 5.0
_MAX_PERIOD: Final = 60.0
#: Seconds between a lost race and the next attempt.
_DELAY: Final = 0.003
#: After this number of lost races in a row, the delay grows, up to this number of seconds. The handler may raise the
#: error itself.
_MANY: Final = 20
_MAX_DELAY: Final = 0.05


@dataclass(frozen=True, slots=True)
class Races:
    """The lost races of one partition.

    Attributes:
        max_events: maximum number of events of the next batch; ``None`` if no race was lost alone, or not lately.
        clean: number of batches with events since the last race that was lost alone.
        beside: maximum number of events of the next batch that runs beside other partitions.
    """

    max_events: int | None = None
    clean: int = 0
    beside: int = _FIRST_BESIDE

    @property
    def is_contended(self) -> bool:
        """True if the next batch flushes early."""
        return self.max_events is not None

    def limit(self, max_events: int, *, is_alone: bool) -> int:
        """Return the maximum number of events of the next batch.

        Args:
            max_events: the maximum for other reasons.
            is_alone: no other partition of the consumer runs in this process meanwhile.
        """
        limit = max_events if self.max_events is None else min(max_events, self.max_events)
        return limit if is_alone else min(limit, self.beside)

    def lost_beside(self) -> Races:
        """Return the state after a race that was lost beside other partitions."""
        return replace(self, beside=_FIRST_BESIDE)

    def lost(self, events: int, failed: int | None) -> Races:
        """Return the state after a race that was lost alone.

        Args:
            events: number of events in the batch.
            failed: index of the event that lost it; ``None`` if it is not known.
        """
        size = max(1, events // 2) if failed is None else failed or events
        return Races(size, 0, self.beside)

    def won(self, batch_size: int, *, is_alone: bool) -> Races:
        """Return the state after a batch with events was committed.

        Args:
            batch_size: maximum number of events without lost races.
            is_alone: as for `limit`.
        """
        beside = self.beside if is_alone else max(self.beside, min(2 * self.beside, batch_size))
        if self.max_events is None:
            # Most batches change nothing.
            return self if beside == self.beside else Races(beside=beside)
        if self.clean + 1 < _CLEAN_BATCHES:
            return Races(self.max_events, self.clean + 1, beside)
        return Races(2 * self.max_events if self.max_events < batch_size else None, 0, beside)


@dataclass(frozen=True, slots=True)
class TurnPeriod:
    """The time in which the partitions of a consumer take turns.

    Attributes:
        until: its end, in seconds of a monotonic clock.
        seconds: its length.
    """

    until: float = 0.0
    seconds: float = 0.0

    def lost(self, now: float) -> TurnPeriod:
        """Return the period after a partition has lost a race beside others: a longer one if the last did not help."""
        if now < self.until:
            return self  # several partitions lose at the same time
        is_recent = now < self.until + 10 * self.seconds
        seconds = min(2 * self.seconds, _MAX_PERIOD) if is_recent else _FIRST_PERIOD
        return TurnPeriod(now + seconds, seconds)


def retry_delay(losses: int, jitter: float) -> float:
    """Return the seconds between a lost race and the next attempt.

    Args:
        losses: number of lost races in a row, 1 or more.
        jitter: a random number between 0 and 1. Two transactions that lost against each other begin at different times.
    """
    grown = delay_after(max(1, losses - _MANY), first=_DELAY, max_delay=_MAX_DELAY, jitter=0)
    return grown * (1 - jitter * 2 / 3)
