"""Errors of appends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from pupsourcing_sa.errors._texts import shortened
from pupsourcing_sa.errors.base import PupsourcingError

if TYPE_CHECKING:
    from pupsourcing_sa.expected import ExpectedVersion

__all__ = [
    "AppendError",
    "DuplicateEventError",
    "KeyTooLongError",
    "NoEventsError",
    "OptimisticConcurrencyError",
    "StaleHeadsError",
    "TransactionRequiredError",
]


class AppendError(PupsourcingError):
    """The events were not appended."""


class NoEventsError(AppendError, ValueError):
    """An append needs at least one event."""


class OptimisticConcurrencyError(AppendError):
    """The aggregate is not at the expected version.

    Under READ COMMITTED the transaction stays usable: read the aggregate again, decide again, and retry. Under
    REPEATABLE READ and SERIALIZABLE a lost race ends the transaction (SQLSTATE 40001): roll back and retry all of it.

    Attributes:
        aggregate_type: type of the aggregate.
        aggregate_id: id of the aggregate.
        expected: the expected version that the caller passed.
        actual: version of the aggregate, read right after the conflict; 0 if the aggregate does not exist, ``None`` if
            the transaction has ended and the version cannot be read.
    """

    def __init__(self, aggregate_type: str, aggregate_id: str, expected: ExpectedVersion, actual: int | None) -> None:
        self.aggregate_type = aggregate_type
        self.aggregate_id = aggregate_id
        self.expected = expected
        self.actual = actual
        found = f"found version {actual}; read the aggregate again and retry"
        if actual is None:
            found = "another transaction changed it first; roll back and retry the transaction"
        super().__init__(f"{aggregate_type} {aggregate_id!r}: expected {expected!r}, {found}")


class DuplicateEventError(AppendError):
    """An event id is in the log already, or twice in one append.

    Attributes:
        event_ids: the duplicate ids, or all ids of the append if the server does not report which.
    """

    def __init__(self, event_ids: Iterable[UUID]) -> None:
        self.event_ids = tuple(event_ids)
        super().__init__(
            f"event ids must be unique in the log; duplicates: {shortened(map(str, self.event_ids))}. To retry an "
            "append that may have been committed, pass idempotent=True; otherwise use new ids"
        )


class KeyTooLongError(AppendError, ValueError):
    """An aggregate's type or id, or a correlation id, is too long for an index entry. The transaction has ended.

    Attributes:
        aggregate_type: type of the aggregate.
        aggregate_id: id of the aggregate.
        name: the value that is too long: ``aggregate_type``, ``aggregate_id`` or ``correlation_id``.
        size: its length in bytes.
    """

    def __init__(self, aggregate_type: str, aggregate_id: str, name: str, size: int) -> None:
        self.aggregate_type = aggregate_type
        self.aggregate_id = aggregate_id
        self.name = name
        self.size = size
        type_, id_ = (text if len(text) <= 60 else f"{text[:60]}…" for text in (aggregate_type, aggregate_id))
        super().__init__(
            f"{type_} {id_!r}: {name} is too long, with {size} bytes. An index entry of PostgreSQL holds about 2,600 "
            "bytes, after compression, of aggregate_type and aggregate_id together, or of a correlation_id. Use a "
            "shorter value, such as a digest"
        )


class StaleHeadsError(AppendError):
    """The log has events that are missing in the table of aggregate heads. The transaction has ended.

    This happens after a restore without the heads. A retry fails again: rebuild the heads (docs/howto/append.md).

    Attributes:
        aggregates: (type, id) of the aggregate, or of all aggregates in the append if the server does not report which.
        table: the table of heads.
    """

    def __init__(self, aggregates: Iterable[tuple[str, str]], table: str) -> None:
        self.aggregates = tuple(aggregates)
        self.table = table
        names = shortened(f"{type_} {id_!r}" for type_, id_ in self.aggregates)
        super().__init__(
            f"the log has events of {names} that are missing in {table}, as after a restore without it. A retry fails "
            f"again: rebuild {table} from the events, as docs/howto/append.md shows"
        )


class TransactionRequiredError(AppendError):
    """An append needs a transaction that can write."""
