"""The table of assignments of partitions to nodes: the statements, and the methods that execute them.

An assignment means that the partition should be running. Its node is NULL while no node can run it, as after a crash.
Partitions that were stopped in an orderly way have no assignment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    exists,
    func,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from pupsourcing_sa.errors import LogMismatchError, PartitionsError
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.worker.partition import Partition, PartitionState

__all__ = ["Assignment", "Assignments"]


class Assignment(NamedTuple):
    """The assignment of a partition.

    Attributes:
        worker_id: node that runs the partition; ``None`` while no node does.
        log: name of the log that the consumer follows; ``None`` if the row does not say so.
    """

    worker_id: UUID | None
    log: str | None


class Assignments:
    """The assignments of a worker group. Every method works in the caller's transaction.

    Args:
        tables: the group's tables.
    """

    def __init__(self, tables: WorkerTables) -> None:
        assignments, checkpoints = tables.consumer_assignments, tables.consumer_checkpoints
        self._assignments, self._checkpoints = assignments, checkpoints
        a, c = assignments.c, checkpoints.c
        log, partitions = bindparam("own_log", type_=Text()), bindparam("own_partitions", type_=Integer())
        names = bindparam("names", type_=ARRAY(Text))
        self._all = select(a.consumer_name, a.partition, a.worker_id, a.log)
        # Look in both tables: an operator may have deleted rows of one of them.
        is_unmarked = or_(c.log.is_(None), c.partitions.is_(None))
        rows = union_all(
            select(
                c.consumer_name,
                c.partition,
                c.partitions,
                c.log,
                is_unmarked.label("is_unmarked"),
                func.coalesce(c.start_position, 0).label("start_position"),
            ),
            select(
                a.consumer_name,
                a.partition,
                cast(null(), Integer),
                a.log,
                a.log.is_(None),
                cast(null(), BigInteger),
            ),
        ).subquery()
        self._existing = (
            select(
                rows.c.consumer_name,
                func.greatest(func.max(rows.c.partition) + 1, func.max(rows.c.partitions)),
                func.max(rows.c.log).filter(rows.c.log != log),
                func.bool_or(rows.c.is_unmarked),
                func.max(rows.c.start_position),
            )
            .where(rows.c.consumer_name == func.any(names))
            .group_by(rows.c.consumer_name)
            .order_by(rows.c.consumer_name)
        )
        self._mark: tuple[Update, Update] = (
            checkpoints.update()
            .where(c.consumer_name == bindparam("name"), is_unmarked)
            .values(log=log, partitions=partitions),
            assignments.update().where(a.consumer_name == bindparam("name"), a.log.is_(None)).values(log=log),
        )
        is_same = and_(c.consumer_name == a.consumer_name, c.partition == a.partition)
        self._runnable = (
            select(
                a.consumer_name,
                a.partition,
                func.coalesce(c.last_position, 0),
                c.retry_at.is_not(None),
                c.partitions,
            )
            .select_from(assignments.outerjoin(checkpoints, is_same))
            .where(a.worker_id == bindparam("node"), or_(a.log.is_(None), a.log == log), c.parked_at.is_(None))
        )
        self._assign = (
            assignments.update()
            .where(a.consumer_name == bindparam("name"), a.partition == bindparam("number"))
            .values(worker_id=bindparam("node"), updated_at=func.now())
        )
        is_capable = a.consumer_name == func.any(tables.worker_nodes.c.consumers)
        self._retire = assignments.delete().where(
            a.consumer_name == func.any(names), or_(a.log.is_(None), a.log == log), ~exists().where(is_capable)
        )

    def declare(
        self,
        connection: Connection,
        partitions: Mapping[str, int],
        log: str,
        *,
        starts: Mapping[str, int] = MappingProxyType({}),
        is_assigned: bool = True,
    ) -> dict[str, int]:
        """Ensure that every partition has a checkpoint and an assignment, marked with the log.

        Only the leader may call this. Otherwise two nodes with different numbers could both insert their rows.

        Args:
            connection: in the leader's transaction.
            partitions: number of partitions of each consumer.
            log: name of the log that the consumers follow.
            starts: position after which each reaction begins if it has no checkpoint yet.
            is_assigned: False to leave the assignments alone.

        Returns:
            The position after which each reaction began.

        Raises:
            LogMismatchError: a consumer has rows for another log.
            PartitionsError: a consumer has rows for another number of partitions.
        """
        unmarked, starts = [], dict(starts)
        parameters = {"names": list(partitions), "own_log": log}
        for name, number, other_log, is_unmarked, start in connection.execute(self._existing, parameters):
            if other_log is not None:
                raise LogMismatchError(name, log, other_log)
            if number != partitions[name]:
                raise PartitionsError(name, partitions[name], number)
            if is_unmarked:
                unmarked.append(name)
            if start is not None and name in starts:
                # All partitions begin at the same position, even if an operator deletes the row of one.
                starts[name] = start
        for name in unmarked:
            marks = {"own_log": log, "own_partitions": partitions[name], "name": name}
            for statement in self._mark:
                connection.execute(statement, marks)
        rows = [
            {
                "consumer_name": name,
                "partition": number,
                "log": log,
                "partitions": count,
                "last_position": starts.get(name, 0),
                "start_position": starts.get(name),
            }
            for name, count in sorted(partitions.items())
            for number in range(count)
        ]
        self._insert_missing(connection, self._checkpoints, rows)
        if is_assigned:
            columns = self._assignments.c.keys()
            rows = [{column: value for column, value in row.items() if column in columns} for row in rows]
            self._insert_missing(connection, self._assignments, rows)
        return starts

    @staticmethod
    def _insert_missing(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
        # ON CONFLICT alone would wait for every transaction that has moved a checkpoint and has not committed.
        present = {
            (name, number) for name, number in connection.execute(select(table.c.consumer_name, table.c.partition))
        }
        missing = [row for row in rows if (row["consumer_name"], row["partition"]) not in present]
        if missing:
            connection.execute(insert(table).on_conflict_do_nothing(), missing)

    def retire(self, connection: Connection, consumers: Collection[str], log: str) -> None:
        """Delete the assignments of consumers that no node has, as the leader. They are not supposed to run.

        Args:
            connection: in the leader's transaction.
            consumers: the consumers of a node or a drain that stops in an orderly way.
            log: name of the log that the consumers follow.
        """
        connection.execute(self._retire, {"names": list(consumers), "own_log": log})

    def all(self, connection: Connection) -> dict[Partition, Assignment]:
        """Return the assignment of each partition."""
        rows = connection.execute(self._all)
        return {Partition(name, number): Assignment(*assignment) for name, number, *assignment in rows}

    def assign(self, connection: Connection, changes: Mapping[Partition, UUID | None]) -> None:
        """Assign these partitions to other nodes."""
        rows = [
            {"name": partition.consumer, "number": partition.number, "node": changes[partition]}
            for partition in sorted(changes)
        ]
        if rows:
            connection.execute(self._assign, rows)

    def runnable(
        self, connection: Connection, worker_id: UUID, partitions: Mapping[str, int], log: str
    ) -> dict[Partition, PartitionState]:
        """Return the state of each partition of the node, except parked ones.

        Partitions of another log, or of another number of partitions, are left out: an operator may have replaced the
        consumer. A deleted checkpoint counts as position 0, at which it will be created again.

        Args:
            connection: in the node's transaction.
            worker_id: the node.
            partitions: number of partitions of each of its consumers.
            log: name of its log.
        """
        rows = connection.execute(self._runnable, {"node": worker_id, "own_log": log})
        return {
            Partition(name, number): PartitionState(position, is_waiting)
            for name, number, position, is_waiting, count in rows
            if count in (None, partitions.get(name))
        }
