"""The execution for a ``sessionmaker``: one thread for each piece of work."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.consumer.handlers import refuse_awaitable
from pupsourcing_sa.worker.execution.protocol import Work, in_session

__all__ = ["Threads", "UnawaitedExecutor"]

_T = TypeVar("_T")


class Threads:
    """Runner of work in daemon threads, so that a handler that never returns does not keep the process alive."""

    def __init__(self, factory: sessionmaker[Any], concurrency: int) -> None:
        self._factory = factory
        self._slots = asyncio.Semaphore(concurrency)

    async def __call__(self, name: str, work: Work[_T]) -> _T:
        async with self._slots:
            return await _in_thread(name, partial(self._run, work))

    def _run(self, work: Work[_T]) -> _T:
        with self._factory() as session:

            def bind(handler: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
                def call(argument: Any) -> None:
                    result = handler(session, argument)
                    if result is not None:
                        refuse_awaitable(handler, result)

                return call

            return in_session(session, work, bind)

    async def close(self) -> None:
        pass


async def _in_thread(name: str, call: Callable[[], _T]) -> _T:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_T] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(result: _T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is None:
            outcome.set_result(result)  # type: ignore[arg-type]
        else:
            outcome.set_exception(error)

    def target() -> None:
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = context.run(call)
        except StopIteration as error:
            # A hook of the pool may raise it. A future refuses it, and would never be done.
            failure = RuntimeError("database work raised StopIteration")
            failure.__cause__ = error
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the event loop has been closed
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=target, name=name, daemon=True).start()
    return await outcome


class UnawaitedExecutor(ThreadPoolExecutor):
    """A default executor that the event loop does not wait for: a handler's ``to_thread`` may never return."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)
