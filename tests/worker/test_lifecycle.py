"""Every service, started, stopped and cancelled at each of its awaits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker._drain import Drain
from pupsourcing_sa.worker._node import Node
from pupsourcing_sa.worker._run import Executions, Processors, Run
from pupsourcing_sa.worker.dispatch.dispatcher import Dispatcher
from pupsourcing_sa.worker.dispatch.listener import Listener
from pupsourcing_sa.worker.execution.factory import execution_for
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.partition import Partition
from pupsourcing_sa.worker.processing.checkpoint_statements import CheckpointStatements
from pupsourcing_sa.worker.processing.processor import Processor
from pupsourcing_sa.worker.stable_position import StablePosition
from tests.fix_lifecycle import disturbed_everywhere
from tests.fix_store import make_event, make_tables

#: Nothing happens a second time, so that an undisturbed run has the same awaits each time.
CONFIG = WorkerConfig(poll_interval=600, max_poll_interval=600, reconcile_interval=600, shutdown_timeout=600)


class TestContract:
    """Of a service that does nothing but wait."""

    class Waiting(Service):
        has_run = False

        async def _run(self) -> None:
            self.has_run = True
            await self.stopping.wait()

    def test_a_stop_before_the_start_counts(self):
        async def main() -> None:
            service = self.Waiting("waiting")
            service.stop()
            service.stop()
            await service.start()
            assert not service.has_run

        asyncio.run(main())

    def test_it_starts_once(self):
        async def main() -> None:
            service = self.Waiting("waiting")
            task = service.start()
            assert task.get_name() == "waiting"
            with pytest.raises(RuntimeError, match="create a new one"):
                service.start()
            service.stop()
            await task
            service.stop()

        asyncio.run(main())


class Situation:
    """A log with an event, and a `MakeService` for each kind of service."""

    def __init__(self, engine: Engine) -> None:
        self.store = EventStore(make_tables(engine), notify_channel="lifecycle")
        self.tables = WorkerTables(self.store.tables.metadata)
        self.tables.metadata.create_all(engine)
        # One connection of the engine is the observer's; this is the other one.
        self.connection = engine.connect()
        with Session(self.connection) as session:
            self.store.append(session, AnyVersion(), [make_event()])
            session.commit()

    def listener(self, factory: Any, done: Callable[[], None]) -> Service:
        return Listener(
            "lifecycle",
            execution=execution_for(factory, 1),
            store=self.store,
            config=CONFIG,
            wake=done,
            worker_id="w1",
            hooks=Hooks(None),
        )

    def dispatcher(self, factory: Any, done: Callable[[], None]) -> Service:
        class Stable(StablePosition):
            def publish(self, *arguments: Any) -> bool:
                done()
                return super().publish(*arguments)

        return Dispatcher(execution_for(factory, 2), self.store, Stable(), CONFIG)

    def processor(self, factory: Any, done: Callable[[], None]) -> Service:
        stable = StablePosition()
        with self.connection.begin():
            # A checkpoint is created only if its partition has an assignment.
            assignment = insert(self.tables.consumer_assignments).values(consumer_name="all", partition=0)
            self.connection.execute(assignment.on_conflict_do_nothing())
            stable.publish(1, self.store.reader.server_identity(self.connection))
        context = Processors(self._run(factory, done), None, {}).context(Partition("all", 0))
        return Processor(context, stable)

    def node(self, factory: Any, done: Callable[[], None]) -> Service:
        return Node(self._run(factory, done))

    def drain(self, factory: Any, done: Callable[[], None]) -> Service:
        return Drain(self._run(factory, done))

    def _run(self, factory: Any, done: Callable[[], None]) -> Run:
        @consumer("all")
        def handle(session: Session, event: PersistedEvent) -> None:
            session.execute(text("SELECT 1"))
            done()

        @consumer("all")
        async def handle_async(session: AsyncSession, event: PersistedEvent) -> None:
            await session.execute(text("SELECT 1"))
            done()

        self.connection.execute(self.tables.consumer_checkpoints.delete())  # for the event to be new again
        self.connection.commit()
        subscription = Subscription.of(handle_async if isinstance(factory, async_sessionmaker) else handle)
        worker_id = uuid4()
        return Run(
            worker_id=worker_id,
            store=self.store,
            tables=self.tables,
            subscriptions={"all": subscription},
            config=CONFIG,
            hooks=Hooks(None, worker=str(worker_id)),
            executions=Executions(execution_for(factory, 1), execution_for(factory, 2), execution_for(factory, 1)),
            checked_servers=set(),
            statements=CheckpointStatements(self.tables, self.store.tables.events),
        )


@pytest.fixture
def situation(engine: Engine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Situation]:
    if request.node.get_closest_marker("exhaustive") is None:
        # The self-check has as many awaits as the rest of the start. It is disturbed in the exhaustive tests.
        monkeypatch.setattr(Run, "check_server", AsyncMock())
    situation = Situation(engine)
    yield situation
    situation.connection.close()


@pytest.mark.parametrize("service", ["listener", "dispatcher", "processor", "drain", "node"])
class TestNothingIsLeft:
    def test_at_every_await_of_a_synchronous_worker(self, engine: Engine, situation: Situation, service: str):
        assert disturbed_everywhere(engine, None, getattr(situation, service)) >= 2

    def test_at_some_awaits_of_a_driver(self, engine: Engine, situation: Situation, service: str):
        assert disturbed_everywhere(engine, "asyncpg", getattr(situation, service), stride=7) >= 2

    @pytest.mark.exhaustive
    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_at_every_await_of_a_driver(self, engine: Engine, situation: Situation, service: str, driver: str):
        assert disturbed_everywhere(engine, driver, getattr(situation, service)) >= 2


class _Forgetful(Service):
    """A service that leaves something behind, or does not end when it is cancelled."""

    def __init__(self, factory: Any, done: Callable[[], None], fault: str) -> None:
        super().__init__("forgetful")
        self._factory, self._done, self._fault = factory, done, fault
        self.may_end = threading.Event()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        if self._fault == "task":
            self.task = asyncio.create_task(asyncio.sleep(600))
        elif self._fault == "timer":
            loop.call_later(600, print)
        elif self._fault == "connection":
            self.session = self._factory()
            self.session.connection()
        elif self._fault == "thread":
            threading.Thread(target=self.may_end.wait).start()
        loop.call_soon(self._done)
        try:
            await self.stopping.wait()
        except asyncio.CancelledError:
            if self._fault == "end":
                await asyncio.sleep(600)
            raise
        if self._fault == "error":
            raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("task", "a task is left"),
        ("timer", "a timer is left"),
        ("connection", "a connection is left"),
        ("thread", "still not so"),
        ("end", "did not end"),
        ("error", "the service failed"),
    ],
)
def test_the_control_fails(engine: Engine, fault: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.fix_lifecycle.SECONDS", 0.1)
    forgetful: list[_Forgetful] = []

    def make(factory: Any, done: Callable[[], None]) -> Service:
        forgetful.append(_Forgetful(factory, done, fault))
        return forgetful[-1]

    with pytest.raises(AssertionError, match=message):
        disturbed_everywhere(engine, None, make)
    for service in forgetful:
        service.may_end.set()
        if fault == "connection":
            service.session.close()
            service.session.get_bind().dispose()
