"""The execution for an ``async_sessionmaker``. It needs greenlet, so `factory` imports it only when it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import await_only

from pupsourcing_sa.consumer.handlers import is_coroutine_function, refuse_awaitable
from pupsourcing_sa.worker.execution.protocol import Work, in_session
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.tasks import with_timeout

__all__ = ["Greenlets"]

_T = TypeVar("_T")


class Greenlets:
    """Runner of work in SQLAlchemy's greenlets on the event loop, where it also awaits coroutine handlers."""

    def __init__(self, factory: async_sessionmaker[Any], concurrency: int) -> None:
        self._factory = factory
        self._slots = asyncio.Semaphore(concurrency)

    async def __call__(self, name: str, work: Work[_T]) -> _T:
        async with self._slots, self._factory() as session:
            result: _T = await session.run_sync(in_session, work, partial(_bind_handler, session))
            return result

    async def close(self) -> None:
        binds = [self._factory.kw.get("bind"), *(self._factory.kw.get("binds") or {}).values()]
        for engine in {bind for bind in binds if isinstance(bind, AsyncEngine)}:
            try:
                await with_timeout(shutdown.CLOSE_SECONDS, engine.dispose())
            except TimeoutError:  # asyncpg waits for a server that may be gone
                await engine.dispose(close=False)


def _bind_handler(session: AsyncSession, handler: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
    if is_coroutine_function(handler):

        def call(argument: Any) -> None:
            with _cancellable():
                await_only(handler(session, argument))
    else:

        def call(argument: Any) -> None:
            with _cancellable():
                refuse_awaitable(handler, handler(session.sync_session, argument))

    return call


@contextmanager
def _cancellable() -> Iterator[None]:
    """Deliver a cancellation that the handler requested for its own task, before the handler returns.

    Otherwise it would arrive at the next await of the worker, and would not count as a failure of the handler.
    """
    try:
        yield
    # Not GreenletExit, because nothing can be awaited after it.
    except (Exception, asyncio.CancelledError):
        _await_cancellation()
        raise
    _await_cancellation()


def _await_cancellation() -> None:
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        await_only(asyncio.sleep(0))
