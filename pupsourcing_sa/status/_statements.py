"""The statements that ask how the worker's nodes and consumers are. Ages are told by the database's clock."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    DateTime,
    Double,
    Select,
    and_,
    cast,
    exists,
    extract,
    func,
    select,
    true,
)

from pupsourcing_sa.postgres.checkpoint_locks import holders, is_named_like
from pupsourcing_sa.postgres.expressions import constant, parameter, sequence_of
from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = ["StatusStatements"]

_NOW: Final = func.clock_timestamp(type_=DateTime(timezone=True))
_ABOVE_ALL: Final = constant(2**63 - 1)


def _age(moment: ColumnElement[Any]) -> ColumnElement[float]:
    """Seconds since then; 0 for a moment that a writer's clock puts into the future."""
    return func.greatest(cast(extract("epoch", _NOW - moment), Double), constant(0), type_=Double)


class StatusStatements:
    """The statements about one log and one group of workers.

    Args:
        events: the log.
        tables: what its workers keep.
    """

    def __init__(self, events: EventTables, tables: WorkerTables) -> None:
        self._events = events.events
        self._tables = tables

    @cached_property
    def nodes(self) -> Select[Any]:
        """Every node, the oldest first. The table has a row for each process, and is read as it is."""
        c = self._tables.worker_nodes.c
        return select(
            c.worker_id, c.hostname, c.pid, c.consumers, c.created_at, _age(c.heartbeat_at).label("heartbeat_age")
        ).order_by(c.created_at, c.worker_id)

    @cached_property
    def log(self) -> Select[Any]:
        """The moment, the log's end, and the age of the first event above ``stable``, by the primary key.

        The end is the last position in the log and the last one issued, which is NULL when there is none since the
        sequence was created or restarted.

        What this transaction has seen of other backends is forgotten, so that `locked` sees them as they are after it.
        """
        position = self._events.c.global_position
        waiting = self._age_of_first(parameter("stable", BigInteger()))
        return select(
            _NOW.label("taken_at"),
            func.coalesce(select(func.max(position)).scalar_subquery(), constant(0)).label("head"),
            func.pg_sequence_last_value(sequence_of(self._events), type_=BigInteger).label("issued"),
            waiting.label("waiting"),
            func.pg_stat_clear_snapshot().label("cleared"),
        )

    @cached_property
    def locked(self) -> Select[Any]:
        """Checkpoints that somebody else than the node that they are assigned to has locked, with the holder.

        Also for how long the checkpoint has not moved: it has not been locked for longer. Each row that is given ends
        what this transaction has seen of other backends, so that executed again it sees them anew.
        """
        held = holders(self._tables)
        c, a = held.selected_columns, self._tables.consumer_assignments.c
        is_owner = exists().where(
            a.consumer_name == c.consumer_name, a.partition == c.partition, is_named_like(a.worker_id)
        )
        unmoved, cleared = _age(c.updated_at).label("unmoved"), func.pg_stat_clear_snapshot().label("cleared")
        return held.add_columns(unmoved, cleared).where(~is_owner)

    @cached_property
    def partitions(self) -> Select[Any]:
        """Every partition with its node, checkpoint, lag and failure, by consumer and partition.

        One that has an assignment and no checkpoint is at the beginning; one that has a checkpoint and no assignment
        has no node. The log is looked at by its primary key. Each event is counted once, whatever the number of
        partitions that have not come to it; the parameter ``most`` bounds how many are counted between two neighbouring
        checkpoints, so that the lag is right up to there, and beyond it some larger number.
        """
        partition, lag = self._partition, self._lag
        c = self._events.c
        # Not a join with the log: LIMIT makes it one look into the index for each partition, never a scan.
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
        return (
            select(
                func.coalesce(a.consumer_name, c.consumer_name).label("consumer_name"),
                func.coalesce(a.partition, c.partition).label("partition"),
                a.worker_id,
                func.coalesce(c.last_position, constant(0)).label("position"),
                func.coalesce(c.attempts, constant(0)).label("attempts"),
                c.failed_position,
                c.error,
                c.failed_at,
                c.retry_at,
                c.parked_at,
            )
            .select_from(assignments.join(checkpoints, is_same, full=True))
            .cte("pupsourcing_partitions")
        )

    @cached_property
    def _lag(self) -> CTE:
        """For each position that a checkpoint has: the events above it, and the age of the first of them."""
        position = self._partition.c.position
        following = func.lead(position, constant(1), _ABOVE_ALL).over(order_by=position)
        reached = select(position, following.label("following")).group_by(position).cte("pupsourcing_reached")
        c = self._events.c
        # Unordered: the plan is a bitmap until the table has been analyzed, which would be read beyond the limit.
        between = (
            select(constant(1).label("one"))
            .where(c.global_position > reached.c.position, c.global_position <= reached.c.following)
            .limit(parameter("most", BigInteger()))
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
        first = select(_age(c.created_at)).where(c.global_position > after).order_by(c.global_position)
        return func.coalesce(first.limit(constant(1)).correlate(correlate).scalar_subquery(), constant(0), type_=Double)
