"""A dispatcher on its own, for each kind of engine: no consumers, no nodes, only the position that it publishes."""

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

#: A name that needs all the quoting there is.
CHANNEL = 'Müller\'s "%(shop)s" :news'

#: The driver of an asynchronous engine, or none.
KINDS: dict[str, str | None] = {"sync": None, "async": "psycopg", "asyncpg": "asyncpg"}


def kinds(*daily: str) -> list[Any]:
    """Return all of `KINDS` as parameters: those that are not named are exhaustive."""
    return [kind if kind in daily else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in KINDS]


#: The backends that listen; to be used with `Lookout.terminate`.
LISTENING = "query LIKE 'LISTEN %'"


class Lookout:
    """Runs a dispatcher in a thread, with an engine of its own; appends, and ends other people's connections.

    Args:
        engine: where the log is made.
        kind: one of `KINDS`.
        channel: of the dispatcher's store, and of the one that appends.
        factory: sessions for the dispatcher, instead of those of the kind.
        hold: pieces of work with this name wait, when they are done, until `released` is set; `held` counts them.
        hold_back: the same, before they are begun.
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
        # Not of the engine's pool, whose connections are terminated as everyone's are.
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

    # -- what it tells -----------------------------------------------------------------------------------------

    @contextmanager
    def span(self, name: str, data: dict[str, Any]) -> Iterator[None]:
        self.spans.append((name, dict(data), data))
        yield
        self.looks += 1

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))

    @property
    def position(self) -> int:
        """What it has published."""
        return self._stable.value

    def names(self) -> list[str]:
        """The events that it told of."""
        return [name for name, _ in self.events]

    def listens(self, times: int = 1) -> None:
        """Wait until it has begun to listen so many times."""
        wait_until(lambda: self.names().count("worker.listening") >= times)

    def looks_again(self, times: int = 1) -> None:
        """Wait for so many looks that have begun after now."""
        wanted = self.looks + 1 + times
        wait_until(lambda: self.looks >= wanted)

    def settles(self) -> None:
        """Wait until it does not look while one that only polls looks five times."""
        settings = {"poll_interval": 0.01, "max_poll_interval": 0.02}
        with Lookout(self.engine, "sync", tables=self.store.tables, dispatcher="poll", **settings) as other:

            def is_quiet() -> bool:
                before = self.looks
                other.looks_again(5)
                return self.looks == before

            wait_until(is_quiet)

    def polls(self) -> None:
        """Wait until it looks about as often as one that only polls; both have the same machine."""
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

    # -- the rest of the world ---------------------------------------------------------------------------------

    def append(self, number: int = 1, *, is_silent: bool = False) -> None:
        """Append and commit so many events, one after the other."""
        store = EventStore(self.store.tables) if is_silent else self.store
        with Session(self.engine) as session:
            for _ in range(number):
                store.append(session, AnyVersion(), [make_event()])
                session.commit()

    @contextmanager
    def append_in_flight(self, aggregate_id: str = "other") -> Iterator[Session]:
        """An append that is not committed in the block, unless it commits it."""
        with Session(self.engine) as session:
            self.store.append(session, AnyVersion(), [make_event(aggregate_id)])
            yield session

    def query(self, sql: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql)).all())

    def is_listening(self) -> bool:
        """Whether the server has a backend that listens."""
        return bool(self.query(f"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND {LISTENING}"))

    def terminate(self, which: str) -> int:
        """Terminate the backends of this database that a condition chooses; how many there were."""
        return len(
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                f" AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND {which}"
            )
        )
