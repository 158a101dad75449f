"""How the workers of a log are: who is alive, who runs what, how far behind it is, and what fails."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import Connection, Row

from pupsourcing_sa.postgres.connections import SyncSession, connection_of
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.postgres.lock_holders import LockHolder, holder_of
from pupsourcing_sa.status._statements import StatusStatements
from pupsourcing_sa.store import AsyncEventStore, BlockingAppend, EventStore
from pupsourcing_sa.tables import WorkerTables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    _AsyncSession: TypeAlias = AsyncSession | async_scoped_session[Any] | AsyncConnection

__all__ = [
    "HEARTBEAT_TIMEOUT",
    "LAG_LIMIT",
    "ConsumerStatus",
    "FailingEvent",
    "LockHolder",
    "NodeStatus",
    "PartitionStatus",
    "Status",
    "read_status",
    "read_status_async",
]

#: What `StatusStatements.locked` gives, by name of the consumer and partition.
_Locks: TypeAlias = dict[tuple[str, int], Row[Any]]

#: A node that was silent for so many seconds is taken for dead.
HEARTBEAT_TIMEOUT: Final = 8.0
#: Counting so many entries of the log's index takes some ten milliseconds.
LAG_LIMIT: Final = 100_000


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A worker process.

    Attributes:
        worker_id: its ``Worker.id``.
        hostname: the machine that it runs on.
        pid: its process id there.
        consumers: names of the consumers that it can run, sorted.
        started_at: when it registered.
        heartbeat_age: seconds since it last said that it is alive.
        is_silent: that is longer than the heartbeat timeout: it is taken for dead.
    """

    worker_id: UUID
    hostname: str
    pid: int
    consumers: tuple[str, ...]
    started_at: datetime
    heartbeat_age: float
    is_silent: bool


@dataclass(frozen=True, slots=True)
class FailingEvent:
    """The event that a partition cannot get past.

    Attributes:
        position: its global position; ``None``, as what follows, where the checkpoint does not name one.
        event_id: its id; ``None``, as its type, also when it is not in the log any more.
        event_type: its type.
        error: the traceback of the last attempt.
        attempts: how often it was tried.
        failed_at: when it was tried last.
        retry_at: when it is tried again; ``None`` while the partition is parked.
        parked_at: since when the partition is parked, which is until somebody deals with it; ``None`` if it is not.
    """

    position: int | None
    event_id: UUID | None
    event_type: str | None
    error: str | None
    attempts: int
    failed_at: datetime | None
    retry_at: datetime | None
    parked_at: datetime | None


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition of a consumer.

    Attributes:
        partition: which, from 0.
        worker_id: the node that it is assigned to; ``None`` if to none.
        position: its checkpoint.
        lag_events: events in the log above its checkpoint, of whatever type and partition.
        is_lag_exact: whether that is all of them; otherwise there are so many at least.
        lag_seconds: age of the first of them, which is the time since its ``created_at``; 0 when there is none.
        failing: the event that it cannot get past; ``None`` when there is none.
        locked_by: the transaction that keeps the node from it: it has the checkpoint locked, and does not bear the name
            of the node that it is assigned to. ``None`` when there is none, and when several share the lock, or it was
            taken under a savepoint that was released: PostgreSQL does not tell then who has it. A node's own batch,
            which has the lock nearly all the time under load, is not shown.
        locked_seconds: for so long at the most; 0 when there is none. Where the age of the transaction may not be seen,
            it is for how long, at the most, events have been waiting for it.
    """

    partition: int
    worker_id: UUID | None
    position: int
    lag_events: int
    is_lag_exact: bool
    lag_seconds: float
    failing: FailingEvent | None
    locked_by: LockHolder | None
    locked_seconds: float


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """A consumer that the tables know.

    Attributes:
        name: its name.
        live_nodes: how many nodes that are not silent can run it.
        partitions: its partitions, in order.
    """

    name: str
    live_nodes: int
    partitions: tuple[PartitionStatus, ...]

    @property
    def lag_seconds(self) -> float:
        """The greatest of its partitions."""
        return max(partition.lag_seconds for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class Status:
    """What `read_status` found.

    Attributes:
        taken_at: when, by the database's clock, in UTC.
        head: position of the last event in the log; 0 when it is empty.
        last_issued: last position that the log has given to an event, also to one that was rolled back, or deleted, or
            is not committed yet; what is appended next gets a higher one. A checkpoint above it is one of another log.
        stable_position: up to here consumers can read.
        held_back_seconds: for how long, at the most, a transaction has been keeping events that are in the log from
            consumers; 0 when none does.
        blocking: the transactions that have appended and are not finished; the first one is what does that.
        nodes: the worker processes, the oldest first.
        consumers: the consumers, by name.
    """

    taken_at: datetime
    head: int
    last_issued: int
    stable_position: int
    held_back_seconds: float
    blocking: tuple[BlockingAppend, ...]
    nodes: tuple[NodeStatus, ...]
    consumers: tuple[ConsumerStatus, ...]

    @property
    def has_live_node(self) -> bool:
        return any(not node.is_silent for node in self.nodes)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: times in ISO 8601, durations in seconds, ids as strings."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def read_status(
    session: SyncSession,
    store: EventStore | AsyncEventStore,
    tables: WorkerTables | None = None,
    *,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    lag_limit: int = LAG_LIMIT,
) -> Status:
    """How the workers of a log are, in six statements whatever the number of consumers; seven if one is locked out.

    Args:
        session: a ``Session`` or a ``Connection``, best under READ COMMITTED, where each statement sees the present.
        store: the log.
        tables: what its workers keep; by default tables with the default names in the schema of the log.
        heartbeat_timeout: a node is silent after so many seconds; as in the workers' `WorkerConfig`.
        lag_limit: count up to so many events; a partition with more is shown with one more, and as inexact.

    Raises:
        TablesMissingError: the migrations have not been run.
        StablePositionError: the session is on a standby, or may not read the log's sequence.
        TypeError, ValueError: an argument is wrong.

    Lag is measured against the log's head. What a consumer's scope is, only its code knows, so every event counts; a
    consumer moves its checkpoint over events that it does not want every few seconds, or 10,000 positions. One that has
    nothing to do therefore shows a lag of some seconds at the most, while others' events arrive. ``lag_seconds`` and
    `Status.held_back_seconds` compare ``created_at``, which a writer sets, with the clock of the database: events that
    were imported are as old as they say.

    >>> with Session(engine) as session:  # doctest: +SKIP
    ...     behind = [consumer.name for consumer in read_status(session, store).consumers if consumer.lag_seconds > 60]
    """
    if hasattr(session, "run_sync"):
        raise TypeError(
            f"session must be a Session or a Connection, not {type(session).__name__}; use read_status_async"
        )
    if not isinstance(store, (EventStore, AsyncEventStore)):
        raise TypeError(f"store must be an EventStore, not {type(store).__name__}")
    if tables is not None and not isinstance(tables, WorkerTables):
        raise TypeError(f"tables must be WorkerTables, not {type(tables).__name__}")
    _check("heartbeat_timeout", heartbeat_timeout)
    _check("lag_limit", lag_limit, is_whole=True)
    store = store.sync_store if isinstance(store, AsyncEventStore) else store
    tables = tables or WorkerTables(schema=store.tables.events.schema)
    statements = StatusStatements(store.tables, tables)
    stable = store.stable_position(session)
    blocking = tuple(store.blocking_appends(session))
    ours = (tables.worker_nodes, tables.consumer_assignments, tables.consumer_checkpoints)
    connection = connection_of(session, tables.consumer_checkpoints)
    with translated(*ours):
        rows = connection.execute(statements.nodes).all()
        partitions = connection.execute(statements.partitions, {"most": lag_limit + 1}).all()
        # After the checkpoints: they follow what is committed, and the log goes on while we read. None of them exceeds
        # what was issued when it was read, and that is never taken back, unless somebody restarts or restores the log.
        log = connection.execute(statements.log, {"stable": stable}).one()
        locked = _locked(connection, statements)
    nodes = tuple(_node(row, heartbeat_timeout) for row in rows)
    return Status(
        taken_at=log.taken_at.astimezone(UTC),
        head=log.head,
        last_issued=max(log.head, log.issued or 0),  # positions that were imported are not issued by the sequence
        stable_position=stable,
        held_back_seconds=_held_back(blocking, log.waiting),
        blocking=blocking,
        nodes=nodes,
        consumers=tuple(_consumers(partitions, nodes, locked, lag_limit)),
    )


async def read_status_async(
    session: _AsyncSession,
    store: EventStore | AsyncEventStore,
    tables: WorkerTables | None = None,
    *,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    lag_limit: int = LAG_LIMIT,
) -> Status:
    """`read_status` for an ``AsyncSession`` or an ``AsyncConnection``."""
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    if isinstance(session, async_scoped_session):
        session = session()
    if not isinstance(session, (AsyncSession, AsyncConnection)):
        raise TypeError(
            f"session must be an AsyncSession or an AsyncConnection, not {type(session).__name__}; "
            "read_status is for Session and Connection"
        )
    return await session.run_sync(read_status, store, tables, heartbeat_timeout=heartbeat_timeout, lag_limit=lag_limit)


def _check(argument: str, value: float, *, is_whole: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        raise TypeError(f"{argument} must be {'an int' if is_whole else 'a number of seconds'}, not {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{argument} must be greater than 0, not {value}")


def _held_back(blocking: tuple[BlockingAppend, ...], waiting: float) -> float:
    """For how long the first has held back events that wait.

    Both bounds are needed: a transaction may have been open for long before it appended, and an event may have been
    created, or say that it was, long before it was held back.
    """
    if not blocking:
        return 0.0  # whatever is above the stable position was committed since that was read
    age = blocking[0].age
    return waiting if age is None else min(waiting, max(age.total_seconds(), 0.0))


def _locked(connection: Connection, statements: StatusStatements) -> _Locks:
    """Whom the partitions are locked by that are not by their own node, by name of the consumer and partition.

    A lock and the name of who holds it are not read in the same instant, so that the batch of the node itself may be
    seen without its name when it begins or ends just then. What is found is looked at again: a transaction that is
    there both times was there in between, when its name was read at least once.
    """
    found = connection.execute(statements.locked).all()
    if not found:
        return {}
    first = {_key(row) for row in found}
    rows = connection.execute(statements.locked)
    return {(row.consumer_name, row.partition): row for row in rows if _key(row) in first}


def _key(row: Row[Any]) -> tuple[Any, ...]:
    return row.consumer_name, row.partition, row.transaction


def _locked_seconds(age: timedelta | None, unmoved: float, waiting: float) -> float:
    """For how long a checkpoint has been locked, at the most.

    The transaction may have been open for long before it locked the checkpoint; the checkpoint may not have moved for
    long before it was locked, and if that is all that is known, it matters only while there is something to do.
    """
    return min(unmoved, waiting if age is None else max(age.total_seconds(), 0.0))


def _node(row: Row[Any], heartbeat_timeout: float) -> NodeStatus:
    return NodeStatus(
        worker_id=row.worker_id,
        hostname=row.hostname,
        pid=row.pid,
        consumers=tuple(sorted(row.consumers)),
        started_at=row.created_at.astimezone(UTC),
        heartbeat_age=row.heartbeat_age,
        is_silent=row.heartbeat_age > heartbeat_timeout,
    )


def _consumers(
    rows: Iterable[Row[Any]], nodes: tuple[NodeStatus, ...], locks: _Locks, lag_limit: int
) -> Iterable[ConsumerStatus]:
    for name, partitions in groupby(rows, lambda row: row.consumer_name):
        live_nodes = sum(name in node.consumers for node in nodes if not node.is_silent)
        parts = tuple(_partition(row, locks.get((name, row.partition)), lag_limit) for row in partitions)
        yield ConsumerStatus(name, live_nodes, parts)


def _partition(row: Row[Any], lock: Row[Any] | None, lag_limit: int) -> PartitionStatus:
    is_failing = row.failed_position is not None or row.parked_at is not None
    return PartitionStatus(
        partition=row.partition,
        worker_id=row.worker_id,
        position=row.position,
        lag_events=min(row.lag_events, lag_limit + 1),
        is_lag_exact=row.lag_events <= lag_limit,
        lag_seconds=row.lag_seconds,
        failing=_failing(row) if is_failing else None,
        locked_by=None if lock is None else holder_of(lock),
        locked_seconds=0.0 if lock is None else _locked_seconds(lock.age, lock.unmoved, row.lag_seconds),
    )


def _failing(row: Row[Any]) -> FailingEvent:
    return FailingEvent(
        position=row.failed_position,
        event_id=row.event_id,
        event_type=row.event_type,
        error=row.error,
        attempts=row.attempts,
        failed_at=row.failed_at and row.failed_at.astimezone(UTC),
        retry_at=row.retry_at and row.retry_at.astimezone(UTC),
        parked_at=row.parked_at and row.parked_at.astimezone(UTC),
    )


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID():
            return str(value)
        case _:
            return value
