"""Partitions without a worker around them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pupsourcing_sa import EventStore, EventTables, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.context import PartitionContext

__all__ = ["assign", "context_of", "unbound_context"]


def context_of(
    consumes: Any, *, execution: Any, store: EventStore, tables: WorkerTables, **options: Any
) -> PartitionContext:
    """Return the context of the first partition of a consumer."""
    subscription = Subscription.of(consumes)
    defaults: dict[str, Any] = {"config": WorkerConfig(), "is_aborted": lambda: False}
    return PartitionContext(
        subscription=subscription,
        scope=subscription.scope,
        checkpoint=Checkpoint(tables, subscription.name, 0),
        store=store,
        execution=execution,
        **defaults | options,
    )


def unbound_context(execution: Any, **options: Any) -> PartitionContext:
    """Return a context for work that the execution only pretends to do."""

    @consumer("all")
    def handle(session: Session, event: PersistedEvent) -> None: ...

    return context_of(handle, execution=execution, store=EventStore(EventTables()), tables=WorkerTables(), **options)


def assign(engine: Engine, tables: WorkerTables, consumer_name: str, partition: int = 0) -> None:
    """Assign a partition to no node. Without an assignment, a missing checkpoint is not created."""
    table = tables.consumer_assignments
    with engine.begin() as connection:
        connection.execute(
            insert(table).values(consumer_name=consumer_name, partition=partition).on_conflict_do_nothing()
        )
