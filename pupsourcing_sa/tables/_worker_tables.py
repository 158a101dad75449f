"""The worker's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Identity, Integer, MetaData, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.schema import SchemaItem

from pupsourcing_sa.tables.declared import DeclaredTables, timestamp
from pupsourcing_sa.tables.naming import Naming

__all__ = ["WorkerTables"]


class WorkerTables(DeclaredTables):
    """The worker's tables: nodes, and the assignments, checkpoints, parked aggregates and operations of consumers.

    A second call with the same names returns the same tables.

    Args:
        metadata: the ``MetaData`` for the tables, usually ``Base.metadata``; by default a new one.
        schema: schema of all tables; by default the metadata's.
        worker_nodes: name of the table with one row per running worker process.
        consumer_assignments: name of the table that assigns each partition of a consumer to a node.
        consumer_checkpoints: name of the table with the position that each partition of a consumer has reached.
        consumer_parked_aggregates: name of the table with the aggregates that a consumer passes over.
        consumer_operations: name of the table that records what operators did to consumers.

    Raises:
        TableNameError: the metadata already has a table of this name that belongs to the application. No table is added
            then.
    """

    worker_nodes: Table
    consumer_assignments: Table
    consumer_checkpoints: Table
    consumer_parked_aggregates: Table
    consumer_operations: Table

    def __init__(
        self,
        metadata: MetaData | None = None,
        *,
        schema: str | None = None,
        worker_nodes: str = "worker_nodes",
        consumer_assignments: str = "consumer_assignments",
        consumer_checkpoints: str = "consumer_checkpoints",
        consumer_parked_aggregates: str = "consumer_parked_aggregates",
        consumer_operations: str = "consumer_operations",
    ) -> None:
        super().__init__(metadata, schema)
        self._check(
            worker_nodes=worker_nodes,
            consumer_assignments=consumer_assignments,
            consumer_checkpoints=consumer_checkpoints,
            consumer_parked_aggregates=consumer_parked_aggregates,
            consumer_operations=consumer_operations,
        )
        self.worker_nodes = self._table("worker_nodes", worker_nodes, _worker_nodes)
        self.consumer_assignments = self._table("consumer_assignments", consumer_assignments, self._assignments)
        self.consumer_checkpoints = self._table("consumer_checkpoints", consumer_checkpoints, _checkpoints)
        self.consumer_parked_aggregates = self._table(
            "consumer_parked_aggregates", consumer_parked_aggregates, _parked_aggregates
        )
        self.consumer_operations = self._table("consumer_operations", consumer_operations, _operations)

    def _assignments(self, named: Naming) -> Sequence[SchemaItem]:
        return (
            Column("consumer_name", Text, nullable=False),
            Column("partition", Integer, nullable=False),
            Column("worker_id", Uuid, doc="NULL while no node runs the partition"),
            timestamp("updated_at"),
            _log(),
            named.primary_key("consumer_name", "partition"),
            named.foreign_key("worker_id", self.worker_nodes.c.worker_id, ondelete="SET NULL"),
        )


def _log() -> Column[Any]:
    return Column("log", Text, doc="the log's name with its schema; NULL until a node or an operation knows it")


def _count(name: str, *, doc: str, default: int = 0) -> Column[Any]:
    return Column(name, Integer, nullable=False, server_default=text(str(default)), doc=doc)


def _worker_nodes(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("worker_id", Uuid, nullable=False),
        Column("hostname", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("consumers", ARRAY(Text), nullable=False, doc="names of the consumers in the node's code"),
        timestamp("heartbeat_at"),
        timestamp("created_at"),
        Column("running", JSONB, doc="the batches that the node was running at its last heartbeat"),
        _count("protocol", default=1, doc="version of the protocol that nodes of a group share"),
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
        _count("attempts", doc="number of failed attempts"),
        Column("error", Text, doc="traceback of the last attempt"),
        Column("failed_at", DateTime(timezone=True), doc="time of the last attempt"),
        Column("retry_at", DateTime(timezone=True), doc="time of the next attempt; NULL while parked"),
        Column("parked_at", DateTime(timezone=True), doc="time of parking; set it to NULL to retry"),
        _log(),
        Column("partitions", Integer, doc="the consumer's number of partitions; NULL until a node declares it"),
        Column("done", ARRAY(BigInteger), doc="positions that the partitions before a repartition had reached"),
        _count("parked_aggregates", doc="number of the partition's rows in consumer_parked_aggregates"),
        Column("paused_at", DateTime(timezone=True), doc="time at which an operator paused the consumer"),
        Column("paused_reason", Text, doc="reason for the pause"),
        Column("renamed_to", Text, doc="the consumer's new name; a row with one is not processed"),
        _count("deaths", doc="number of nodes that died in a batch since the checkpoint moved"),
        Column("claim", BigInteger, nullable=False, server_default=text("0"), doc="number of the last claim"),
        Column("claimed_by", Uuid, doc="node that holds the claim"),
        Column("claim_until", DateTime(timezone=True), doc="end of the claim, unless it is renewed"),
        Column("start_position", BigInteger, doc="position after which a consumer began that skips older events"),
        named.primary_key("consumer_name", "partition"),
    )


def _parked_aggregates(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("consumer_name", Text, nullable=False),
        Column("aggregate_type", Text, nullable=False),
        Column("aggregate_id", Text, nullable=False),
        Column("position", BigInteger, nullable=False, doc="position of the aggregate's first unprocessed event"),
        _count("attempts", doc="number of failed attempts"),
        Column("error", Text, doc="traceback of the last attempt"),
        timestamp("parked_at"),
        Column("retry_at", DateTime(timezone=True), doc="time of the next attempt; NULL waits for an operator"),
        _log(),
        named.primary_key("consumer_name", "aggregate_type", "aggregate_id"),
    )


def _operations(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("id", BigInteger, Identity(always=True), nullable=False),
        timestamp("at"),
        Column("actor", Text, nullable=False, doc="the operator"),
        Column("consumer_name", Text, nullable=False),
        Column("operation", Text, nullable=False),
        Column("detail", JSONB, nullable=False, doc="arguments, and the rows before and after"),
        _log(),
        named.primary_key("id"),
    )
