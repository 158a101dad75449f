"""A dispatcher without consumers and nodes, for each kind of engine."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, EventTables
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.dispatch.dispatcher import Dispatcher
from pupsourcing_sa.worker.execution.factory import execution_for
from pupsourcing_sa.worker.execution.protocol import Execution
from pupsourcing_sa.worker.stable_position import StablePosition
from tests.fix_store import make_async_engine, make_event, make_tables
from tests.waiting import patiently, wait_until

__all__ = ["CHANNEL", "KINDS", "LISTENING", "Lookout", "kinds"]

#: A name that needs every kind of quoting.
CHANNEL = 'Müller\'s "%(shop)s" :news'

#: The driver of an asynchronous engine, or `None`.
KINDS: dict[str, str | None] = {"sync": None, "async": "psycopg", "asyncpg": "asyncpg"}


def kinds(*daily: str) -> list[Any]:
    """Return all of `KINDS` as parameters: those that are not named are exhaustive."""
    return [kind if kind in daily else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in KINDS]


#: The backends that listen, for `Lookout.terminate`.
LISTENING = "query LIKE 'LISTEN %'"


class Lookout:
    """A dispatcher in a thread, with an engine of its own. The object also appends and terminates connections.

    Args:
        engine: the engine of the log.
        kind: one of `KINDS`.
        channel: channel of the dispatcher's store and of the store that appends.
        factory: session factory of the dispatcher, instead of that of the kind.
        hold: work of this name waits after its end until `released` is set; `held` counts it.
        hold_back: the same, but the work waits before it begins.
        config: settings of the worker.
    """

    def __init__(
        self,
        engine: Engine,
        kind: str,
        *,
        channel: str | None = CHANNEL,
        tables: EventTables | None = None,
        factory: Any = None,
        hold: str = "",
        hold_back: str = "",
        **config: Any,
    ) -> None:
        # Not from the engine's pool, whose connections are terminated like all others.
        self.engine = create_engine(engine.url, poolclass=NullPool)
        self.kind = kind
        self.store = EventStore(tables or make_tables(engine), notify_channel=channel)
        self.config = WorkerConfig(**{"retry_delay": 0.01, "max_retry_delay": 0.05} | config)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.spans: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.looks = 0
        self.held = 0
        self.begun: Counter[str] = Counter()
        self.released = threading.Event()
        self._factory = factory
        self._hold, self._hold_back = hold, hold_back
        self._stable = StablePosition()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    # -- the dispatcher ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(patiently(20))
            assert not self._thread.is_alive(), "the dispatcher did not stop"

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        driver = KINDS[self.kind]
        if self._factory is not None:
            await self._dispatch(self._factory)
        elif driver is None:
            own = create_engine(self.engine.url)
            await self._dispatch(sessionmaker(own))
            own.dispose()
        else:
            asynchronous = make_async_engine(self.engine, driver)
            await self._dispatch(async_sessionmaker(asynchronous))
            await asynchronous.dispose()

    async def _dispatch(self, factory: Any) -> None:
        execution = self._holding(execution_for(factory, 2))
        dispatcher = Dispatcher(
            execution, self.store, self._stable, self.config, worker_id="w1", hooks=Hooks(self, worker="w1")
        )
        self._stop = dispatcher.stop
        self._started.set()
        await dispatcher.start()

    def _holding(self, execution: Execution) -> Any:
        async def execute(name: str, work: Any) -> Any:
            self.begun[name] += 1
            await self._wait(name == self._hold_back)
            result = await execution(name, work)
            await self._wait(name == self._hold)
            return result

        return execute

    async def _wait(self, is_held: bool) -> None:
        if is_held and not self.released.is_set():
            self.held += 1
            while not self.released.is_set():
                await asyncio.sleep(0.005)

    # -- events of the hooks -----------------------------------------------------------------------------------------

    @contextmanager
    def span(self, name: str, data: dict[str, Any]) -> Iterator[None]:
        self.spans.append((name, dict(data), data))
        yield
        self.looks += 1

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))

    @property
    def position(self) -> int:
        """Return the published position."""
        return self._stable.value

    def names(self) -> list[str]:
        """Return the names of the events that it reported."""
        return [name for name, _ in self.events]

    def listens(self, times: int = 1) -> None:
        """Wait until it has begun to listen `times` times."""
        wait_until(lambda: self.names().count("worker.listening") >= times)

    def looks_again(self, times: int = 1) -> None:
        """Wait for `count` polls that begin after this call."""
        wanted = self.looks + 1 + times
        wait_until(lambda: self.looks >= wanted)

    def settles(self) -> None:
        """Wait until it does not poll during five polls of a dispatcher that only polls."""
        settings = {"poll_interval": 0.01, "max_poll_interval": 0.02}
        with Lookout(self.engine, "sync", tables=self.store.tables, dispatcher="poll", **settings) as other:

            def is_quiet() -> bool:
                before = self.looks
                other.looks_again(5)
                return self.looks == before

            wait_until(is_quiet)

    def polls(self) -> None:
        """Wait until it polls about as often as a dispatcher that only polls, on the same machine."""
        settings = {"poll_interval": 0.05, "max_poll_interval": 0.05}
        with Lookout(self.engine, "sync", tables=self.store.tables, dispatcher="poll", **settings) as other:

            def is_busy() -> bool:
                before = self.looks
                other.looks_again(5)
                return self.looks >= before + 3

            wait_until(is_busy)

    def arrives(self, position: int) -> None:
        wait_until(lambda: self.position >= position)
        assert self.position == position

    # -- appends and other connections ---------------------------------------------------------------------------------

    def append(self, number: int = 1, *, is_silent: bool = False) -> None:
        """Append `count` events, each in a transaction of its own."""
        store = EventStore(self.store.tables) if is_silent else self.store
        with Session(self.engine) as session:
            for _ in range(number):
                store.append(session, AnyVersion(), [make_event()])
                session.commit()

    @contextmanager
    def append_in_flight(self, aggregate_id: str = "other") -> Iterator[Session]:
        """Keep an append open during the block, unless the block commits it."""
        with Session(self.engine) as session:
            self.store.append(session, AnyVersion(), [make_event(aggregate_id)])
            yield session

    def query(self, sql: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql)).all())

    def is_listening(self) -> bool:
        """Return True if the server has a backend that listens."""
        return bool(self.query(f"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND {LISTENING}"))

    def terminate(self, which: str) -> int:
        """Terminate the backends of this database that meet a condition, and return their number."""
        return len(
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                f" AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND {which}"
            )
        )
