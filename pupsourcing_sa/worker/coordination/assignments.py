"""The table of assignments of partitions to nodes: the statements, and the methods that execute them."""

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
    """The assignments of a worker group. Every method works in the caller's transaction.

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
        # Look in both tables: an operator may have deleted a checkpoint, so that its partition starts over.
        sources = (select(source.c.consumer_name, source.c.partition) for source in (table, checkpoints))
        rows = union_all(*sources).subquery()
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
        """Ensure that every partition has an assignment and a checkpoint.

        Only the leader may call this. Otherwise two nodes with different numbers could both insert their rows.

        Args:
            connection: in the leader's transaction.
            partitions: number of partitions of each consumer.

        Raises:
            PartitionsError: a consumer has rows for another number of partitions.
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
            # ON CONFLICT alone would wait for every transaction that has moved a checkpoint and has not committed.
            present = {
                (name, number) for name, number in connection.execute(select(table.c.consumer_name, table.c.partition))
            }
            missing = [row for row in rows if (row["consumer_name"], row["partition"]) not in present]
            if missing:
                connection.execute(insert(table).on_conflict_do_nothing(), missing)

    def all(self, connection: Connection) -> dict[Partition, UUID | None]:
        """Return the node of each partition; ``None`` for a partition that no node runs."""
        return {Partition(name, number): node for name, number, node in connection.execute(self._all)}

    def assign(self, connection: Connection, changes: Mapping[Partition, UUID | None]) -> None:
        """Assign these partitions to other nodes."""
        rows = [
            {"name": partition.consumer, "number": partition.number, "node": changes[partition]}
            for partition in sorted(changes)
        ]
        if rows:
            connection.execute(self._assign, rows)

    def runnable(self, connection: Connection, worker_id: UUID) -> dict[Partition, PartitionState]:
        """Return the state of each partition of the node, except parked ones.

        A deleted checkpoint counts as position 0, at which it will be created again.
        """
        rows = connection.execute(self._runnable, {"node": worker_id})
        return {Partition(name, number): PartitionState(*state) for name, number, *state in rows}
