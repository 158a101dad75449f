"""The statements of operations. They find a consumer's rows by the primary keys."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Executable,
    Select,
    Table,
    Text,
    bindparam,
    func,
    literal_column,
    select,
    union,
)
from sqlalchemy.dialects.postgresql import JSONB

from pupsourcing_sa.postgres.leadership import lead
from pupsourcing_sa.tables import WorkerTables

__all__ = ["OperationStatements"]


class OperationStatements:
    """The statements for one set of worker tables. The parameter ``name`` is the consumer.

    Args:
        tables: the workers' tables.
    """

    def __init__(self, tables: WorkerTables) -> None:
        nodes = tables.worker_nodes
        self._name = bindparam("name", type_=Text())
        self._tables = tables
        self.lead = lead(tables)
        self.isolation = select(func.current_setting("transaction_isolation"))
        self.lock_checkpoints = self._rows(tables.consumer_checkpoints).with_for_update()
        self.checkpoints = self._rows(tables.consumer_checkpoints)
        self.assignments = self._rows(tables.consumer_assignments)
        self._has_consumer = self._name == func.any(nodes.c.consumers)
        self.delete_nodes = nodes.delete().where(self._has_consumer)
        self.delete_assignments = self._delete(tables.consumer_assignments)
        self.delete_parked_aggregates = self._delete(tables.consumer_parked_aggregates)
        self.delete_checkpoints = self._delete(tables.consumer_checkpoints)
        self.consumers = union(
            select(tables.consumer_checkpoints.c.consumer_name), select(tables.consumer_assignments.c.consumer_name)
        )
        self.audit = (
            tables.consumer_operations.insert()
            .inline()
            .values(
                at=func.clock_timestamp(),
                actor=bindparam("given_actor"),
                consumer_name=self._name,
                operation=bindparam("given_operation"),
                detail=bindparam("given_detail", type_=JSONB()),
                log=bindparam("given_log", type_=Text()),
            )
        )

    def live_nodes(self, heartbeat_timeout: float) -> Select[Any]:
        """Select the nodes that have the consumer and have sent a heartbeat in time."""
        c = self._tables.worker_nodes.c
        is_live = c.heartbeat_at >= func.clock_timestamp() - timedelta(seconds=heartbeat_timeout)
        return select(c.worker_id, c.hostname, c.pid).where(self._has_consumer, is_live).order_by(c.worker_id)

    def set_log(self) -> list[Executable]:
        """Return the updates that write ``given_log`` into every row of the consumer."""
        tables = (
            self._tables.consumer_checkpoints,
            self._tables.consumer_assignments,
            self._tables.consumer_parked_aggregates,
        )
        log = bindparam("given_log", type_=Text())
        return [table.update().where(table.c.consumer_name == self._name).values(log=log) for table in tables]

    def _rows(self, table: Table) -> Select[Any]:
        """Select the consumer's rows as JSON, whose timestamps depend on no setting. Errors may quote personal data."""
        columns = [column for column in table.c if column.name != "error"]
        items: list[ColumnElement[Any]] = []
        for column in columns:
            items += (literal_column(f"'{column.name}'"), column)
        row = func.jsonb_build_object(*items, type_=JSONB)
        return select(row).where(table.c.consumer_name == self._name).order_by(table.c.partition)

    def _delete(self, table: Table) -> Delete:
        return table.delete().where(table.c.consumer_name == self._name)
