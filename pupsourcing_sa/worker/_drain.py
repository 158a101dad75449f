"""A run that processes everything there is and returns. It is no node, and goes side by side with any."""

from __future__ import annotations

import asyncio

from pupsourcing_sa.store.positions import LogPositions
from pupsourcing_sa.worker._run import Run
from pupsourcing_sa.worker.coordination.membership import Membership
from pupsourcing_sa.worker.dispatch.dispatcher import look
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all
from pupsourcing_sa.worker.partition import Partition

__all__ = ["run_drain"]


async def run_drain(run: Run) -> None:
    """Process everything up to the stable position of this moment.

    Raises:
        Exception: whatever a handler raised; an ``ExceptionGroup`` when several consumers failed.
    """
    membership = Membership(run.tables, run.worker_id, run.subscriptions.values(), run.config, run.hooks)
    found = await look(run.lookout, run.store)
    await run.coordinate(membership.declare)
    with run.announced():
        await _drain(run, found)


async def _drain(run: Run, found: LogPositions) -> None:
    tasks: set[asyncio.Task[None]] = set()
    for name, subscription in run.subscriptions.items():
        for number in range(subscription.scope.partitions):
            processor = run.processor(Partition(name, number), run.stopping, worker_id=None)
            tasks.add(asyncio.create_task(processor.drain(found.stable, found.server_identity), name=processor.name))
    shutdown = asyncio.create_task(_shut_down(run, tasks), name="pupsourcing-shutdown")
    try:
        await asyncio.gather(*tasks, return_exceptions=True)
        failures = [error for task in tasks if (error := _failure(run, task)) is not None]
    finally:
        run.stopping.set()
        run.is_aborted.set()
        await cancel_all({shutdown, *tasks})
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise BaseExceptionGroup("several consumers failed", failures)


def _failure(run: Run, task: asyncio.Task[None]) -> BaseException | None:
    """Why a processor has ended before it was done; ``None`` if it was done, or is not to be."""
    if not task.cancelled():
        return task.exception()
    if run.is_aborted.is_set():
        return None
    return RuntimeError(
        f"processor {task.get_name()!r} was cancelled before it was done, and not by the worker; look for a handler "
        "that lets its own task be cancelled after it has returned"
    )


async def _shut_down(run: Run, tasks: set[asyncio.Task[None]]) -> None:
    """Once a stop is asked for: let the running batches finish, then roll them back."""
    await run.stopping.wait()
    _, running = await asyncio.wait(tasks, timeout=run.config.shutdown_timeout)
    if running:
        await run.roll_back(running)
