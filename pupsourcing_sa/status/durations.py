"""Upper bounds for durations that PostgreSQL does not record."""

from __future__ import annotations

from datetime import timedelta

from pupsourcing_sa.store import BlockingAppend

__all__ = ["held_back_seconds", "locked_seconds"]


def held_back_seconds(blocking: tuple[BlockingAppend, ...], waiting: float) -> float:
    """Return an upper bound of the time for which a transaction has held back committed events.

    The ages of the transaction and of the waiting event are both upper bounds. The transaction may have been open for a
    long time before it appended. The event may have been created, or dated, long before it was held back.

    Args:
        blocking: unfinished appends, the one that determines the stable position first.
        waiting: age of the first event above the stable position, in seconds.
    """
    if not blocking:
        # Events above the stable position were committed after it was read.
        return 0.0
    age = blocking[0].age
    return waiting if age is None else min(waiting, max(age.total_seconds(), 0.0))


def locked_seconds(age: timedelta | None, unmoved: float, waiting: float) -> float:
    """Return an upper bound of the time for which a transaction has locked a checkpoint.

    The transaction may have been open for a long time before it locked the checkpoint, and the checkpoint may have
    been unchanged for a long time before that. Return the smaller bound. If the session may not see the transaction's
    age, the lock matters only for as long as events have been waiting.

    Args:
        age: age of the transaction; ``None`` if this session may not see it.
        unmoved: seconds since the checkpoint moved.
        waiting: age of the first event above the checkpoint, in seconds.
    """
    return min(unmoved, waiting if age is None else max(age.total_seconds(), 0.0))
