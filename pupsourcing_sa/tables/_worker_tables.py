"""The worker's tables."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, DateTime, Integer, MetaData, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.schema import SchemaItem

from pupsourcing_sa.tables.declared import DeclaredTables, timestamp
from pupsourcing_sa.tables.naming import Naming

__all__ = ["WorkerTables"]


class WorkerTables(DeclaredTables):
    """What the worker keeps: ``worker_nodes``, ``consumer_assignments`` and ``consumer_checkpoints``.

    Args:
        metadata: where the tables are put, usually ``Base.metadata``; a new one by default.
        schema: schema of all three; by default the metadata's.
        worker_nodes: name of the table with one row for each running worker process.
        consumer_assignments: name of the table that says which node runs which partition of which consumer.
        consumer_checkpoints: name of the table that says how far each partition of each consumer has come.

    Raises:
        TableNameError: the metadata has a table of that name which is not ours. None was added to it.

    Called again with the same names, it gives the same tables.
    """

    worker_nodes: Table
    consumer_assignments: Table
    consumer_checkpoints: Table

    def __init__(
        self,
        metadata: MetaData | None = None,
        *,
        schema: str | None = None,
        worker_nodes: str = "worker_nodes",
        consumer_assignments: str = "consumer_assignments",
        consumer_checkpoints: str = "consumer_checkpoints",
    ) -> None:
        super().__init__(metadata, schema)
        self._check(
            worker_nodes=worker_nodes,
            consumer_assignments=consumer_assignments,
            consumer_checkpoints=consumer_checkpoints,
        )
        self.worker_nodes = self._table("worker_nodes", worker_nodes, _worker_nodes)
        self.consumer_assignments = self._table("consumer_assignments", consumer_assignments, self._assignments)
        self.consumer_checkpoints = self._table("consumer_checkpoints", consumer_checkpoints, _checkpoints)

    def _assignments(self, named: Naming) -> Sequence[SchemaItem]:
        return (
            Column("consumer_name", Text, nullable=False),
            Column("partition", Integer, nullable=False),
            Column("worker_id", Uuid),
            timestamp("updated_at"),
            named.primary_key("consumer_name", "partition"),
            named.foreign_key("worker_id", self.worker_nodes.c.worker_id, ondelete="SET NULL"),
        )


def _worker_nodes(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("worker_id", Uuid, nullable=False),
        Column("hostname", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("consumers", ARRAY(Text), nullable=False),
        timestamp("heartbeat_at"),
        timestamp("created_at"),
        named.primary_key("worker_id"),
    )


def _checkpoints(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("consumer_name", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        Column("last_position", BigInteger, nullable=False, server_default=text("0")),
        timestamp("updated_at"),
        # While an event fails: which one, how often, with what, and when it is tried again (never, when parked).
        Column("failed_position", BigInteger),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("error", Text),
        Column("failed_at", DateTime(timezone=True)),
        Column("retry_at", DateTime(timezone=True)),
        Column("parked_at", DateTime(timezone=True)),
        named.primary_key("consumer_name", "partition"),
    )
