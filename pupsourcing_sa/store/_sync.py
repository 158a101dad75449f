"""The store's one implementation: statements executed, rows made objects, errors made ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import Constraint, UniqueConstraint

from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.errors import (
    DuplicateEventError,
    NoEventsError,
    OptimisticConcurrencyError,
    StablePositionError,
)
from pupsourcing_sa.event import AppendResult, Event, PersistedEvent, Stream
from pupsourcing_sa.expected import AnyVersion, Exact, ExpectedVersion, NoStream
from pupsourcing_sa.store._connection import (
    SyncSession,
    connection_of,
    detail_of,
    raise_if_table_missing,
    sqlstate_of,
    violated_constraint,
)
from pupsourcing_sa.store._statements import StoreStatements
from pupsourcing_sa.tables import EventTables

__all__ = ["EventStore"]

_MAX_BIGINT: Final = 2**63 - 1
_SERIALIZATION_FAILURE: Final = "40001"


class EventStore:
    """An append-only log of events, in the application's own transactions.

    Args:
        tables: the log's tables; new ones with the default names by default.
        notify_channel: every append sends an empty NOTIFY on this channel when its transaction commits. Off by default:
            PostgreSQL commits transactions that notify one after the other.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the channel's name is empty or longer than 63 bytes.

    Every method takes a ``Session`` (also a ``scoped_session``) or a ``Connection`` first and works in its current
    transaction, which SQLAlchemy begins as it does for any statement. The store never commits, rolls back or flushes.
    It is stateless and may be shared by threads.

    >>> store = EventStore(EventTables(schema="shop"))
    """

    def __init__(self, tables: EventTables | None = None, *, notify_channel: str | None = None) -> None:
        if tables is None:
            tables = EventTables()
        elif not isinstance(tables, EventTables):
            raise TypeError(
                f"tables must be EventTables, not {type(tables).__name__}; write EventTables(Base.metadata)"
            )
        if notify_channel is not None:
            if not isinstance(notify_channel, str):
                raise TypeError(f"notify_channel must be a str, not {type(notify_channel).__name__}")
            if not notify_channel or "\0" in notify_channel or len(notify_channel.encode()) > 63:
                raise ValueError(f"notify_channel must be a name of 1 to 63 bytes, not {notify_channel!r}")
        self.tables = tables
        self.notify_channel = notify_channel
        self._statements = StoreStatements(tables, notify_channel)

    def append(self, session: SyncSession, expected_version: ExpectedVersion, events: Iterable[Event]) -> AppendResult:
        """Append events of one aggregate, in order, in one statement.

        Args:
            session: the transaction that the events become part of.
            expected_version: ``NoStream()``, ``Exact(version)`` or ``AnyVersion()``.
            events: one or more, all of the same aggregate.

        Returns:
            The positions and versions given to them. Others see the events when the transaction commits.

        Raises:
            OptimisticConcurrencyError: the aggregate is not at the expected version; nothing was written, and under
                READ COMMITTED the transaction goes on.
            DuplicateEventError: an event id is in the log already (which ends the transaction) or comes twice.
            NoEventsError: ``events`` is empty.
            TypeError, ValueError: an argument is wrong, or the events are of several aggregates.
            TablesMissingError: the log's tables do not exist.
        """
        if not isinstance(expected_version, (AnyVersion, NoStream, Exact)):
            hint = f"; write {expected_version.__name__}()" if isinstance(expected_version, type) else ""
            raise TypeError(
                "expected_version must be AnyVersion(), NoStream() or Exact(version), "
                f"not {type(expected_version).__name__}{hint}"
            )
        batch = _checked(events)
        connection = connection_of(session, self.tables.events)
        first = batch[0]
        parameters: dict[str, Any] = {
            "stream_type": first.aggregate_type,
            "stream_id": first.aggregate_id,
            "count": len(batch),
            "event_ids": [event.event_id for event in batch],
            "event_types": [event.event_type for event in batch],
            "event_versions": [event.event_version for event in batch],
            "payloads": [event.payload for event in batch],
            "trace_ids": [event.trace_id for event in batch],
            "correlation_ids": [event.correlation_id for event in batch],
            "causation_ids": [event.causation_id for event in batch],
            "metadatas": [event._metadata_json for event in batch],
            "created_ats": [event.created_at for event in batch],
        }
        if expected_version.version:
            parameters["expected_version"] = expected_version.version
        try:
            written = _rows(connection, self._statements.append(expected_version), parameters)
        except DBAPIError as error:
            raise_if_table_missing(error, self.tables.events, self.tables.aggregate_heads)
            self._raise_append_error(error, connection, expected_version, batch)
            raise
        if not written:
            actual = self._aggregate_version(connection, first.aggregate_type, first.aggregate_id)
            raise OptimisticConcurrencyError(first.aggregate_type, first.aggregate_id, expected_version, actual)
        written.sort()
        to_version: int = written[-1][1]
        return AppendResult(tuple(row[0] for row in written), to_version - len(batch), to_version, batch)

    def _aggregate_version(self, connection: Connection, aggregate_type: str, aggregate_id: str) -> int:
        found = connection.scalar(
            self._statements.aggregate_version, {"stream_type": aggregate_type, "stream_id": aggregate_id}
        )
        return found or 0

    def _raise_append_error(
        self, error: DBAPIError, connection: Connection, expected: ExpectedVersion, batch: Sequence[Event]
    ) -> None:
        """Raise what a failed append means; return if it means nothing in particular."""
        constraint = violated_constraint(error)
        if constraint is not None:
            duplicate_id, duplicate_version = (
                _is_constraint(connection, unique, constraint) for unique in _unique_constraints(self.tables)
            )
            if duplicate_id:
                detail = detail_of(error)
                named = [event.event_id for event in batch if str(event.event_id) in detail]
                raise DuplicateEventError(named or [event.event_id for event in batch]) from error
        else:
            duplicate_version = False
        if duplicate_version or sqlstate_of(error) == _SERIALIZATION_FAILURE:
            aggregate = batch[0]
            raise OptimisticConcurrencyError(
                aggregate.aggregate_type, aggregate.aggregate_id, expected, None
            ) from error

    def read_aggregate_stream(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
    ) -> Stream:
        """The events of one aggregate in version order.

        Args:
            session: the transaction to read in; it sees its own appends.
            aggregate_type: type of the aggregate.
            aggregate_id: id of the aggregate.
            from_version: first version wanted, 1 or more; from the beginning by default.
            to_version: last version wanted, included; to the end by default. An inverted range is empty.

        Raises:
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        for name, value in (("aggregate_type", aggregate_type), ("aggregate_id", aggregate_id)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, not {type(value).__name__}")
        parameters = {
            "stream_type": aggregate_type,
            "stream_id": aggregate_id,
            "from_version": _integer("from_version", from_version, default=0),
            "to_version": _integer("to_version", to_version, default=_MAX_BIGINT),
        }
        if "\0" in aggregate_type or "\0" in aggregate_id:
            return Stream(aggregate_type, aggregate_id, ())  # PostgreSQL stores no such text
        with self._reading(session) as connection:
            rows = _rows(connection, self._statements.aggregate_stream, parameters)
        return Stream(aggregate_type, aggregate_id, tuple(map(PersistedEvent._from_row, rows)))

    def read_events(
        self,
        session: SyncSession,
        *,
        after: int = 0,
        limit: int = 100,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        up_to: int | None = None,
    ) -> list[PersistedEvent]:
        """Stable events in the log's order: a follower that goes on after the last one it got misses none.

        Args:
            session: the transaction to read in, under READ COMMITTED unless ``up_to`` is given.
            after: position to go on after, excluded; 0 for the beginning.
            limit: at most so many events, 1 or more.
            aggregate_types: only events of these types of aggregate; none and empty mean all.
            event_types: only events of these types; none and empty mean all.
            up_to: last position wanted, included. Under REPEATABLE READ and SERIALIZABLE it is required, and has to be
                a stable position that was read before this transaction took its snapshot.

        Returns:
            Fewer than ``limit`` events when that is all there is up to the stable position.

        Raises:
            StablePositionError: the isolation level, a standby or a missing privilege makes it impossible to tell.
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types)
        after = _integer("after", after)
        limit = _integer("limit", limit, minimum=1)
        bound = _integer("up_to", up_to, default=_MAX_BIGINT)
        with self._reading(session) as connection:
            stable = self._stable_position(connection, is_bounded=up_to is not None)
            return self._read_stable(connection, scope, after, min(bound, stable), limit)

    def _read_stable(
        self, session: SyncSession, scope: Scope, after: int, up_to: int, limit: int
    ) -> list[PersistedEvent]:
        """A page of the log up to a position that the caller knows to be stable in its snapshot."""
        if up_to <= after:
            return []
        connection = connection_of(session, self.tables.events)
        parameters: dict[str, Any] = {"after": after, "up_to": up_to, "limit": limit}
        if scope.aggregate_types is not None:
            parameters["aggregate_types"] = list(scope.aggregate_types)
        if scope.event_types is not None:
            parameters["event_types"] = list(scope.event_types)
        if scope.partitions > 1:
            parameters["partitions"], parameters["partition"] = scope.partitions, scope.partition
        return list(map(PersistedEvent._from_row, _rows(connection, self._statements.page(scope), parameters)))

    def latest_global_position(self, session: SyncSession) -> int:
        """The highest position in the log as this transaction sees it, 0 when the log is empty.

        Events below it may still be in flight; `stable_position` says up to where none is.
        """
        with self._reading(session) as connection:
            return connection.scalar(self._statements.latest_global_position) or 0

    def stable_position(self, session: SyncSession) -> int:
        """Up to here, included, the log will never change: no event at or below it is still in flight.

        A value read once stays true. Events up to it are visible to every snapshot taken afterwards, so under
        REPEATABLE READ and SERIALIZABLE use it in the next transaction.

        Raises:
            StablePositionError: the session is on a standby, or may not read the log's sequence.
            TablesMissingError: the log's tables do not exist.
        """
        with self._reading(session) as connection:
            return self._stable_position(connection, is_bounded=True)

    def _stable_position(self, connection: Connection, *, is_bounded: bool) -> int:
        row = connection.execute(self._statements.stable_position).one()
        if row.is_in_recovery:
            raise StablePositionError("a standby does not see the locks of appends in flight; ask the primary server")
        if row.issued is None:
            events = self.tables.events.key
            raise StablePositionError(
                f"the sequence behind {events}.global_position is missing or this role may not read it; "
                f"GRANT SELECT ON SEQUENCE pg_get_serial_sequence('{events}', 'global_position') names it"
            )
        if not is_bounded and row.isolation not in ("read committed", "read uncommitted"):
            raise StablePositionError(
                f"under {row.isolation.upper()} this transaction's snapshot may be older than the events that have "
                "become stable since; read under READ COMMITTED, or give up_to=, a stable_position() from before it"
            )
        stable: int = row.stable
        return stable

    @contextmanager
    def _reading(self, session: SyncSession) -> Iterator[Connection]:
        connection = connection_of(session, self.tables.events)
        try:
            yield connection
        except DBAPIError as error:
            raise_if_table_missing(error, self.tables.events, self.tables.aggregate_heads)
            raise

    def __repr__(self) -> str:
        return f"EventStore({self.tables!r})"


def _rows(connection: Connection, statement: Executable, parameters: dict[str, Any]) -> list[Any]:
    """The rows as the driver gives them; SQLAlchemy's ``Row`` objects would cost as much again as fetching."""
    result = connection.execute(statement, parameters)
    rows = result.cursor.fetchall()
    result.close()
    return list(rows)


def _checked(events: Iterable[Event]) -> tuple[Event, ...]:
    """The events of one append, if they can be one."""
    if isinstance(events, Event):
        raise TypeError("events must be a sequence of Event, such as [event], not a single Event")
    try:
        batch = tuple(events)
    except TypeError:
        raise TypeError(f"events must be a sequence of Event, not {type(events).__name__}") from None
    if not batch:
        raise NoEventsError
    for event in batch:
        if not isinstance(event, Event):
            raise TypeError(f"events must contain Event only, not {type(event).__name__}")
    first = batch[0]
    aggregate = first.aggregate_type, first.aggregate_id
    for event in batch:
        if (event.aggregate_type, event.aggregate_id) != aggregate:
            raise ValueError(
                "events must be of one aggregate; there are "
                f"{aggregate[0]} {aggregate[1]!r} and {event.aggregate_type} {event.aggregate_id!r}"
            )
    times = Counter(event.event_id for event in batch)
    if len(times) < len(batch):
        raise DuplicateEventError(event_id for event_id, count in times.items() if count > 1)
    return batch


def _integer(name: str, value: int | None, *, default: int | None = None, minimum: int = 0) -> int:
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not minimum <= value <= _MAX_BIGINT:
        raise ValueError(f"{name} must be between {minimum} and {_MAX_BIGINT}, not {value}")
    return value


def _unique_constraints(tables: EventTables) -> tuple[Constraint, Constraint]:
    """The log's unique constraints: on the event id, and on the aggregate's version."""
    one, other = sorted(
        (constraint for constraint in tables.events.constraints if isinstance(constraint, UniqueConstraint)),
        key=lambda unique: len(unique.columns),
    )
    return one, other


def _is_constraint(connection: Connection, constraint: Constraint, name: str) -> bool:
    """Whether the database's name for a constraint is this one's, as SQLAlchemy writes it: by convention, truncated."""
    preparer = connection.dialect.identifier_preparer
    return preparer.format_constraint(constraint) == preparer.quote(name)
