"""Workers of several kinds, run in threads of the test, and what they have done.

A worker has a ``sessionmaker`` (``sync``), or an ``async_sessionmaker`` over psycopg (``async``) or asyncpg. A test
chooses its workers by its fixture: those of the daily run, and those of ``make test-all`` only:

============  ================  ==============  ======================================================
fixture       every day         exhaustive      for a test of
============  ================  ==============  ======================================================
fleet         sync              async           what is written once for both
both_fleets   sync, async                       what threads and coroutines do differently
every_fleet   sync              async, asyncpg  what drivers do differently, and is slow
drivers       sync, asyncpg     async           what drivers do differently: their errors and time-outs
============  ================  ==============  ======================================================

``sync_fleet``, ``async_fleet`` and ``async_drivers`` are for what only threads or only coroutines have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, AsyncEventStore, EventStore, EventTables, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.fix_store import make_async_engine, make_event
from tests.prepared_schemas import prepare
from tests.waiting import patiently, wait_until

__all__ = ["INSERT", "Fleet", "Recorder", "stop_after_start"]

INSERT = text("INSERT INTO seen (consumer, position) VALUES (:consumer, :position)")

#: Times that a test can wait for.
QUICK = {
    "poll_interval": 0.01,
    "max_poll_interval": 0.05,
    "rebalance_interval": 0.05,
    "retry_delay": 0.01,
    "max_retry_delay": 0.05,
}

WORKER_NAMES: dict[str, dict[str, str]] = {
    "default": {},
    "custom": {
        "schema": "Müller's %(shop)s",
        "worker_nodes": "the.nodes",
        "consumer_checkpoints": 'check "points"',
    },
}

#: The driver, and whether it is asynchronous.
KINDS = {"sync": ("psycopg", False), "async": ("psycopg", True), "asyncpg": ("asyncpg", True)}


def stop_after_start(monkeypatch: pytest.MonkeyPatch, runner: type[Any]) -> None:
    """Stop a node or a drain when it has started, and its processors are not created yet."""
    start = runner._start

    async def start_and_stop(self: Any) -> Any:
        started = await start(self)
        self.stop()
        return started

    monkeypatch.setattr(runner, "_start", start_and_stop)


class Recorder:
    """Telemetry that keeps its spans and events."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any]]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def span(self, name: str, data: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        finally:
            self.spans.append((name, dict(data)))

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, dict(data)))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The data of the spans or events of this name."""
        return [data for each, data in self.spans + self.events if each == name]


class Fleet:
    """Makes workers of one kind, any number of them, and runs them in threads."""

    def __init__(self, engine: Engine, *, is_async: bool, driver: str = "psycopg") -> None:
        self.engine = engine
        self.is_async = is_async
        self.driver = driver
        self.store = EventStore(EventTables(MetaData()))
        self.tables = WorkerTables(self.store.tables.metadata)
        prepare(engine, "fleet", self._create_tables)
        self._async_engines: list[AsyncEngine] = []
        self._running: list[tuple[Worker, threading.Thread]] = []

    def _create_tables(self) -> None:
        self.tables.metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE seen (number serial, consumer text, position bigint)"))

    def worker(self, *consumers: Any, telemetry: Any = None, **config: Any) -> Worker:
        factory: Any = sessionmaker(self.engine)
        store: Any = self.store
        if self.is_async:
            async_engine = make_async_engine(self.engine, self.driver)  # one each: it belongs to the worker's loop
            self._async_engines.append(async_engine)
            factory = async_sessionmaker(async_engine)
            store = AsyncEventStore(self.store.tables, registry=self.store.registry)
        return Worker(factory, store, consumers, config=WorkerConfig(**QUICK | config), telemetry=telemetry)

    def start(self, worker: Worker) -> threading.Thread:
        thread = self.run(worker.run)
        self._running.append((worker, thread))
        return thread

    @staticmethod
    def run(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)  # a test that fails shall not hang
        thread.start()
        return thread

    async def dispose(self) -> None:
        """To be awaited in a loop of the test's own: connections cannot be closed outside it."""
        for async_engine in self._async_engines:
            await async_engine.dispose()

    def stop(self) -> None:
        for worker, _ in self._running:
            worker.stop()
        for worker, thread in self._running:
            thread.join(patiently(60))
            assert not thread.is_alive(), f"worker {worker.id} did not stop"
        self._running.clear()
        # A worker that is cancelled, or a batch that is left behind, does not wait for its threads; their connections
        # must have been given back before the engine is disposed of.
        self.wait(lambda: not any(thread.name.startswith("pupsourcing-") for thread in threading.enumerate()))

    def see(self, name: str, *, check: Callable[[PersistedEvent], None] = lambda event: None, **options: Any) -> Any:
        """A consumer that writes down what it sees, in the kind of handler that fits the worker."""
        if self.is_async:

            @consumer(name, **options)
            async def handle_async(session: AsyncSession, event: PersistedEvent) -> None:
                await session.execute(INSERT, {"consumer": name, "position": event.global_position})
                check(event)

            return handle_async

        @consumer(name, **options)
        def handle(session: Session, event: PersistedEvent) -> None:
            session.execute(INSERT, {"consumer": name, "position": event.global_position})
            check(event)

        return handle

    def see_batches(self, name: str, *, check: Callable[[list[PersistedEvent]], None], **options: Any) -> Any:
        """The same with a ``handle_batch``, which checks before it writes."""

        class Batches:
            def handle_batch(self, session: Session, events: list[PersistedEvent]) -> None:
                check(events)
                session.execute(INSERT, [{"consumer": name, "position": event.global_position} for event in events])

        batches: Any = Batches()
        for option, value in ({"name": name} | options).items():
            setattr(batches, option, value)
        return batches

    def append(self, number: int = 1, **event: Any) -> None:
        with Session(self.engine) as session:
            for count in range(number):
                self.store.append(session, AnyVersion(), [make_event(**{"aggregate_id": f"u{count % 5}"} | event)])
            session.commit()

    def query(self, sql: str, *, commit: bool = False, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            result = connection.execute(text(sql), parameters)
            rows = list(result.all()) if result.returns_rows else []
            if commit:
                connection.commit()
            return rows

    def seen(self, name: str) -> list[int]:
        return [
            row[0] for row in self.query("SELECT position FROM seen WHERE consumer = :name ORDER BY number", name=name)
        ]

    def checkpoint(self, name: str) -> Any:
        rows = self.query("SELECT * FROM consumer_checkpoints WHERE consumer_name = :name", name=name)
        return rows[0] if rows else None

    def attempts(self, name: str) -> int:
        found = self.checkpoint(name)
        return 0 if found is None else found.attempts

    wait = staticmethod(wait_until)


def _fleets(*daily: str, exhaustive: tuple[str, ...] = ()) -> Any:
    """Make a fixture that runs a test on each of these kinds of workers."""
    kinds = [*daily, *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in exhaustive)]

    @pytest.fixture(params=kinds)
    def fixture(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Fleet]:
        driver, is_async = KINDS[request.param]
        fleet = Fleet(engine, is_async=is_async, driver=driver)
        yield fleet
        fleet.stop()

    return fixture


fleet = _fleets("sync", exhaustive=("async",))
both_fleets = _fleets("sync", "async")
every_fleet = _fleets("sync", exhaustive=("async", "asyncpg"))
drivers = _fleets("sync", "asyncpg", exhaustive=("async",))
sync_fleet = _fleets("sync")
async_fleet = _fleets("async")
async_drivers = _fleets("async", "asyncpg")


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.exhaustive), "custom"])
def worker_tables(request: pytest.FixtureRequest, engine: Engine) -> WorkerTables:
    names = WORKER_NAMES[request.param]
    tables = WorkerTables(MetaData(), **names)
    kind = ("worker", request.param)
    prepare(engine, kind, lambda: tables.metadata.create_all(engine), schema=names.get("schema"))
    return tables
