"""Where a worker's database work happens: in threads with a ``sessionmaker``, else in SQLAlchemy's greenlets.

The loops of the worker are coroutines; what they do to the database is plain functions over a ``Session``, written
once. An execution opens a session, runs such a function with it, and closes it, which rolls back what is not committed.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa.store._errors import is_read_only
from pupsourcing_sa.worker._batch import Bind

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_sessionmaker

__all__ = [
    "Execution",
    "SessionFactory",
    "UnawaitedExecutor",
    "Work",
    "execution_for",
    "in_session",
    "is_async_sessionmaker",
    "is_coroutine_function",
    "refuse_awaitable",
]

_T = TypeVar("_T")

SessionFactory: TypeAlias = "sessionmaker[Any] | async_sessionmaker[Any]"
Work: TypeAlias = Callable[[Session, Bind], _T]


class Execution(Protocol):
    """Runs database work in a session of its own."""

    async def __call__(self, name: str, work: Work[_T]) -> _T:
        """Run ``work(session, bind)``; the name is the thread's or task's, for those who look at a process."""

    async def close(self) -> None:
        """Close connections that cannot be used outside this event loop."""


class _Threads:
    """Each piece of work in a daemon thread, so that a handler that never returns cannot keep the process alive."""

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


def in_session(session: Session, work: Work[_T], bind: Bind) -> _T:
    """Do the work, after which a connection that cannot write does not go back to the pool.

    While a failover lasts, the primary's name may lead to a standby; a connection made then would stay what it is, and
    be used again and again.
    """
    try:
        return work(session, bind)
    except Exception as error:
        if is_read_only(error):
            session.invalidate()
        raise


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
        except StopIteration as error:  # as by a hook of the pool; a future does not take it, and would never be done
            failure = RuntimeError("database work raised StopIteration")
            failure.__cause__ = error
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended without waiting for us
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=target, name=name, daemon=True).start()
    return await outcome


class UnawaitedExecutor(ThreadPoolExecutor):
    """An event loop's default executor that does not keep the loop open: a handler's ``to_thread`` may never return."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def execution_for(factory: SessionFactory, concurrency: int) -> Execution:
    """The execution that fits a session factory; to be called inside the event loop."""
    if isinstance(factory, sessionmaker):
        return _Threads(factory, concurrency)
    from pupsourcing_sa.worker._greenlets import Greenlets

    return Greenlets(factory, concurrency)


def is_async_sessionmaker(factory: object) -> bool:
    """Whether it is one; without greenlet there is none, and its module cannot be imported."""
    asyncio_extension = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio_extension is not None and isinstance(factory, asyncio_extension.async_sessionmaker)


def refuse_awaitable(handler: object, result: object) -> None:
    """Complain of a handler whose result nobody would wait for."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(f"{handler!r} has a yield, so that calling it does nothing: a handler must not be a generator")
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"{handler!r} gave an awaitable, and is not a coroutine function: declare it with async def")


def is_coroutine_function(handler: object) -> bool:
    """Whether calling it gives something to await; looks into callable objects as well."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
