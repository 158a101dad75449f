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
    """The worker's tables ``worker_nodes``, ``consumer_assignments`` and ``consumer_checkpoints``.

    A second call with the same names returns the same tables.

    Args:
        metadata: the ``MetaData`` for the tables, usually ``Base.metadata``; by default a new one.
        schema: schema of all three tables; by default the metadata's.
        worker_nodes: name of the table with one row per running worker process.
        consumer_assignments: name of the table that assigns each partition of a consumer to a node.
        consumer_checkpoints: name of the table with the position that each partition of a consumer has reached.

    Raises:
        TableNameError: the metadata already has a table of this name that belongs to the application. No table is added
            then.
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
            Column("worker_id", Uuid, doc="NULL while no node runs the partition"),
            timestamp("updated_at"),
            named.primary_key("consumer_name", "partition"),
            named.foreign_key("worker_id", self.worker_nodes.c.worker_id, ondelete="SET NULL"),
        )


def _worker_nodes(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("worker_id", Uuid, nullable=False),
        Column("hostname", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("consumers", ARRAY(Text), nullable=False, doc="names of the consumers in the node's code"),
        timestamp("heartbeat_at"),
        timestamp("created_at"),
        named.primary_key("worker_id"),
    )


def _checkpoints(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("consumer_name", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        Column("last_position", BigInteger, nullable=False, server_default=text("0"), doc="the checkpoint"),
        timestamp("updated_at"),
        # The failing event, if there is one.
        Column("failed_position", BigInteger, doc="position of the failing event"),
        Column("attempts", Integer, nullable=False, server_default=text("0"), doc="number of failed attempts"),
        Column("error", Text, doc="traceback of the last attempt"),
        Column("failed_at", DateTime(timezone=True), doc="time of the last attempt"),
        Column("retry_at", DateTime(timezone=True), doc="time of the next attempt; NULL while parked"),
        Column("parked_at", DateTime(timezone=True), doc="time of parking; set it to NULL to retry"),
        named.primary_key("consumer_name", "partition"),
    )
