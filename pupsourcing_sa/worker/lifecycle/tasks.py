"""Waiting with a timeout, and ending tasks that wait for a server that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

from pupsourcing_sa.worker.lifecycle import shutdown

__all__ = ["cancel_all", "wait_for_event", "with_timeout"]

_T = TypeVar("_T")


async def wait_for_event(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event up to the timeout. Return True if it is set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return event.is_set()


async def with_timeout(seconds: float, work: Coroutine[Any, Any, _T], stopping: asyncio.Event | None = None) -> _T:
    """Return the result of the work.

    Args:
        seconds: the timeout.
        work: the coroutine to run.
        stopping: once it is set, the work has only `CANCEL_SECONDS` left.

    Raises:
        TimeoutError: the work did not finish in time and was cancelled.
    """
    task = asyncio.create_task(work, name="pupsourcing-work")
    tasks: set[asyncio.Task[Any]] = {task}
    if stopping is not None:
        tasks.add(asyncio.create_task(stopping.wait(), name="pupsourcing-stopped"))
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if stopping is not None and stopping.is_set():
            await asyncio.wait({task}, timeout=shutdown.CANCEL_SECONDS)
        if task.done():
            return task.result()
        raise TimeoutError("the database does not answer")
    finally:
        await cancel_all(tasks)


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks repeatedly until all have ended.

    One cancellation is not enough when the server does not answer. psycopg then connects to the server to cancel the
    query, and waits for the query to end: 5 s for each, and without a limit in older versions (its issue 1371). asyncpg
    waits without a limit if that connection hangs (its issue 1326). Both close the connection at once when they are
    cancelled a second time.
    """
    is_cancelled = False
    while running := {task for task in tasks if not task.done()}:
        for task in running:
            task.cancel()
        try:
            await asyncio.wait(running, timeout=shutdown.CANCEL_SECONDS)
        except asyncio.CancelledError:  # the caller was cancelled, but nothing else would end these tasks
            is_cancelled = True
    await asyncio.gather(*tasks, return_exceptions=True)  # asyncio logs an exception that is never retrieved
    if is_cancelled:
        raise asyncio.CancelledError
