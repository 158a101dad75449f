"""Reading the status of a log's workers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import Connection, Row

from pupsourcing_sa._checks import MAX_BIGINT, check_int, check_seconds, check_type
from pupsourcing_sa.postgres.connections import SyncSession, async_session_of, connection_of
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.postgres.lock_holders import holder_of
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.status._statements import StatusStatements
from pupsourcing_sa.status.durations import held_back_seconds, locked_seconds
from pupsourcing_sa.status.model import ConsumerStatus, FailingEvent, NodeStatus, PartitionStatus, Status, read_batches
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.tables import WorkerTables

if TYPE_CHECKING:
    from pupsourcing_sa.postgres.connections import AsyncSessionArgument

__all__ = ["HEARTBEAT_TIMEOUT", "LAG_LIMIT", "read_status", "read_status_async"]

#: Rows of `StatusStatements.locked` by name of the consumer and partition.
_Locks: TypeAlias = dict[tuple[str, int], Row[Any]]

#: Default of ``heartbeat_timeout``, here and in `WorkerConfig`: a node without a heartbeat for longer is presumed dead.
HEARTBEAT_TIMEOUT: Final = 8.0
#: Default of ``lag_limit``. Counting this many entries of an index takes about ten milliseconds.
LAG_LIMIT: Final = 100_000


def read_status(
    session: SyncSession,
    store: EventStore | AsyncEventStore,
    tables: WorkerTables | None = None,
    *,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    lag_limit: int = LAG_LIMIT,
) -> Status:
    """Return the status of a log's workers.

    It executes seven statements, whatever the number of consumers, and an eighth if a checkpoint is locked.

    Consumers of other logs that share the workers' tables are left out. Nodes do not say which log they follow, so all
    of them are listed.

    **Lag** counts every event above the checkpoint, because only the consumer's code knows its scope. A consumer moves
    its checkpoint past events outside its scope every few seconds, or every 10,000 positions. An idle consumer
    therefore shows a lag of up to some seconds while other events arrive.

    **Seconds** of lag and of held-back events are measured from ``created_at``, which the writer can set, to the
    current time of the database's clock. An imported event is as old as its ``created_at``.

    Args:
        session: a ``Session`` or a ``Connection``. Use READ COMMITTED, so that each statement sees the current state.
        store: the log.
        tables: the workers' tables; by default those with the default names in the log's schema.
        heartbeat_timeout: seconds without a heartbeat after which a node is silent. Use the value of the workers'
            `WorkerConfig`.
        lag_limit: upper limit for counting events. A partition with more shows ``lag_limit + 1`` events, as inexact.

    Raises:
        TablesMissingError: the migrations have not been run.
        StablePositionError: the session is on a standby, or its role may not read the log's sequence.
        TypeError, ValueError: an argument is invalid.

    >>> with Session(engine) as session:  # doctest: +SKIP
    ...     behind = [consumer.name for consumer in read_status(session, store).consumers if consumer.lag_seconds > 60]
    """
    if hasattr(session, "run_sync"):
        raise TypeError(
            f"session must be a Session or a Connection, not {type(session).__name__}; use read_status_async"
        )
    check_type("store", store, (EventStore, AsyncEventStore), "an EventStore")
    check_type("tables", tables, (WorkerTables, NoneType), "WorkerTables")
    heartbeat_timeout = check_seconds("heartbeat_timeout", heartbeat_timeout)
    lag_limit = check_int("lag_limit", lag_limit, minimum=1, maximum=MAX_BIGINT - 1)
    store = store.sync_store if isinstance(store, AsyncEventStore) else store
    tables = tables or WorkerTables(schema=store.tables.events.schema)
    statements = StatusStatements(store.tables, tables)
    log_name = LogName(store.tables, tables).read(session)
    positions, log_problem = store.reader.inspect(session)
    stable = positions.stable
    blocking = tuple(store.blocking_appends(session))
    connection = connection_of(session, tables.consumer_checkpoints)
    with translated(*tables.tables):
        node_rows = connection.execute(statements.nodes).all()
        parameters = {"max_counted": lag_limit + 1, "own_log": log_name}
        partition_rows = connection.execute(statements.partitions, parameters).all()
        # Read the log after the checkpoints, because both advance meanwhile. A checkpoint never exceeds the last
        # position issued when the checkpoint was read, and later statements see the same position or a higher one. Only
        # a restart or a restore of the log breaks this rule.
        log = connection.execute(statements.log, {"stable": stable}).one()
        locks = _read_locks(connection, statements)
    nodes = tuple(_node(row, heartbeat_timeout) for row in node_rows)
    return Status(
        taken_at=log.taken_at,
        last_position=log.last_position,
        # The sequence has not issued the positions of imported events.
        last_issued=max(log.last_position, log.last_issued or 0),
        stable_position=stable,
        log_problem=log_problem,
        held_back_seconds=held_back_seconds(blocking, log.waiting),
        blocking=blocking,
        nodes=nodes,
        consumers=tuple(_consumers(partition_rows, nodes, locks, lag_limit)),
    )


async def read_status_async(
    session: AsyncSessionArgument,
    store: EventStore | AsyncEventStore,
    tables: WorkerTables | None = None,
    *,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    lag_limit: int = LAG_LIMIT,
) -> Status:
    """Return the status as `read_status` does, for an ``AsyncSession`` or an ``AsyncConnection``."""
    session = async_session_of(session, "use read_status for a Session or a Connection")
    return await session.run_sync(read_status, store, tables, heartbeat_timeout=heartbeat_timeout, lag_limit=lag_limit)


def _read_locks(connection: Connection, statements: StatusStatements) -> _Locks:
    """Return the checkpoint locks that are not held by the assigned node.

    PostgreSQL reads a lock and the holder's name at different instants. A batch of the assigned node that starts or
    ends between the two is seen without its name. Therefore read twice and keep the transactions found both times:
    such a transaction existed in between, when its name was read at least once.
    """
    rows = connection.execute(statements.locked).all()
    if not rows:
        return {}
    seen = {_lock_key(row) for row in rows}
    rows_again = connection.execute(statements.locked)
    return {(row.consumer_name, row.partition): row for row in rows_again if _lock_key(row) in seen}


def _lock_key(row: Row[Any]) -> tuple[Any, ...]:
    return row.consumer_name, row.partition, row.transaction


def _node(row: Row[Any], heartbeat_timeout: float) -> NodeStatus:
    return NodeStatus(
        worker_id=row.worker_id,
        hostname=row.hostname,
        pid=row.pid,
        consumers=tuple(sorted(row.consumers)),
        started_at=row.started_at,
        heartbeat_age=row.heartbeat_age,
        is_silent=row.heartbeat_age > heartbeat_timeout,
        batches=tuple(read_batches(json.loads(row.batches or "[]"))),
    )


def _consumers(
    rows: Iterable[Row[Any]], nodes: tuple[NodeStatus, ...], locks: _Locks, lag_limit: int
) -> Iterable[ConsumerStatus]:
    for name, partition_rows in groupby(rows, lambda row: row.consumer_name):
        live_nodes = sum(name in node.consumers for node in nodes if not node.is_silent)
        found = list(partition_rows)
        partitions = tuple(_partition(row, locks.get((name, row.partition)), lag_limit) for row in found)
        is_stopped = not live_nodes and not any(row.is_assigned for row in found)
        yield ConsumerStatus(name, live_nodes, partitions, is_stopped)


def _partition(row: Row[Any], lock: Row[Any] | None, lag_limit: int) -> PartitionStatus:
    is_failing = row.failed_position is not None or row.parked_at is not None
    return PartitionStatus(
        partition=row.partition,
        worker_id=row.worker_id,
        position=row.position,
        lag_events=min(row.lag_events, lag_limit + 1),
        is_lag_exact=row.lag_events <= lag_limit,
        lag_seconds=row.lag_seconds,
        failing=_failing_event(row) if is_failing else None,
        locked_by=None if lock is None else holder_of(lock),
        locked_seconds=0.0 if lock is None else locked_seconds(lock.age, lock.unmoved, row.lag_seconds),
        deaths=row.deaths,
    )


def _failing_event(row: Row[Any]) -> FailingEvent:
    return FailingEvent(
        position=row.failed_position,
        event_id=row.event_id,
        event_type=row.event_type,
        error=row.error,
        attempts=row.attempts,
        failed_at=row.failed_at,
        retry_at=row.retry_at,
        parked_at=row.parked_at,
    )
