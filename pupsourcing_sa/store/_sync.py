"""The event store: it checks arguments, and the other modules of this package do the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from pupsourcing_sa._checks import check_int, check_name, check_type
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.errors import NoEventsError
from pupsourcing_sa.event import AppendResult, Event, PersistedEvent, Stream
from pupsourcing_sa.expected import ExpectedVersion
from pupsourcing_sa.postgres.connections import SyncSession, connection_of
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store._append import Append
from pupsourcing_sa.store._appender import Appender
from pupsourcing_sa.store.log_reader import LogReader
from pupsourcing_sa.store.pages import EventList, expanded
from pupsourcing_sa.store.positions import BlockingAppend
from pupsourcing_sa.store.server_checks import check_server, raise_problem
from pupsourcing_sa.tables import EventTables

__all__ = ["EventStore"]


class EventStore:
    """An append-only log of events, used in the application's own transactions.

    Args:
        tables: the log's tables; by default, tables with the default names on a new ``MetaData``.
        notify_channel: channel for an empty NOTIFY when the transaction of an append commits. By default there is none,
            because PostgreSQL commits transactions with notifications one at a time.
        registry: event classes. With them you can append objects of your own classes, and events of the log have
            ``data``. The registry cannot be changed afterwards.

    Attributes:
        reader: read access without checks of arguments, for the worker.

    Raises:
        TypeError: an argument has the wrong type, or an annotation of an event class cannot be evaluated.
        ValueError: the channel's name is empty or longer than 63 bytes, or an upcaster is missing or wrong.

    Every method takes a ``Session``, a ``scoped_session`` or a ``Connection`` as its first argument and works in its
    current transaction. SQLAlchemy begins a transaction if there is none. The store never commits, rolls back or
    flushes. It keeps only its statements, so threads may share it.

    >>> store = EventStore(EventTables(schema="shop"))
    """

    def __init__(
        self,
        tables: EventTables | None = None,
        *,
        notify_channel: str | None = None,
        registry: EventRegistry | None = None,
    ) -> None:
        if tables is None:
            tables = EventTables()
        check_type("tables", tables, EventTables, "EventTables", "; write EventTables(metadata)")
        if notify_channel is not None:
            notify_channel = check_name("notify_channel", notify_channel)
        self.tables = tables
        self.notify_channel = notify_channel
        self.registry = registry
        if registry is not None:
            check_type("registry", registry, EventRegistry, "an EventRegistry")
            registry.check()
        self.reader = LogReader(tables, registry)
        self._appender = Appender(tables, self.reader, notify_channel, registry)

    # -- appending ---------------------------------------------------------------------------------------------

    def append(
        self,
        session: SyncSession,
        expected_version: ExpectedVersion,
        events: Iterable[Any],
        *,
        aggregate: tuple[str, str] | None = None,
        event_ids: Sequence[UUID] | None = None,
        idempotent: bool = False,
    ) -> AppendResult:
        """Append events of one aggregate, in order, in one statement.

        Args:
            session: the transaction that the events become part of.
            expected_version: ``NoStream()``, ``Exact(version)`` or ``AnyVersion()``.
            events: one or more events, all of the same aggregate: `Event` objects, or objects of classes that the
                store's registry knows.
            aggregate: type and id of the aggregate; required for objects of registered classes.
            event_ids: ids of the events, for objects of registered classes; by default new ones. `deterministic_id`
                makes ids for reactions.
            idempotent: if the log already has these events, return their positions instead of raising an error, even if
                other events follow them. Use this to retry a commit whose outcome is unknown. The log has them if there
                are equal events of this aggregate with consecutive versions in the same order; ``created_at`` and
                ``trace_id`` may differ. This costs a savepoint.

        Returns:
            The positions and versions of the events. Other transactions see them after the commit.

        Raises:
            OptimisticConcurrencyError: the aggregate is not at the expected version. Nothing was written. Under READ
                COMMITTED the transaction stays usable.
            DuplicateEventError: two events have the same id, or the log has an event with this id. The latter ends the
                transaction, unless ``idempotent`` is true.
            NoEventsError: ``events`` is empty.
            PayloadError: an object cannot be encoded, or could not be decoded again.
            KeyTooLongError: the aggregate's type and id, or a correlation id, are too long for an index entry.
            StaleHeadsError: the log has events that are missing in its table of heads.
            TransactionRequiredError: the connection is in AUTOCOMMIT mode, or the transaction is read-only.
            TypeError, ValueError: an argument is invalid, or the events belong to several aggregates.
            TablesMissingError: the log's tables do not exist.
        """
        append = Append.of(expected_version, events, aggregate, self.registry, event_ids, needs_ids=idempotent)
        connection = connection_of(session, self._appender.clause)
        if idempotent:
            return self._appender.append_once(connection, append)
        return self._appender.append(connection, append)

    def append_many(
        self,
        session: SyncSession,
        appends: Iterable[
            tuple[ExpectedVersion, Iterable[Event]] | tuple[ExpectedVersion, Iterable[Any], tuple[str, str]]
        ],
    ) -> list[AppendResult]:
        """Append events of several aggregates in one statement: all of them, or none.

        Args:
            session: the transaction that the events become part of.
            appends: entries, each with an expected version and events of one aggregate. For objects of registered
                classes, its type and id are a third element. Positions follow this order,
                even if aggregates alternate. An aggregate may have several entries; the expected version of its first
                one counts, and the others are ignored. Locks are taken in the order of the aggregates' types and ids,
                so two calls with the same aggregates never deadlock.

        Returns:
            One result per entry, in the same order.

        Raises:
            OptimisticConcurrencyError: see `append`. It names the first aggregate that is not at its expected version.
                If a lost race ends the transaction, it names the first aggregate with an expected version instead.
            NoEventsError: ``appends`` is empty, or one of them has no events.
            DuplicateEventError, KeyTooLongError, StaleHeadsError, TransactionRequiredError, TypeError, ValueError,
            TablesMissingError: see `append`.
        """
        checked = []
        for entry in appends:
            if not isinstance(entry, tuple) or len(entry) not in (2, 3):
                raise TypeError(
                    "appends must contain tuples (expected_version, events) or (expected_version, events, aggregate), "
                    f"not {type(entry).__name__}"
                )
            aggregate = entry[2] if len(entry) == 3 else None
            checked.append(Append.of(entry[0], entry[1], aggregate, self.registry))
        if not checked:
            raise NoEventsError
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
        max_bytes: int | None = None,
        backwards: bool = False,
    ) -> Stream:
        """Return the events of one aggregate in the order of their versions.

        Args:
            session: the transaction to read in. It sees its own appends.
            aggregate_type: type of the aggregate.
            aggregate_id: id of the aggregate.
            from_version: version of the first event; by default the first version.
            to_version: version of the last event; by default the current version. An inverted range is empty.
            limit: maximum number of events; unlimited by default.
            max_bytes: maximum number of bytes of payloads and metadata; unlimited by default. The first event is
                returned even if it alone has more. If fewer events are returned than you want, continue after them;
                `aggregate_version` returns the last version.
            backwards: return the latest version first. With ``limit=1``, this is the latest event.

        Raises:
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        aggregate_type, aggregate_id = _check_name(aggregate_type, aggregate_id)
        from_version, to_version = _check_range(from_version, to_version)
        limit = check_int("limit", limit, minimum=1, is_optional=True)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        page = self.reader.stream(
            session,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            limit=limit,
            max_bytes=max_bytes,
            backwards=backwards,
        )
        events = page.events
        version = max(events[0].aggregate_version, events[-1].aggregate_version) if events else 0
        return Stream(aggregate_type, aggregate_id, tuple(expanded(events, self.registry)), version)

    def iterate_aggregate_stream(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
        page_size: int = 1000,
        max_bytes: int | None = None,
    ) -> Iterator[PersistedEvent]:
        """Iterate over the events of one aggregate in version order, reading one page at a time.

        Args:
            session: as for `read_aggregate_stream`, like the versions.
            page_size: number of events in memory at a time.
            max_bytes: maximum number of bytes of payloads and metadata in a page, unless one event alone has more;
                unlimited by default.
        """
        pages = self._stream_pages(
            session,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            page_size=page_size,
            max_bytes=max_bytes,
        )
        return chain.from_iterable(pages)

    def _stream_pages(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None,
        to_version: int | None,
        page_size: int,
        max_bytes: int | None,
    ) -> Iterator[list[PersistedEvent]]:
        aggregate_type, aggregate_id = _check_name(aggregate_type, aggregate_id)
        from_version, to_version = _check_range(from_version, to_version)
        page_size = check_int("page_size", page_size, minimum=1)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        pages = self.reader.stream_pages(
            session,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            page_size=page_size,
            max_bytes=max_bytes,
        )
        return (expanded(events, self.registry) for events in pages)

    def aggregate_version(self, session: SyncSession, aggregate_type: str, aggregate_id: str) -> int:
        """Return the current version of an aggregate, which is the number of its events, or 0 if it does not exist."""
        aggregate_type, aggregate_id = _check_name(aggregate_type, aggregate_id)
        return self.reader.aggregate_version(session, aggregate_type, aggregate_id)

    def read_events(
        self,
        session: SyncSession,
        *,
        after: int = 0,
        limit: int = 100,
        max_bytes: int | None = None,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
        up_to: int | None = None,
        backwards: bool = False,
    ) -> EventList:
        """Return stable events in the log's order. A follower that continues after ``last_position`` misses none.

        Args:
            session: the transaction to read in, under READ COMMITTED unless ``up_to`` is given.
            after: position to continue after; 0 for the beginning of the log.
            limit: maximum number of rows of the log, 1 or more.
            max_bytes: maximum number of bytes of payloads and metadata; unlimited by default. The first event is
                returned even if it alone has more.
            aggregate_types: return only events of these aggregate types; ``None`` and empty mean all.
            event_types: return only events of these types; ``None`` and empty mean all.
            correlation_id: return only events with this correlation id.
            up_to: position of the last event to return. REPEATABLE READ and SERIALIZABLE require it; it must then be a
                stable position that was read before this transaction took its snapshot.
            backwards: return the latest events first. To continue, pass the last event's position minus 1 as ``up_to``.

        Returns:
            The events, in a list with the attribute ``last_position``: continue after it, until it no longer changes.
            Upcasters may turn rows into several events or none, so the list may be empty before the end.

        Raises:
            StablePositionError: the stable position cannot be determined: because of the isolation level, on a standby,
                or because a privilege is missing.
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types, correlation_id=correlation_id)
        after = check_int("after", after)
        limit = check_int("limit", limit, minimum=1)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        up_to = check_int("up_to", up_to, is_optional=True)
        end = self.reader.end(session, up_to)
        events = self.reader.page(session, scope, after, end, limit, max_bytes=max_bytes, backwards=backwards).events
        return EventList(expanded(events, self.registry), events[-1].global_position if events else after)

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
        max_bytes: int | None = None,
    ) -> Iterator[PersistedEvent]:
        """Iterate over stable events in the log's order, reading one page at a time.

        Args:
            session: as for `read_events`, like the other arguments except the last two.
            page_size: number of events in memory at a time.
            max_bytes: maximum number of bytes of payloads and metadata in a page, unless one event alone has more;
                unlimited by default.

        The iteration ends at the stable position that it reads before the first page.
        """
        pages = self._event_pages(
            session,
            after=after,
            aggregate_types=aggregate_types,
            event_types=event_types,
            correlation_id=correlation_id,
            up_to=up_to,
            page_size=page_size,
            max_bytes=max_bytes,
        )
        return chain.from_iterable(pages)

    def _event_pages(
        self,
        session: SyncSession,
        *,
        after: int,
        aggregate_types: Iterable[str] | None,
        event_types: Iterable[str] | None,
        correlation_id: str | None,
        up_to: int | None,
        page_size: int,
        max_bytes: int | None,
    ) -> Iterator[list[PersistedEvent]]:
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types, correlation_id=correlation_id)
        after = check_int("after", after)
        page_size = check_int("page_size", page_size, minimum=1)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        up_to = check_int("up_to", up_to, is_optional=True)
        pages = self.reader.pages(session, scope, after, up_to, page_size, max_bytes=max_bytes)
        return (expanded(events, self.registry) for events in pages)

    # -- positions ---------------------------------------------------------------------------------------------

    def latest_global_position(self, session: SyncSession) -> int:
        """Return the last position in the log as this transaction sees it, or 0 if the log is empty.

        Events below it may still be uncommitted. At and below `stable_position` there are none.
        """
        return self.reader.last_position(session)

    def stable_position(self, session: SyncSession) -> int:
        """Return the stable position: no event at or below it is uncommitted, so the log up to it never changes.

        The value stays true. Every snapshot taken afterwards contains all events up to it, so under REPEATABLE READ and
        SERIALIZABLE use it in the next transaction.

        Raises:
            StablePositionError: the session is on a standby, or may not read the log's sequence.
            TablesMissingError: the log's tables do not exist.
        """
        return self.reader.positions(session).stable

    def blocking_appends(self, session: SyncSession) -> list[BlockingAppend]:
        """Return the unfinished transactions that have appended. The first one holds back the stable position.

        Operators use this to find the pid to investigate or terminate. Only superusers and members of
        ``pg_read_all_stats`` see the queries of other roles.
        """
        return self.reader.blocking_appends(session)

    # -- the server --------------------------------------------------------------------------------------------

    def check(self, engine: Engine) -> None:
        """Check that the server does what the stable position relies on. Workers do this when they start.

        It writes nothing. It needs two connections at a time, one of them outside of the engine's pool.

        Raises:
            UnsupportedServerError: the server is too old, or only speaks PostgreSQL's protocol.
            StablePositionError: the server is a standby, or the log cannot be followed; see `stable_position`.
            TablesMissingError: the log's tables do not exist, or lack a column.
        """
        check_type("engine", engine, Engine, "an Engine", "; AsyncEventStore has the check for an AsyncEngine")
        with engine.connect() as connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            raise_problem(check_server(connection, self.reader))

    def __repr__(self) -> str:
        return f"EventStore({self.tables!r})"


def _check_name(aggregate_type: str, aggregate_id: str) -> tuple[str, str]:
    # Any text may be asked for, even if no log can have it.
    check_type("aggregate_type", aggregate_type, str, "a str")
    check_type("aggregate_id", aggregate_id, str, "a str")
    return str.__str__(aggregate_type), str.__str__(aggregate_id)


def _check_range(from_version: int | None, to_version: int | None) -> tuple[int | None, int | None]:
    return (
        check_int("from_version", from_version, is_optional=True),
        check_int("to_version", to_version, is_optional=True),
    )
