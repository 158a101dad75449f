"""Tasks that may wait for a server that does not answer any more, and how they are ended all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, Final, TypeVar

__all__ = ["end", "within"]

_T = TypeVar("_T")

#: How long whatever is in the way has: a driver, to have the server end a query before its connection is given up, and
#: a transaction of the node, when the run is to end. Also at the worst the end of a run has to fit into the margin that
#: `handling_signals` leaves it.
_GRACE_SECONDS: Final = 0.4


async def within(seconds: float, work: Coroutine[Any, Any, _T], stopping: asyncio.Event | None = None) -> _T:
    """The result of the work.

    Raises:
        TimeoutError: there is none after so many seconds, or soon after the event is set; the work has been cancelled.
    """
    task = asyncio.create_task(work, name="pupsourcing-work")
    tasks: set[asyncio.Task[Any]] = {task}
    if stopping is not None:
        tasks.add(asyncio.create_task(stopping.wait(), name="pupsourcing-stopped"))
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if stopping is not None and stopping.is_set():
            await asyncio.wait({task}, timeout=_GRACE_SECONDS)
        if task.done():
            return task.result()
        raise TimeoutError("the database does not answer")
    finally:
        await end(tasks)


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, again and again until they have ended.

    Once is not enough where the server does not answer any more. psycopg connects to it, to have it end the query, and
    then waits for the end of the query: 5 s for each, and older versions for ever (its issue 1371). asyncpg waits for
    ever if the former hangs (its issue 1326). When that is cancelled too, they give the connection up at once.
    """
    is_cancelled = False
    while running := {task for task in tasks if not task.done()}:
        for task in running:
            task.cancel()
        try:
            await asyncio.wait(running, timeout=_GRACE_SECONDS)
        except asyncio.CancelledError:  # who waits for this has no more patience; nobody else would end them
            is_cancelled = True
    await asyncio.gather(*tasks, return_exceptions=True)  # an error that nobody asks for would be complained of
    if is_cancelled:
        raise asyncio.CancelledError
