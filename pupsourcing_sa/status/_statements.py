"""The statements that read the status of nodes and consumers. Ages are measured by the database's clock."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    select,
    true,
)

from pupsourcing_sa.postgres.checkpoint_locks import checkpoint_locks, is_of_node
from pupsourcing_sa.postgres.expressions import SECONDS, age, constant, moment, opaque_parameter, parameter, sequence_of
from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = ["StatusStatements"]

_ABOVE_ALL: Final = constant(2**63 - 1)


class StatusStatements:
    """The statements for one log and its workers.

    Args:
        events: the log's tables.
        tables: the workers' tables.
    """

    def __init__(self, events: EventTables, tables: WorkerTables) -> None:
        self._events = events.events
        self._tables = tables

    @cached_property
    def nodes(self) -> Select[Any]:
        """All nodes, oldest first. PostgreSQL scans the table, which has one row per process."""
        c = self._tables.worker_nodes.c
        return select(
            c.worker_id,
            c.hostname,
            c.pid,
            c.consumers,
            moment(c.created_at).label("started_at"),
            age(c.heartbeat_at).label("heartbeat_age"),
            # As text, because an engine may have a JSON deserializer of its own.
            func.jsonb_extract_path_text(c.running, constant("batches"), type_=Text).label("batches"),
        ).order_by(c.created_at, c.worker_id)

    @cached_property
    def log(self) -> Select[Any]:
        """The current time, the log's last positions, and the age of the first event above ``stable``.

        ``last_position`` is the last position in the log. ``last_issued`` is the last one that the sequence has issued,
        or NULL if it has issued none since it was created or restarted. Both lookups in the log use its primary key.

        The statement also clears this transaction's snapshot of backend activity, so that `locked` reads a new one.
        """
        position = self._events.c.global_position
        waiting = self._age_of_first(parameter("stable", BigInteger()))
        return select(
            moment(func.clock_timestamp()).label("taken_at"),
            func.coalesce(select(func.max(position)).scalar_subquery(), constant(0)).label("last_position"),
            func.pg_sequence_last_value(sequence_of(self._events), type_=BigInteger).label("last_issued"),
            waiting.label("waiting"),
            func.pg_stat_clear_snapshot().label("cleared"),
        )

    @cached_property
    def locked(self) -> Select[Any]:
        """Locked checkpoints with the lock holder, except those locked by a batch of the assigned node.

        A statement that returns rows also clears this transaction's snapshot of backend activity, so that the next one
        reads a new one.
        """
        locks = checkpoint_locks(self._tables)
        c, a = locks.selected_columns, self._tables.consumer_assignments.c
        is_owner = exists().where(
            a.consumer_name == c.consumer_name, a.partition == c.partition, is_of_node(a.worker_id)
        )
        return locks.add_columns(func.pg_stat_clear_snapshot().label("cleared")).where(~is_owner)

    @cached_property
    def partitions(self) -> Select[Any]:
        """Every partition of ``own_log`` with its node, checkpoint, lag and failure, by consumer and partition.

        A partition without a checkpoint row is at the start of the log. One without an assignment row has no node.

        PostgreSQL reads the log by its primary key and counts each event once, even if it is above several checkpoints.
        The parameter ``max_counted`` limits the count between two neighboring checkpoints. A lag up to this limit is
        exact; a larger one is a lower bound.
        """
        partition, lag = self._partition, self._lag
        c = self._events.c
        # LIMIT makes this one index lookup per partition. A join could be planned as a scan of the log.
        failed = (
            select(c.event_id, c.event_type)
            .where(c.global_position == partition.c.failed_position)
            .limit(constant(1))
            .lateral("failed")
        )
        return (
            select(partition, lag.c.lag_events, lag.c.lag_seconds, failed.c.event_id, failed.c.event_type)
            .select_from(partition.join(lag, lag.c.position == partition.c.position).join(failed, true(), isouter=True))
            .order_by(partition.c.consumer_name, partition.c.partition)
        )

    @cached_property
    def _partition(self) -> CTE:
        assignments, checkpoints = self._tables.consumer_assignments, self._tables.consumer_checkpoints
        a, c = assignments.c, checkpoints.c
        is_same = and_(a.consumer_name == c.consumer_name, a.partition == c.partition)
        own_log = parameter("own_log", Text())
        return (
            select(
                func.coalesce(a.consumer_name, c.consumer_name).label("consumer_name"),
                func.coalesce(a.partition, c.partition).label("partition"),
                a.partition.is_not(None).label("is_assigned"),
                a.worker_id,
                func.coalesce(c.last_position, constant(0)).label("position"),
                func.coalesce(c.attempts, constant(0)).label("attempts"),
                func.coalesce(c.deaths, constant(0)).label("deaths"),
                c.failed_position,
                c.error,
                moment(c.failed_at).label("failed_at"),
                moment(c.retry_at).label("retry_at"),
                moment(c.parked_at).label("parked_at"),
            )
            .select_from(assignments.join(checkpoints, is_same, full=True))
            .where(func.coalesce(a.log, c.log, own_log) == own_log)
            .cte("pupsourcing_partitions")
        )

    @cached_property
    def _lag(self) -> CTE:
        """For each distinct checkpoint: the number of events above it, and the age of the first one."""
        position = self._partition.c.position
        following = func.lead(position, constant(1), _ABOVE_ALL).over(order_by=position)
        reached = select(position, following.label("following")).group_by(position).cte("pupsourcing_reached")
        c = self._events.c
        # ORDER BY and the opaque limit ensure that PostgreSQL stops reading at the limit. Otherwise it would plan a
        # bitmap scan until the table is analyzed, which reads the index up to the end of the log.
        between = (
            select(constant(1).label("one"))
            .where(c.global_position > reached.c.position, c.global_position <= reached.c.following)
            .order_by(c.global_position)
            .limit(opaque_parameter("max_counted", BigInteger()))
            .correlate(reached)
            .subquery("between")
        )
        counted = select(func.count()).select_from(between).correlate(reached).scalar_subquery()
        return select(
            reached.c.position,
            cast(func.sum(counted).over(order_by=reached.c.position.desc()), BigInteger).label("lag_events"),
            self._age_of_first(reached.c.position, correlate=reached).label("lag_seconds"),
        ).cte("pupsourcing_lag")

    def _age_of_first(self, after: ColumnElement[Any], *, correlate: CTE | None = None) -> ColumnElement[Any]:
        c = self._events.c
        # Another program may have written an infinite time. Before PostgreSQL 17 it cannot be subtracted.
        finite = case((func.isfinite(c.created_at), age(c.created_at)), else_=constant(0))
        first = select(finite).where(c.global_position > after).order_by(c.global_position)
        first = first.limit(constant(1)).correlate(correlate)
        return func.coalesce(first.scalar_subquery(), constant(0), type_=SECONDS)
