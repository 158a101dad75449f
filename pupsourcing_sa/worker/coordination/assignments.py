"""The table of assignments: which node runs which partition. Statements, and the few lines that execute them."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import Connection, Text, bindparam, func, select, union_all
from sqlalchemy.dialects.postgresql import ARRAY, insert

from pupsourcing_sa.errors import PartitionsError
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.worker.partition import Partition, PartitionState

__all__ = ["Assignments"]


class Assignments:
    """The assignments of a worker group. Every method works in the transaction it is given.

    Args:
        tables: the group's tables.
    """

    def __init__(self, tables: WorkerTables) -> None:
        table = self._table = tables.consumer_assignments
        checkpoints = self._checkpoints = tables.consumer_checkpoints
        self._all = select(table.c.consumer_name, table.c.partition, table.c.worker_id)
        is_same = (checkpoints.c.consumer_name == table.c.consumer_name) & (
            checkpoints.c.partition == table.c.partition
        )
        # Of both, because a row may have been deleted for its partition to begin anew.
        rows = union_all(*(select(each.c.consumer_name, each.c.partition) for each in (table, checkpoints))).subquery()
        self._count = (
            select(rows.c.consumer_name, func.max(rows.c.partition) + 1)
            .where(rows.c.consumer_name == func.any(bindparam("names", type_=ARRAY(Text))))
            .group_by(rows.c.consumer_name)
        )
        self._runnable = (
            select(
                table.c.consumer_name,
                table.c.partition,
                func.coalesce(checkpoints.c.last_position, 0),
                checkpoints.c.retry_at.is_not(None),
            )
            .select_from(table.outerjoin(checkpoints, is_same))
            .where(table.c.worker_id == bindparam("node"), checkpoints.c.parked_at.is_(None))
        )
        self._assign = (
            table.update()
            .where(table.c.consumer_name == bindparam("name"), table.c.partition == bindparam("number"))
            .values(worker_id=bindparam("node"), updated_at=func.now())
        )

    def declare(self, connection: Connection, partitions: Mapping[str, int]) -> None:
        """See to it that there is a row for every partition here and among the checkpoints.

        To be called by the leader, so that two nodes that differ do not both find what they want.

        Args:
            connection: in the leader's transaction.
            partitions: how many each consumer has.

        Raises:
            PartitionsError: a consumer has rows already, for another number of partitions.
        """
        for name, existing in connection.execute(self._count, {"names": list(partitions)}):
            if existing != partitions[name]:
                raise PartitionsError(name, partitions[name], existing)
        rows = [
            {"consumer_name": name, "partition": number}
            for name, count in sorted(partitions.items())
            for number in range(count)
        ]
        for table in (self._checkpoints, self._table):
            # ON CONFLICT alone would wait for whoever has moved a checkpoint and not committed that, dead or alive.
            there = {
                (name, number) for name, number in connection.execute(select(table.c.consumer_name, table.c.partition))
            }
            missing = [row for row in rows if (row["consumer_name"], row["partition"]) not in there]
            if missing:
                connection.execute(insert(table).on_conflict_do_nothing(), missing)

    def all(self, connection: Connection) -> dict[Partition, UUID | None]:
        """The node of every partition."""
        return {Partition(name, number): node for name, number, node in connection.execute(self._all)}

    def assign(self, connection: Connection, changes: Mapping[Partition, UUID | None]) -> None:
        """Write down other nodes for some partitions."""
        rows = [
            {"name": partition.consumer, "number": partition.number, "node": changes[partition]}
            for partition in sorted(changes)
        ]
        if rows:
            connection.execute(self._assign, rows)

    def runnable(self, connection: Connection, worker_id: UUID) -> dict[Partition, PartitionState]:
        """The partitions that a node has and that are not parked, and how they stand.

        A checkpoint that was deleted is at 0, as it will be when it has been created again.
        """
        rows = connection.execute(self._runnable, {"node": worker_id})
        return {Partition(name, number): PartitionState(*standing) for name, number, *standing in rows}
