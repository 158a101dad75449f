"""A worker group whose nodes are played by the test, by a clock of their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from pupsourcing_sa import EventTables, WorkerTables, consumer
from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.coordination.membership import Membership

_T = TypeVar("_T")


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def span(self, name: str, data: dict[str, Any]) -> Any:
        raise ZeroDivisionError("hooks that fail are left alone")

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))


class Group:
    """A worker group, and the nodes that a test plays."""

    def __init__(self, engine: Engine, tables: WorkerTables, events: EventTables | None = None) -> None:
        self.engine = engine
        self.tables = tables
        self.clock = Clock()
        self.recorder = Recorder()
        self.events = events or EventTables()
        for metadata in (tables.metadata, self.events.metadata):
            metadata.create_all(engine)

    def node(
        self, config: WorkerConfig | None = None, /, *, reacts: bool = False, **partitions: int
    ) -> tuple[UUID, Membership]:
        subscriptions = [
            Subscription.of(consumer(name, partitions=count, reacts=reacts)(lambda session, event: None))
            for name, count in partitions.items()
        ]
        worker_id = uuid4()
        hooks = Hooks(self.recorder, worker=str(worker_id))
        log = LogName(self.events, self.tables)
        membership = Membership(self.tables, log, worker_id, subscriptions, config or WorkerConfig(), hooks, self.clock)
        return worker_id, membership

    def do(self, work: Callable[[Session], _T]) -> _T:
        with Session(self.engine) as session:
            return work(session)

    def assigned(self) -> dict[tuple[str, int], UUID | None]:
        table = self.tables.consumer_assignments
        with self.engine.connect() as connection:
            rows = connection.execute(select(table.c.consumer_name, table.c.partition, table.c.worker_id))
            return {(name, number): worker_id for name, number, worker_id in rows}

    def nodes(self) -> set[UUID]:
        with self.engine.connect() as connection:
            return set(connection.scalars(select(self.tables.worker_nodes.c.worker_id)))

    def age(self, worker_id: UUID, seconds: float) -> None:
        table = self.tables.worker_nodes
        with self.engine.begin() as connection:
            past = func.clock_timestamp() - timedelta(seconds=seconds)
            connection.execute(table.update().where(table.c.worker_id == worker_id).values(heartbeat_at=past))
