"""A stress test for services: stop or cancel one at each of its awaits, and check that nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Literal, NamedTuple

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.worker.lifecycle.service import Service
from tests.fix_store import make_async_engine
from tests.waiting import patiently, wait_until

__all__ = ["Disturbance", "disturbed_everywhere"]

#: How many awaits a service may suspend at after it was stopped or cancelled. The slowest, a node with asyncpg, takes
#: about a hundred for the transactions in which it leaves.
MAX_STEPS = 400
#: Time for a service to end, and for its threads and connections.
SECONDS = 20.0

#: Creates the service in the event loop. It gets sessions, and what to call when the service has done its work.
MakeService = Callable[[Any, Callable[[], None]], Service]


class Disturbance(NamedTuple):
    """The way to disturb a service, and the await at which that happens, counted over all tasks of the service."""

    way: Literal["stop", "cancel"]
    await_number: int


def disturbed_everywhere(engine: Engine, driver: str | None, make_service: MakeService, *, stride: int = 1) -> int:
    """Stop and cancel a service at each await, until it completes undisturbed. Return the number of awaits.

    Args:
        engine: the database.
        driver: of an asynchronous engine; ``None`` for a synchronous one.
        make_service: creates the service.
        stride: disturb at every n-th await only.

    Raises:
        AssertionError: something is left of the service, or it does not end.
    """
    number, has_reached = 1, True
    with engine.connect() as observer:
        observer.execution_options(isolation_level="AUTOCOMMIT")
        while has_reached:
            results = [
                _run(observer, engine, driver, make_service, Disturbance("stop", number)),
                _run(observer, engine, driver, make_service, Disturbance("cancel", number)),
            ]
            has_reached = any(results)
            number += stride
    return number - stride


def _run(observer: Any, engine: Engine, driver: str | None, make: MakeService, disturbance: Disturbance) -> bool:
    """Run the service once, in an event loop and with an engine of its own. Return True if it was disturbed."""
    threads = set(threading.enumerate())
    backends = _backends(observer)
    try:
        has_reached = asyncio.run(_main(engine, driver, make, disturbance))
        wait_until(lambda: not [t for t in threading.enumerate() if t not in threads and not t.daemon], seconds=SECONDS)
        wait_until(lambda: not [t for t in threading.enumerate() if t not in threads and _is_ours(t)], seconds=SECONDS)
        if driver == "psycopg":
            # SQLAlchemy leaves such a connection to the garbage collector if the pool is cancelled while connecting.
            with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                gc.collect()
        wait_until(lambda: _backends(observer) <= backends, seconds=SECONDS)
    except AssertionError as error:
        error.add_note(f"after {disturbance}")
        raise
    return has_reached


async def _main(engine: Engine, driver: str | None, make: MakeService, disturbance: Disturbance) -> bool:
    loop = asyncio.get_running_loop()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    own: Any = create_engine(engine.url) if driver is None else make_async_engine(engine, driver)
    factory: Any = async_sessionmaker(own) if isinstance(own, AsyncEngine) else sessionmaker(own)
    steps = _Steps(disturbance.await_number)
    service = make(factory, lambda: loop.call_soon_threadsafe(service.stop))
    loop.set_task_factory(steps.task)
    task = service.start()
    steps.disturb = service.stop if disturbance.way == "stop" else task.cancel
    await asyncio.wait({task}, timeout=patiently(SECONDS))
    loop.set_task_factory(None)
    assert task.done(), "the service did not end"
    assert steps.number - disturbance.await_number <= MAX_STEPS, "the service takes too many steps to end"
    if not task.cancelled():
        assert task.exception() is None, "the service failed"
    elif disturbance.way == "stop":
        raise AssertionError("a stop cancelled the service")
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left"
    await asyncio.sleep(0)
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert not timers, "a timer is left"
    # A thread that works for the service returns its connection when it is done.
    deadline = loop.time() + patiently(SECONDS)
    # A thread that has not connected yet would do so after dispose(), which opens a new pool.
    while own.pool.checkedout() or any(map(_is_ours, threading.enumerate())):
        assert loop.time() < deadline, "a connection is left"
        await asyncio.sleep(0.001)
    await own.dispose() if isinstance(own, AsyncEngine) else own.dispose()
    assert complaints == []
    return steps.number >= disturbance.await_number


class _Steps:
    """Counter of the awaits at which tasks are suspended. It disturbs the service at one of them."""

    def __init__(self, at: int) -> None:
        self.number = 0
        self._at = at
        self.disturb: Callable[[], object] = lambda: None

    def task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_Stepped(coroutine, self._suspended), loop=loop, **options)

    def _suspended(self) -> None:
        self.number += 1
        if self.number == self._at:
            self.disturb()


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that reports each await at which it is suspended."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], suspended: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._suspended = suspended

    def send(self, value: Any) -> Any:
        awaited = self._coroutine.send(value)
        self._suspended()
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self._coroutine.throw(*error)
        self._suspended()
        return awaited

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()


def _backends(observer: Any) -> set[int]:
    return set(observer.scalars(text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")))


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("pupsourcing-")
