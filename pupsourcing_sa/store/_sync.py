"""The event store: it checks arguments, and the other modules of this package do the work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from pupsourcing_sa._checks import check_name, check_type
from pupsourcing_sa.errors import NoEventsError
from pupsourcing_sa.event import AppendResult, Event
from pupsourcing_sa.expected import ExpectedVersion
from pupsourcing_sa.postgres.connections import SyncSession, connection_of
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store._append import Append
from pupsourcing_sa.store._appender import Appender
from pupsourcing_sa.store._reads import EventReads
from pupsourcing_sa.store.log_reader import LogReader
from pupsourcing_sa.store.server_checks import check_server, raise_problem
from pupsourcing_sa.tables import EventTables

__all__ = ["EventStore"]


class EventStore(EventReads):
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
        self._appender = Appender(tables, self.reader, notify_channel)

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
