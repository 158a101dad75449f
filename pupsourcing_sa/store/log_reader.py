"""Read access to the log, for the store and the worker. Arguments are not checked.

Every method works in the caller's transaction and flushes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import Connection, Row, Table

from pupsourcing_sa._checks import MAX_BIGINT
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.errors import ReplicatedLogError, SequenceBehindLogError, StablePositionError
from pupsourcing_sa.event import EventDecoder, PersistedEvent
from pupsourcing_sa.postgres.connections import SyncSession, connection_of, driver_rows
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.postgres.expressions import qualified_name
from pupsourcing_sa.store._position_statements import PositionStatements, sequence_state
from pupsourcing_sa.store._read_statements import ReadStatements
from pupsourcing_sa.store.pages import ByteLimit, Page
from pupsourcing_sa.store.positions import BlockingAppend, LogPositions
from pupsourcing_sa.tables import EventTables

__all__ = ["STANDBY", "LogNotFollowable", "LogReader", "sequence_not_readable"]

STANDBY: Final = "the server is a standby, which does not see the locks of appends in flight. Connect to the primary"

#: A log whose stable position would not be reliable in any session.
LogNotFollowable: TypeAlias = ReplicatedLogError | SequenceBehindLogError


class LogReader:
    """Reader of one log. Threads may share it.

    Args:
        tables: the log.
        decoder: decodes the payloads of events, for their ``data``.
    """

    def __init__(self, tables: EventTables, decoder: EventDecoder | None = None) -> None:
        self.tables = tables
        self.decoder = decoder
        self._statements = ReadStatements(tables)
        self._position_statements = PositionStatements(tables)

    # -- one aggregate -----------------------------------------------------------------------------------------

    def stream(
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
    ) -> Page:
        """Return the events of one aggregate; see `EventStore.read_aggregate_stream`."""
        lowest = from_version or 0
        highest = MAX_BIGINT if to_version is None else to_version
        if lowest > highest or _cannot_exist(aggregate_type, aggregate_id):
            return Page([], is_cut=False, has_more=False)
        parameters: dict[str, Any] = {"stream_type": aggregate_type, "stream_id": aggregate_id}
        parameters |= {"from_version": lowest, "to_version": highest, "limit": MAX_BIGINT if limit is None else limit}
        byte_limit = None if max_bytes is None else ByteLimit.TOTAL
        if byte_limit:
            parameters["max_bytes"] = max_bytes
        statement = self._statements.aggregate_stream(backwards=backwards, byte_limit=byte_limit)
        with self._connection(session) as connection:
            rows = driver_rows(connection, statement, parameters)
        return Page.of(rows, limit, is_limited=byte_limit is not None, decoder=self.decoder)

    def stream_pages(
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
        """Yield the events of one aggregate in version order, in pages. A page is read when it is needed."""
        has_more = True
        while has_more:
            page = self.stream(
                session,
                aggregate_type,
                aggregate_id,
                from_version=from_version,
                to_version=to_version,
                limit=page_size,
                max_bytes=max_bytes,
            )
            has_more = page.has_more
            if page.events:
                from_version = page.events[-1].aggregate_version + 1
                yield page.events
            # Only one page is in memory.
            del page

    def aggregate_version(self, session: SyncSession, aggregate_type: str, aggregate_id: str) -> int:
        """Return the current version of an aggregate; see `EventStore.aggregate_version`."""
        if _cannot_exist(aggregate_type, aggregate_id):
            return 0
        parameters = {"stream_type": aggregate_type, "stream_id": aggregate_id}
        with self._connection(session) as connection:
            return connection.scalar(self._statements.aggregate_version, parameters) or 0

    def events_by_id(self, session: SyncSession, event_ids: Iterable[UUID]) -> list[PersistedEvent]:
        """Return the events that have one of these ids, in the log's order."""
        with self._connection(session) as connection:
            rows = driver_rows(connection, self._statements.by_id, {"event_ids": list(event_ids)})
        return PersistedEvent.from_rows(rows, self.decoder)

    def events_at(self, session: SyncSession, positions: Iterable[int]) -> list[PersistedEvent]:
        """Return the events at these positions, in the log's order."""
        with self._connection(session) as connection:
            rows = driver_rows(connection, self._statements.by_position, {"positions": list(positions)})
        return PersistedEvent.from_rows(rows, self.decoder)

    def sample(self, session: SyncSession, after: int, up_to: int, limit: int, size: int) -> list[Any]:
        """Return the number of events of each type and version in a part of the log, and a random sample of them.

        Args:
            session: the transaction to read in.
            after: position before the part.
            up_to: last position of the log to read.
            limit: number of events in the part.
            size: maximum number of events in each sample.

        Returns:
            A row for each event in a sample: event type, version, number of events with both, random key of this event,
            its position, and the last position of the part.
        """
        parameters = {"after": after, "up_to": up_to, "limit": limit, "size": size}
        with self._connection(session) as connection:
            return driver_rows(connection, self._statements.sample, parameters)

    # -- the log -----------------------------------------------------------------------------------------------

    def page(
        self,
        session: SyncSession,
        scope: Scope,
        after: int,
        up_to: int,
        limit: int,
        *,
        max_bytes: int | None = None,
        byte_limit: ByteLimit = ByteLimit.TOTAL,
        backwards: bool = False,
    ) -> Page:
        """Return the events of a scope with ``after < global_position <= up_to``, in the log's order.

        Args:
            session: the transaction to read in.
            scope: the events to return.
            after: position before the first event.
            up_to: position of the last event. It must be stable in the transaction's snapshot; otherwise events may be
                missing.
            limit: maximum number of events.
            max_bytes: maximum number of bytes, by ``byte_limit``; ``None`` for no limit.
            byte_limit: the way in which ``max_bytes`` applies. With ``EACH``, the page may be empty and have more.
            backwards: return the latest events first.
        """
        if up_to <= after:
            return Page([], is_cut=False, has_more=False)
        parameters: dict[str, Any] = {"after": after, "up_to": up_to, "limit": limit}
        if scope.aggregate_types is not None:
            parameters["aggregate_types"] = list(scope.aggregate_types)
        if scope.event_types is not None:
            parameters["event_types"] = list(scope.event_types)
        if scope.correlation_id is not None:
            parameters["correlation"] = scope.correlation_id
        if scope.partitions > 1:
            parameters["partitions"], parameters["partition"] = scope.partitions, scope.partition
        if scope.aggregate is not None:
            parameters["stream_type"], parameters["stream_id"] = scope.aggregate
        if scope.since is not None:
            parameters["since"] = scope.since
        if scope.until is not None:
            parameters["until"] = scope.until
        if max_bytes is not None:
            parameters["max_bytes"] = max_bytes
        is_limited = max_bytes is not None
        statement = self._statements.page(scope, backwards=backwards, byte_limit=byte_limit if is_limited else None)
        with self._connection(session) as connection:
            rows = driver_rows(connection, statement, parameters)
        return Page.of(rows, limit, is_limited=is_limited, decoder=self.decoder)

    def pages(
        self,
        session: SyncSession,
        scope: Scope,
        after: int,
        up_to: int | None,
        page_size: int,
        *,
        max_bytes: int | None,
    ) -> Iterator[list[PersistedEvent]]:
        """Yield the stable events of a scope, in pages. A page is read when it is needed.

        The stable position is read once, before the first page. See `page` and `end` for the arguments.
        """
        end, has_more = self.end(session, up_to), True
        while has_more:
            page = self.page(session, scope, after, end, page_size, max_bytes=max_bytes)
            has_more = page.has_more
            if page.events:
                after = page.events[-1].global_position
                yield page.events
            # Only one page is in memory.
            del page

    def end(self, session: SyncSession, up_to: int | None) -> int:
        """Return the position up to which the caller may read: the stable position, or ``up_to`` if that is lower.

        Without ``up_to``, isolation levels above READ COMMITTED are refused.
        """
        stable = self.positions(session, check_isolation=up_to is None).stable
        return stable if up_to is None else min(up_to, stable)

    def end_of_gap(self, session: SyncSession, after: int, up_to: int) -> int:
        """Return the last position before the first event after ``after``, or ``up_to`` if that is lower."""
        with self._connection(session) as connection:
            following = connection.scalar(self._statements.following, {"after": after})
        return up_to if following is None else min(following - 1, up_to)

    # -- positions ---------------------------------------------------------------------------------------------

    def positions(self, session: SyncSession, *, check_isolation: bool = False) -> LogPositions:
        """Return the stable and the last position, and the server they belong to, in one statement.

        Args:
            session: the transaction to read in.
            check_isolation: refuse REPEATABLE READ and SERIALIZABLE, whose snapshot may be older than the positions.
                Without this check the caller must read events in a later snapshot.

        Raises:
            StablePositionError: the stable position cannot be determined in this transaction.
            TablesMissingError: the log's tables do not exist.
        """
        positions, problem = self.inspect(session, check_isolation=check_isolation)
        if problem is not None:
            raise problem
        return positions

    def inspect(
        self, session: SyncSession, *, check_isolation: bool = False
    ) -> tuple[LogPositions, LogNotFollowable | None]:
        """Return the positions as `positions` does, but return a problem of the log itself instead of raising it.

        Raises:
            StablePositionError: the session is the problem, such as one on a standby.
            TablesMissingError: the log's tables do not exist.
        """
        with self._connection(session) as connection:
            row = connection.execute(self._position_statements.stable).one()
            self._check(row, check_isolation=check_isolation)
            problem: LogNotFollowable | None = None
            if row.is_replicated:
                problem = ReplicatedLogError(qualified_name(self.tables.events, connection))
            elif row.last and self._last_issued(connection, row) < row.last:
                problem = SequenceBehindLogError(qualified_name(self.tables.events, connection))
        return LogPositions(row.stable, row.last, row.server_identity), problem

    def is_replicated(self, session: SyncSession) -> bool:
        """Return True if a subscription of logical replication fills the log."""
        with self._connection(session) as connection:
            return bool(connection.scalar(self._position_statements.replicated))

    def last_issued(self, session: SyncSession) -> tuple[int, int, int] | None:
        """Return the last position issued as the sequence shows it, as the store reads it, and as the sequence again.

        0 means that the sequence has issued nothing. Return ``None`` if this role may not read the sequence itself,
        which the store does not need.
        """

        def shown_by_sequence() -> int:
            last_value, is_called = connection.execute(sequence_state(name)).one()
            return last_value if is_called else 0

        with self._connection(session) as connection:
            name, is_readable = connection.execute(self._position_statements.sequence).one()
            if not is_readable:
                return None
            before = shown_by_sequence()
            return before, connection.scalar(self._position_statements.last_issued) or 0, shown_by_sequence()

    def _last_issued(self, connection: Connection, row: Row[Any]) -> Any:
        """Return the last position that the sequence has issued, or the one before the first it will issue."""
        if row.last_issued is None:
            # It has issued nothing since it was created or restarted. PostgreSQL shows its next position only to roles
            # that may read the sequence. For others, the first append finds out.
            name, is_readable = connection.execute(self._position_statements.sequence).one()
            return connection.execute(sequence_state(name)).one().last_value - 1 if is_readable else row.last
        return row.last_issued

    def server_identity(self, session: SyncSession) -> str:
        """Return `LogPositions.server_identity` without reading the positions."""
        with self._connection(session) as connection:
            identity: str = connection.execute(self._position_statements.server_identity).scalar_one()
        return identity

    def last_position(self, session: SyncSession) -> int:
        """Return the highest position in the transaction's snapshot, or 0 if the log is empty."""
        with self._connection(session) as connection:
            return connection.scalar(self._statements.latest_global_position) or 0

    def blocking_appends(self, session: SyncSession) -> list[BlockingAppend]:
        """Return the unfinished transactions that have appended, the one with the lowest mark first."""
        with self._connection(session) as connection:
            rows = connection.execute(self._position_statements.blocking).mappings()
            return [BlockingAppend(**row) for row in rows]

    def _check(self, row: Row[Any], *, check_isolation: bool) -> None:
        """Refuse a session whose positions are not reliable, and a sequence that issues positions in another order."""
        column = f"{self.tables.events.key}.global_position"
        if row.is_in_recovery:
            raise StablePositionError(STANDBY)
        if not row.is_readable:
            raise sequence_not_readable(self.tables.events)
        if not row.is_in_order:
            raise StablePositionError(
                f"the sequence of {column} does not issue positions in ascending order. While nothing is appended, run "
                "ALTER SEQUENCE … CACHE 1 INCREMENT BY 1 NO CYCLE"
            )
        if check_isolation and row.isolation not in ("read committed", "read uncommitted"):
            raise StablePositionError(
                f"under {row.isolation.upper()} the snapshot may be older than the latest stable events. Read under "
                "READ COMMITTED, or pass up_to=, a stable_position() that was read before this transaction began"
            )

    @contextmanager
    def _connection(self, session: SyncSession) -> Iterator[Connection]:
        with translated(self.tables.events, self.tables.aggregate_heads):
            yield connection_of(session, self.tables.events)


def sequence_not_readable(events: Table) -> StablePositionError:
    """Return the error for a role that does not see the last position issued."""
    key = events.key
    return StablePositionError(
        f"this role may not read the sequence of {key}.global_position, or the sequence does not exist. Run GRANT "
        f"USAGE on the sequence that pg_get_serial_sequence('{key}', 'global_position') returns"
    )


def _cannot_exist(aggregate_type: str, aggregate_id: str) -> bool:
    """Return True if no log can have this aggregate: PostgreSQL refuses NUL characters, even as parameters."""
    return "\0" in aggregate_type or "\0" in aggregate_id
