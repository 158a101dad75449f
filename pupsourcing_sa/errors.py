"""Every exception that this library raises on purpose.

::

    PupsourcingError
     ├── AppendError                       no event was appended
     │    ├── NoEventsError                (also a ValueError) the append has no events
     │    ├── OptimisticConcurrencyError   the aggregate is not at the expected version
     │    ├── DuplicateEventError          an event id is in the log already, or twice in one append
     │    ├── KeyTooLongError              (also a ValueError) a type or id is too long for an index entry
     │    ├── StaleHeadsError              the log has events that are missing in aggregate_heads
     │    ├── SequenceBehindLogError       (also a StablePositionError) the sequence is behind the log
     │    └── TransactionRequiredError     the connection is in AUTOCOMMIT mode or read-only
     ├── UnreadableEventError              (also a ValueError) a value of an event in the log cannot be read
     ├── PayloadError                      (also a ValueError) a payload does not match the class of its event type
     │    └── EventDecodingError           the data of an event in the log cannot be decoded
     ├── UnknownEventTypeError             (also a LookupError) the registry has no class for a stored event type
     ├── StablePositionError               the stable position cannot be determined in this session
     │    ├── SequenceBehindLogError       (also an AppendError) the sequence is behind the log
     │    └── ReplicatedLogError           the log is filled by logical replication
     ├── TablesMissingError                the tables do not exist; run the migrations
     ├── TableNameError                    (also a ValueError) the metadata has another table of this name
     ├── PartitionsError                   (also a ValueError) code and tables differ in the number of partitions
     ├── LogMismatchError                  (also a ValueError) a consumer's checkpoints belong to another log
     ├── OperationRefusedError             an operation on a consumer is not safe, or there is no such consumer
     ├── PartitionParkedError              a drain reached a partition that is parked
     ├── HandlerTransactionError           a handler committed or rolled back its session
     ├── ImportFailed                      a line of an import is invalid
     ├── MissingExtraError                 (also an ImportError) an optional dependency is missing or too old
     ├── UnsupportedServerError            the server does not do what the stable position relies on
     ├── UnsupportedDriverError            (also a TypeError) the engine's driver is neither psycopg nor asyncpg
     └── TemplateError                     (also a LookupError) there is no such Alembic template

An argument of a wrong type or value raises the built-in ``TypeError`` or ``ValueError``, which names the argument.
Other database errors arrive as SQLAlchemy raises them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pupsourcing_sa._error_texts import UNSUPPORTED, sequence_statement, shortened

if TYPE_CHECKING:
    from pupsourcing_sa.expected import ExpectedVersion

__all__ = [
    "AppendError",
    "DuplicateEventError",
    "EventDecodingError",
    "HandlerTransactionError",
    "ImportFailed",
    "KeyTooLongError",
    "LogMismatchError",
    "MissingExtraError",
    "NoEventsError",
    "OperationRefusedError",
    "OptimisticConcurrencyError",
    "PartitionParkedError",
    "PartitionsError",
    "PayloadError",
    "PupsourcingError",
    "ReplicatedLogError",
    "SequenceBehindLogError",
    "StablePositionError",
    "StaleHeadsError",
    "TableNameError",
    "TablesMissingError",
    "TemplateError",
    "TransactionRequiredError",
    "UnknownEventTypeError",
    "UnreadableEventError",
    "UnsupportedDriverError",
    "UnsupportedServerError",
]


class PupsourcingError(Exception):
    """Base of every error that this library raises on purpose.

    The first line of the class's docstring is the default message.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or type(self).__name__).partition("\n")[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException.__reduce__ calls the class with the message, but subclasses take other arguments.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[PupsourcingError], args: tuple[Any, ...], state: dict[str, Any]) -> PupsourcingError:
    error = cls.__new__(cls)
    super(PupsourcingError, error).__init__(*args)
    error.__dict__.update(state)
    return error


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


class UnreadableEventError(PupsourcingError, ValueError):
    """A value of an event in the log cannot be read. Another program wrote it.

    Attributes:
        position: global position of the event.
        event_id: id of the event.
        field: the attribute of `PersistedEvent`; the event's other attributes can be read.
    """

    def __init__(self, position: int, event_id: UUID, field: str, problem: str) -> None:
        self.position = position
        self.event_id = event_id
        self.field = field
        super().__init__(f"{field} of the event at {position} ({event_id}) cannot be read: {problem}")


class PayloadError(PupsourcingError, ValueError):
    """A payload does not match the class of its event type.

    The text never contains a value of the payload, because it may be personal data.

    Attributes:
        event_type: name of the event type.
        event_version: version of the payload.
        path: path of the field, such as ``$.lines[1].quantity``; ``None`` if it is not known.
        problem: the problem, such as ``"Expected `int`, got `str`"``.
    """

    def __init__(self, event_type: str, event_version: int, path: str | None, problem: str) -> None:
        self.event_type = event_type
        self.event_version = event_version
        self.path = path
        self.problem = problem
        super().__init__(
            f"payload of {event_type!r} version {event_version}{'' if path is None else f' at {path}'}: {problem}"
        )


class EventDecodingError(PayloadError):
    """The data of an event in the log cannot be decoded. The other attributes of the event can be read.

    Attributes:
        position: global position of the event.
        event_id: id of the event. `PayloadError` has the other attributes.
    """

    def __init__(
        self, position: int, event_id: UUID, event_type: str, event_version: int, path: str | None, problem: str
    ) -> None:
        super().__init__(event_type, event_version, path, problem)
        self.position = position
        self.event_id = event_id
        self.args = (f"event at {position} ({event_id}): {self.args[0]}",)


class UnknownEventTypeError(PupsourcingError, LookupError):
    """The registry has no class for a stored event type.

    Attributes:
        event_type: the stored event type.
        is_retired: True if the type was retired.
    """

    def __init__(self, event_type: str, is_retired: bool) -> None:
        self.event_type = event_type
        self.is_retired = is_retired
        remedy = "is retired; use its payload" if is_retired else "is not registered; register its class, or retire it"
        super().__init__(f"event type {event_type!r} {remedy}")


class UnsupportedDriverError(PupsourcingError, TypeError):
    """The engine has a driver that this library does not support.

    Attributes:
        driver: the engine's dialect and driver, such as ``postgresql+psycopg2``.
    """

    def __init__(self, driver: str) -> None:
        self.driver = driver
        super().__init__(
            f"the driver {driver} is not supported; use psycopg or asyncpg, with a URL that begins with "
            "postgresql+psycopg:// or postgresql+asyncpg://"
        )


class UnsupportedServerError(PupsourcingError):
    """The server does not do what the stable position relies on, so events would be skipped.

    Attributes:
        check: the step of the self-check that has failed.
        found: what the server did.
    """

    def __init__(self, check: str, found: str) -> None:
        self.check = check
        self.found = found
        super().__init__(f"this server is not like PostgreSQL ({check}): {found}. {UNSUPPORTED}")


class StablePositionError(PupsourcingError):
    """The stable position cannot be determined in this session."""


class SequenceBehindLogError(AppendError, StablePositionError):
    """The log has events above the last position that its sequence has issued.

    Attributes:
        table: the log's quoted name in SQL.
        statement: the SQL that moves the sequence to the last position in the log.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        self.statement = sequence_statement(table)
        super().__init__(
            f"the sequence of {table}.global_position is behind the log, as after logical replication or a restore of "
            f"data only. New events would get positions that consumers have already passed. Run: {self.statement};"
        )


class ReplicatedLogError(StablePositionError):
    """The log is filled by logical replication, which commits events in another order than that of their positions.

    Attributes:
        table: the log's quoted name in SQL.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            f"{table} is filled by logical replication, in the order of commits and not of positions. Run workers and "
            "follow the log on the publisher. If this server has taken over, drop the subscription and then move the "
            f"sequence to the last position: {sequence_statement(table)};"
        )


class TablesMissingError(PupsourcingError):
    """The tables do not exist in the database. Run the migrations."""


class TableNameError(PupsourcingError, ValueError):
    """The metadata has another table of this name."""


class PartitionsError(PupsourcingError, ValueError):
    """A consumer's code and the tables differ in its number of partitions.

    Attributes:
        consumer: name of the consumer.
        declared: number of partitions in the code.
        existing: number of partitions in the tables.
    """

    def __init__(self, consumer: str, declared: int, existing: int) -> None:
        self.consumer = consumer
        self.declared = declared
        self.existing = existing
        super().__init__(
            f"consumer {consumer!r} has partitions = {declared}, but the tables have {existing}, to which the "
            f"checkpoints belong. Set partitions = {existing}, or give the consumer another name. To start it "
            "from the beginning, stop its workers and delete its assignments, its checkpoints and what it wrote"
        )


class LogMismatchError(PupsourcingError, ValueError):
    """A consumer's checkpoints belong to another log.

    Their positions mean nothing in this log: the consumer would skip events.

    Attributes:
        consumer: name of the consumer.
        log: the log that the worker follows, as the database names it.
        existing: the log that the checkpoints belong to.
    """

    def __init__(self, consumer: str, log: str, existing: str) -> None:
        self.consumer = consumer
        self.log = log
        self.existing = existing
        super().__init__(
            f"consumer {consumer!r} would follow the log {log}, but its checkpoints belong to the log {existing}. Give "
            "one of the two consumers another name, or use other WorkerTables for each log, such as in another schema. "
            f"If {existing} was renamed to {log}, run pupsourcing-sa consumers adopt-log {shlex.quote(consumer)}"
        )


class OperationRefusedError(PupsourcingError):
    """An operation on a consumer is not safe, or there is no such consumer. Nothing was changed.

    Attributes:
        operation: name of the method of `ConsumerOperations`.
        consumer: name of the consumer.
        reason: why it was refused, and the remedy.
    """

    def __init__(self, operation: str, consumer: str, reason: str) -> None:
        self.operation = operation
        self.consumer = consumer
        self.reason = reason
        super().__init__(f"{operation} of consumer {consumer!r} is refused: {reason}")


class PartitionParkedError(PupsourcingError):
    """The partition is parked until an operator resolves the event that failed.

    Attributes:
        consumer: name of the consumer.
        partition: number of the partition, from 0.
        position: global position of the event that failed.
    """

    def __init__(self, consumer: str, partition: int, position: int) -> None:
        self.consumer = consumer
        self.partition = partition
        self.position = position
        super().__init__(
            f"partition {partition} of consumer {consumer!r} is parked on the event at {position}. Fix the "
            "cause, which is in the column error of its checkpoint, then set parked_at to NULL"
        )


class HandlerTransactionError(PupsourcingError):
    """A handler committed or rolled back its session, which only the worker may do, or caught an error that aborted it.

    The worker rolls back the batch and counts a failure. A handler that executes ``COMMIT`` as SQL has already
    committed its changes. In that case the worker parks the partition, and the message explains how to continue.
    """


class ImportFailed(PupsourcingError):
    """A line of an import is invalid.

    Attributes:
        line: number of the line, from 1.
        first_line: first line of its batch. No event of the batch was appended; the lines before it are in the log.
        reason: what is wrong with the line.
    """

    def __init__(self, line: int, first_line: int, reason: str) -> None:
        self.line = line
        self.first_line = first_line
        self.reason = reason
        super().__init__(f"line {line}: {reason}")


class MissingExtraError(PupsourcingError, ImportError):
    """An optional dependency is not installed or too old.

    Attributes:
        package: the distribution that is missing.
        extra: the extra of this distribution that installs it.
        problem: what is wrong with the installed version; ``None`` if it is not installed.
    """

    def __init__(self, package: str, extra: str, problem: str | None = None) -> None:
        self.package = package
        self.extra = extra
        self.problem = problem
        command = "install --upgrade" if problem else "install"
        super().__init__(f"{problem or f'{package} is not installed'}: pip {command} 'pupsourcing-sa[{extra}]'")


class TemplateError(PupsourcingError, LookupError):
    """There is no such Alembic template."""
