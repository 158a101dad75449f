"""Every exception that this library raises on purpose.

::

    PupsourcingError
     ├── AppendError                       nothing of the append was written
     │    ├── NoEventsError                (also a ValueError)
     │    ├── OptimisticConcurrencyError   the aggregate is not at the expected version
     │    ├── DuplicateEventError          an event id is in the log already
     │    ├── KeyTooLongError              (also a ValueError) an aggregate's type or id does not fit into an index
     │    ├── StaleHeadsError              the log has events that aggregate_heads does not know
     │    └── TransactionRequiredError     the connection is in AUTOCOMMIT mode or read-only
     ├── StablePositionError               this session cannot tell which events are stable
     ├── TablesMissingError                the migrations have not been run
     ├── TableNameError                    (also a ValueError) the name belongs to another table
     ├── PartitionsError                   (also a ValueError) the tables have another number of partitions
     ├── PartitionParkedError              a drain met a partition that is parked on a failing event
     ├── HandlerTransactionError           a handler committed or rolled back its session
     ├── ImportFailed                      a line of an import is bad
     ├── MissingExtraError                 (also an ImportError) an optional dependency is not installed or too old
     └── TemplateError                     (also a LookupError) no such Alembic template

Wrong types and values raise the built-in ``TypeError`` and ``ValueError``, naming the argument. Errors of the
database that are none of the above arrive as SQLAlchemy raised them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from pupsourcing_sa.expected import ExpectedVersion

__all__ = [
    "AppendError",
    "DuplicateEventError",
    "HandlerTransactionError",
    "ImportFailed",
    "KeyTooLongError",
    "MissingExtraError",
    "NoEventsError",
    "OptimisticConcurrencyError",
    "PartitionParkedError",
    "PartitionsError",
    "PupsourcingError",
    "StablePositionError",
    "StaleHeadsError",
    "TableNameError",
    "TablesMissingError",
    "TemplateError",
    "TransactionRequiredError",
]


class PupsourcingError(Exception):
    """Base of every error that this library raises on purpose."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])


class AppendError(PupsourcingError):
    """The events were not appended."""


class NoEventsError(AppendError, ValueError):
    """An append needs at least one event."""


class OptimisticConcurrencyError(AppendError):
    """The aggregate is not at the expected version.

    Under READ COMMITTED the transaction goes on: read the aggregate again and decide anew. Under REPEATABLE READ and
    SERIALIZABLE a lost race ends the transaction (SQLSTATE 40001): roll back and repeat all of it.

    Attributes:
        aggregate_type: type of the aggregate.
        aggregate_id: id of the aggregate.
        expected: the expected version as it was given.
        actual: the aggregate's version read right after the conflict, 0 when there is no such aggregate, ``None``
            when the transaction is over and it cannot be read.
    """

    def __init__(self, aggregate_type: str, aggregate_id: str, expected: ExpectedVersion, actual: int | None) -> None:
        self.aggregate_type = aggregate_type
        self.aggregate_id = aggregate_id
        self.expected = expected
        self.actual = actual
        found = "another transaction was faster; roll back and try again" if actual is None else f"it is at {actual}"
        super().__init__(f"{aggregate_type} {aggregate_id!r}: expected {expected!r}, but {found}")

    def __reduce__(self) -> tuple[type[OptimisticConcurrencyError], tuple[object, ...]]:
        return type(self), (self.aggregate_type, self.aggregate_id, self.expected, self.actual)


class DuplicateEventError(AppendError):
    """An event id is in the log already, or twice in one append.

    Attributes:
        event_ids: the ids concerned; every id of the append where the server does not say which.
    """

    def __init__(self, event_ids: Iterable[UUID]) -> None:
        self.event_ids = tuple(event_ids)
        names = ", ".join(map(str, self.event_ids[:5])) + (", …" if len(self.event_ids) > 5 else "")
        super().__init__(f"event ids must be unique in the log; in use already: {names}")

    def __reduce__(self) -> tuple[type[DuplicateEventError], tuple[object, ...]]:
        return type(self), (self.event_ids,)


class KeyTooLongError(AppendError, ValueError):
    """An aggregate's type or id, or a correlation id, is too long for an index; the transaction is over.

    Attributes:
        aggregate_type: type of the aggregate.
        aggregate_id: id of the aggregate.
        name: what is too long: ``aggregate_type``, ``aggregate_id`` or ``correlation_id``.
        size: how long it is, in bytes.
    """

    def __init__(self, aggregate_type: str, aggregate_id: str, name: str, size: int) -> None:
        self.aggregate_type = aggregate_type
        self.aggregate_id = aggregate_id
        self.name = name
        self.size = size
        type_, id_ = (each if len(each) <= 60 else f"{each[:60]}…" for each in (aggregate_type, aggregate_id))
        super().__init__(
            f"{type_} {id_!r}: {name} is too long, with {size} bytes; an index of PostgreSQL has room for about 2,600 "
            "bytes, compressed, of aggregate_type and aggregate_id together, or of a correlation_id: use a shorter "
            "one, such as a digest of it"
        )

    def __reduce__(self) -> tuple[type[KeyTooLongError], tuple[object, ...]]:
        return type(self), (self.aggregate_type, self.aggregate_id, self.name, self.size)


class StaleHeadsError(AppendError):
    """The log has events that the table of aggregate heads does not know, as after a restore without it.

    To try again does not help: rebuild the heads, as docs/howto/append.md shows. The transaction is over.

    Attributes:
        aggregates: (type, id) of the aggregate concerned; of all in the append where the server does not say which.
        table: the table of heads.
    """

    def __init__(self, aggregates: Iterable[tuple[str, str]], table: str) -> None:
        self.aggregates = tuple(aggregates)
        self.table = table
        names = ", ".join(f"{type_} {id_!r}" for type_, id_ in self.aggregates[:5])
        names += ", …" if len(self.aggregates) > 5 else ""
        super().__init__(
            f"the log has events of {names} that {table} does not know, as after a restore without it; to try again "
            f"does not help: rebuild {table} from the events, as docs/howto/append.md shows"
        )

    def __reduce__(self) -> tuple[type[StaleHeadsError], tuple[object, ...]]:
        return type(self), (self.aggregates, self.table)


class TransactionRequiredError(AppendError):
    """An append needs a transaction that can write."""


class StablePositionError(PupsourcingError):
    """This session cannot tell which events are stable."""


class TablesMissingError(PupsourcingError):
    """The tables are not in the database; run your migrations."""


class TableNameError(PupsourcingError, ValueError):
    """The table name belongs to another table."""


class PartitionsError(PupsourcingError, ValueError):
    """The tables have another number of partitions for a consumer than its code.

    Attributes:
        consumer: name of the consumer.
        declared: how many partitions it has in the code.
        existing: how many it has in the tables.
    """

    def __init__(self, consumer: str, declared: int, existing: int) -> None:
        self.consumer = consumer
        self.declared = declared
        self.existing = existing
        super().__init__(
            f"consumer {consumer!r} has partitions = {declared}, but in the tables there are {existing}, and each "
            f"checkpoint stands for another share of the aggregates: set partitions = {existing}; or have it begin "
            "anew, under another name or, with its workers stopped, by deleting its rows from the tables of "
            "assignments and checkpoints together with what it wrote"
        )

    def __reduce__(self) -> tuple[type[PartitionsError], tuple[object, ...]]:
        return type(self), (self.consumer, self.declared, self.existing)


class PartitionParkedError(PupsourcingError):
    """The partition is parked: it waits until somebody has dealt with the event that failed.

    Attributes:
        consumer: name of the consumer.
        partition: the partition, from 0.
        position: global position of the event that failed.
    """

    def __init__(self, consumer: str, partition: int, position: int) -> None:
        self.consumer = consumer
        self.partition = partition
        self.position = position
        super().__init__(
            f"partition {partition} of consumer {consumer!r} is parked on the event at {position}: deal with what its "
            "checkpoint says in the column error, then set its parked_at to NULL"
        )

    def __reduce__(self) -> tuple[type[PartitionParkedError], tuple[object, ...]]:
        return type(self), (self.consumer, self.partition, self.position)


class HandlerTransactionError(PupsourcingError):
    """A handler committed or rolled back the session it was given; the worker does that.

    The batch is rolled back, and counts as a failure. What was committed past the session, as by ``COMMIT`` in SQL,
    cannot be: then the partition is parked, and the message says what to do.
    """


class ImportFailed(PupsourcingError):
    """A line of an import is bad.

    Attributes:
        line: number of the line, from 1.
        first_line: first line of its batch, of which nothing was appended; what comes before it is in the log.
    """

    def __init__(self, line: int, first_line: int, reason: str) -> None:
        self.line = line
        self.first_line = first_line
        self.reason = reason
        super().__init__(f"line {line}: {reason}")

    def __reduce__(self) -> tuple[type[ImportFailed], tuple[object, ...]]:
        return type(self), (self.line, self.first_line, self.reason)


class MissingExtraError(PupsourcingError, ImportError):
    """An optional dependency is not installed, or too old.

    Attributes:
        package: the distribution that is missing.
        extra: the extra of this distribution that installs it.
        problem: what is wrong with the one that is installed, or ``None``.
    """

    def __init__(self, package: str, extra: str, problem: str | None = None) -> None:
        self.package = package
        self.extra = extra
        self.problem = problem
        what, how = (problem, "install --upgrade") if problem else (f"{package} is not installed", "install")
        super().__init__(f"{what}: pip {how} 'pupsourcing-sa[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[object, ...]]:
        return type(self), (self.package, self.extra, self.problem)


class TemplateError(PupsourcingError, LookupError):
    """There is no such Alembic template."""
