"""The store as its users see it: arguments checked, the work done by the modules beside this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection

from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.errors import NoEventsError
from pupsourcing_sa.event import AppendResult, Event, PersistedEvent, Stream
from pupsourcing_sa.expected import ExpectedVersion
from pupsourcing_sa.postgres.connections import SyncSession, connection_of, driver_rows
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.store._append import Append
from pupsourcing_sa.store._appender import Appender
from pupsourcing_sa.store._read_statements import ReadStatements
from pupsourcing_sa.store.positions import BlockingAppend, Look, Positions
from pupsourcing_sa.tables import EventTables
from pupsourcing_sa.tables.naming import check_name

__all__ = ["EventStore"]

_MAX_BIGINT: Final = 2**63 - 1


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
    It keeps nothing but its statements and may be shared by threads.

    >>> store = EventStore(EventTables(schema="shop"))
    """

    def __init__(self, tables: EventTables | None = None, *, notify_channel: str | None = None) -> None:
        if tables is None:
            tables = EventTables()
        elif not isinstance(tables, EventTables):
            raise TypeError(f"tables must be EventTables, not {type(tables).__name__}; write EventTables(metadata)")
        if notify_channel is not None:
            check_name("notify_channel", notify_channel)
        self.tables = tables
        self.notify_channel = notify_channel
        self._appender = Appender(tables, notify_channel)
        self._statements = ReadStatements(tables)
        self._positions = Positions(tables)

    # -- appending ---------------------------------------------------------------------------------------------

    def append(
        self,
        session: SyncSession,
        expected_version: ExpectedVersion,
        events: Iterable[Event],
        *,
        idempotent: bool = False,
    ) -> AppendResult:
        """Append events of one aggregate, in order, in one statement.

        Args:
            session: the transaction that the events become part of.
            expected_version: ``NoStream()``, ``Exact(version)`` or ``AnyVersion()``.
            events: one or more, all of the same aggregate.
            idempotent: give the result of an earlier append that wrote the same events, if there is one, whatever has
                been appended since: for a caller who does not know whether its commit went through. The same means
                equal in everything but ``created_at`` and ``trace_id``. It costs a savepoint.

        Returns:
            The positions and versions given to them. Others see the events when the transaction commits.

        Raises:
            OptimisticConcurrencyError: the aggregate is not at the expected version; nothing was written, and under
                READ COMMITTED the transaction goes on.
            DuplicateEventError: an event id comes twice, or is in the log already. In the latter case the transaction
                is over, unless ``idempotent`` was asked for.
            NoEventsError: ``events`` is empty.
            KeyTooLongError: the aggregate's type and id, or a correlation id, do not fit into an index.
            StaleHeadsError: the log has events that its table of heads does not know.
            TransactionRequiredError: the connection is in AUTOCOMMIT mode, or the transaction is read-only.
            TypeError, ValueError: an argument is wrong, or the events are of several aggregates.
            TablesMissingError: the log's tables do not exist.
        """
        append = Append.of(expected_version, events)
        connection = connection_of(session, self._appender.clause)
        if idempotent:
            return self._appender.append_once(connection, append)
        return self._appender.append(connection, append)

    def append_many(
        self, session: SyncSession, appends: Iterable[tuple[ExpectedVersion, Iterable[Event]]]
    ) -> list[AppendResult]:
        """Append events of several aggregates, all of them or none, in one statement.

        Args:
            session: the transaction that the events become part of.
            appends: for each aggregate what is expected of its version, and its events. They get their positions in
                this order; locks are taken in the order of the aggregates' types and ids, so that two calls with the
                same aggregates never deadlock.

        Returns:
            A result for each aggregate, in the order given.

        Raises:
            OptimisticConcurrencyError: as for `append`; it names the first aggregate that is not at its version. Where
                a lost race ends the transaction that is not known: it is the first of which something is expected.
            NoEventsError: ``appends`` is empty, or one of them has no events.
            ValueError: an aggregate comes twice.
            DuplicateEventError, KeyTooLongError, StaleHeadsError, TransactionRequiredError, TypeError,
            TablesMissingError: as for `append`.
        """
        checked = []
        for each in appends:
            if not isinstance(each, tuple) or len(each) != 2:
                raise TypeError(f"appends must contain tuples (expected_version, events), not {each!r}")
            checked.append(Append.of(*each))
        if not checked:
            raise NoEventsError
        aggregates = {(append.aggregate_type, append.aggregate_id) for append in checked}
        if len(aggregates) < len(checked):
            raise ValueError("appends must name each aggregate once; put its events into one sequence")
        return self._appender.append_many(connection_of(session, self._appender.clause), checked)

    # -- reading -----------------------------------------------------------------------------------------------

    def read_aggregate_stream(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> Stream:
        """The events of one aggregate in version order.

        Args:
            session: the transaction to read in; it sees its own appends.
            aggregate_type: type of the aggregate.
            aggregate_id: id of the aggregate.
            from_version: lowest version wanted; from the beginning by default.
            to_version: highest version wanted, included; to the end by default. An inverted range is empty.
            limit: at most so many events; all by default.
            backwards: the latest version first; ``limit=1`` gives the latest event.

        Raises:
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        lowest = _integer("from_version", from_version, default=0)
        highest = _integer("to_version", to_version, default=_MAX_BIGINT)
        limit = _integer("limit", limit, default=_MAX_BIGINT, minimum=1)
        parameters = _stream_parameters(aggregate_type, aggregate_id)
        if lowest > highest or parameters is None:
            return Stream(aggregate_type, aggregate_id, ())
        parameters |= {"from_version": lowest, "to_version": highest, "limit": limit}
        with self._reading(session) as connection:
            rows = driver_rows(connection, self._statements.aggregate_stream(backwards=backwards), parameters)
        return Stream(aggregate_type, aggregate_id, tuple(map(PersistedEvent._from_row, rows)))

    def iterate_aggregate_stream(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
        page_size: int = 1000,
    ) -> Iterator[PersistedEvent]:
        """The events of one aggregate in version order, read page by page as they are asked for.

        Args:
            session: as for `read_aggregate_stream`, like everything but ``page_size``.
            page_size: so many events are in memory at a time.
        """
        pages = self._stream_pages(session, aggregate_type, aggregate_id, from_version, to_version, page_size)
        return (event for page in pages for event in page)

    def _stream_pages(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        from_version: int | None,
        to_version: int | None,
        page_size: int,
    ) -> Iterator[tuple[PersistedEvent, ...]]:
        """Check the arguments, now and not when the first page is asked for."""
        for name, value in (("from_version", from_version), ("to_version", to_version)):
            _integer(name, value, default=0)
        _integer("page_size", page_size, minimum=1)
        _stream_parameters(aggregate_type, aggregate_id)

        def pages() -> Iterator[tuple[PersistedEvent, ...]]:
            lowest = from_version
            while True:
                page = self.read_aggregate_stream(
                    session, aggregate_type, aggregate_id, from_version=lowest, to_version=to_version, limit=page_size
                )
                if page.events:
                    yield page.events
                if len(page) < page_size:
                    return
                lowest = page.version + 1

        return pages()

    def aggregate_version(self, session: SyncSession, aggregate_type: str, aggregate_id: str) -> int:
        """The current version of an aggregate, which is the number of its events; 0 when it does not exist."""
        if _stream_parameters(aggregate_type, aggregate_id) is None:
            return 0
        with self._reading(session) as connection:
            return self._appender.aggregate_version(connection, aggregate_type, aggregate_id)

    def read_events(
        self,
        session: SyncSession,
        *,
        after: int = 0,
        limit: int = 100,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
        up_to: int | None = None,
        backwards: bool = False,
    ) -> list[PersistedEvent]:
        """Stable events in the log's order: a follower that goes on after the last one it got misses none.

        Args:
            session: the transaction to read in, under READ COMMITTED unless ``up_to`` is given.
            after: position to go on after, excluded; 0 for the beginning.
            limit: at most so many events, 1 or more.
            aggregate_types: only events of these types of aggregate; none and empty mean all.
            event_types: only events of these types; none and empty mean all.
            correlation_id: only events with it.
            up_to: last position wanted, included. Under REPEATABLE READ and SERIALIZABLE it is required, and has to be
                a stable position that was read before this transaction took its snapshot.
            backwards: the latest first, down to ``after``; go on with ``up_to`` one below the last one.

        Returns:
            Fewer than ``limit`` events when that is all there is up to the stable position.

        Raises:
            StablePositionError: the isolation level, a standby or a missing privilege makes it impossible to tell.
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types, correlation_id=correlation_id)
        after = _integer("after", after)
        limit = _integer("limit", limit, minimum=1)
        bound = _integer("up_to", up_to, default=_MAX_BIGINT)
        with self._reading(session) as connection:
            stable = self._positions.stable(connection, is_bounded=up_to is not None)
        return self._read_stable(session, scope, after, min(bound, stable), limit, backwards=backwards)

    def iterate_events(
        self,
        session: SyncSession,
        *,
        after: int = 0,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
        up_to: int | None = None,
        page_size: int = 1000,
    ) -> Iterator[PersistedEvent]:
        """Stable events in the log's order, read page by page as they are asked for.

        Args:
            session: as for `read_events`, like everything but ``page_size``.
            page_size: so many events are in memory at a time.

        It ends at the stable position of the moment when the first event is asked for.
        """
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types, correlation_id=correlation_id)
        pages = self._pages(session, scope, after, up_to, page_size)
        return (event for page in pages for event in page)

    def _pages(
        self, session: SyncSession, scope: Scope, after: int, up_to: int | None, page_size: int
    ) -> Iterator[list[PersistedEvent]]:
        """Check the arguments, now and not when the first page is asked for."""
        _integer("after", after)
        _integer("page_size", page_size, minimum=1)
        bound = _integer("up_to", up_to, default=_MAX_BIGINT)

        def pages() -> Iterator[list[PersistedEvent]]:
            with self._reading(session) as connection:
                end = min(bound, self._positions.stable(connection, is_bounded=up_to is not None))
            last = after
            while page := self._read_stable(session, scope, last, end, page_size):
                yield page
                last = page[-1].global_position

        return pages()

    def _read_stable(
        self, session: SyncSession, scope: Scope, after: int, up_to: int, limit: int, *, backwards: bool = False
    ) -> list[PersistedEvent]:
        """A page of the log up to a position that the caller knows to be stable in the transaction's snapshot.

        What `read_events` does once it has looked at the stable position; the worker looks less often.
        """
        if up_to <= after:
            return []
        parameters: dict[str, Any] = {"after": after, "up_to": up_to, "limit": limit}
        if scope.aggregate_types is not None:
            parameters["aggregate_types"] = list(scope.aggregate_types)
        if scope.event_types is not None:
            parameters["event_types"] = list(scope.event_types)
        if scope.correlation_id is not None:
            parameters["correlation"] = scope.correlation_id
        if scope.partitions > 1:
            parameters["partitions"], parameters["partition"] = scope.partitions, scope.partition
        with self._reading(session) as connection:
            rows = driver_rows(connection, self._statements.page(scope, backwards=backwards), parameters)
        return list(map(PersistedEvent._from_row, rows))

    def _end_of_hole(self, session: SyncSession, after: int, up_to: int) -> int:
        """The last position before the first event after another position; at most a stable one."""
        with self._reading(session) as connection:
            following = connection.scalar(self._statements.following, {"after": after})
        return up_to if following is None else min(following - 1, up_to)

    # -- positions ---------------------------------------------------------------------------------------------

    def _look(self, session: SyncSession) -> Look:
        """The stable position, and what comes with it: the worker's look, in one statement."""
        with self._reading(session) as connection:
            return self._positions.look(connection, is_bounded=True)

    def _origin(self, session: SyncSession) -> str:
        """Which server and database the session reads the log from, as in a `Look`."""
        with self._reading(session) as connection:
            return self._positions.origin(connection)

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
            return self._positions.stable(connection, is_bounded=True)

    def blocking_appends(self, session: SyncSession) -> list[BlockingAppend]:
        """The transactions that have appended and are not finished; the first is what holds the stable position.

        For operators: the pid to look at, or to terminate. Other roles' queries are visible to superusers and to
        members of ``pg_read_all_stats``.
        """
        with self._reading(session) as connection:
            return self._positions.blocking(connection)

    @contextmanager
    def _reading(self, session: SyncSession) -> Iterator[Connection]:
        with translated(self.tables.events, self.tables.aggregate_heads):
            yield connection_of(session, self.tables.events)

    def __repr__(self) -> str:
        return f"EventStore({self.tables!r})"


def _integer(name: str, value: int | None, *, default: int | None = None, minimum: int = 0) -> int:
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not minimum <= value <= _MAX_BIGINT:
        raise ValueError(f"{name} must be between {minimum} and {_MAX_BIGINT}, not {value}")
    return value


def _stream_parameters(aggregate_type: str, aggregate_id: str) -> dict[str, Any] | None:
    """Which aggregate; ``None`` for one whose name PostgreSQL cannot store, which has no events."""
    for name, value in (("aggregate_type", aggregate_type), ("aggregate_id", aggregate_id)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if "\0" in aggregate_type or "\0" in aggregate_id:
        return None
    return {"stream_type": aggregate_type, "stream_id": aggregate_id}
