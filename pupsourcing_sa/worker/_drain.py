"""The drain: a run of a worker that processes the log once and returns.

A drain is not a node: it has no heartbeat and no assignments. After it has succeeded, its consumers are not supposed to
run. It therefore deletes assignments that dead nodes have left behind.

It can run beside nodes, because only the transaction that locks the checkpoint processes a batch.
"""

from __future__ import annotations

import asyncio

from pupsourcing_sa.store.positions import LogPositions
from pupsourcing_sa.worker._run import Processors, Run
from pupsourcing_sa.worker.dispatch.dispatcher import read_positions
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all
from pupsourcing_sa.worker.partition import Partition
from pupsourcing_sa.worker.processing.drain import DrainProcessor

__all__ = ["Drain"]


class Drain(Service):
    """A run up to the stable position at its start.

    The task raises the exception of a handler, or a group of them if several consumers failed.
    """

    def __init__(self, run: Run) -> None:
        super().__init__("pupsourcing-drain")
        self._drain_run = run
        self._membership = run.membership()
        self._processors = Processors(run, None, self._membership.starts)
        self._draining: list[DrainProcessor] = []

    def stop(self) -> None:
        for processor in self._draining:
            processor.stop()
        super().stop()

    async def _run(self) -> None:
        positions = await self._unless_stopped(self._start())
        if positions is not None and not self.stopping.is_set():
            with self._drain_run.announced():
                await self._process(positions)
                await self._drain_run.coordinate(self._membership.retire)

    async def _start(self) -> LogPositions:
        run = self._drain_run
        positions = await read_positions(run.executions.log, run.store)
        await run.check_server(positions.server_identity)
        self._membership.begin_reactions_at(positions.stable)
        await run.coordinate(self._membership.declare)
        return positions

    async def _process(self, positions: LogPositions) -> None:
        self._draining = [
            DrainProcessor(
                self._processors.context(Partition(name, number)), positions.stable, positions.server_identity
            )
            for name, subscription in self._drain_run.subscriptions.items()
            for number in range(subscription.scope.partitions)
        ]
        tasks = {processor.start() for processor in self._draining}
        try:
            await self._unless_stopped(asyncio.wait(tasks))
            if self.stopping.is_set():
                await self._finish(tasks)
            failures = [error for task in tasks if (error := self._failure(task)) is not None]
        finally:
            self.stop()
            self._processors.abort()
            await cancel_all(tasks)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise BaseExceptionGroup("several consumers failed", failures)

    async def _finish(self, tasks: set[asyncio.Task[None]]) -> None:
        """Wait for running batches. Roll back those that exceed the shutdown timeout."""
        _, running = await asyncio.wait(tasks, timeout=self._drain_run.config.shutdown_timeout)
        if running:
            await self._processors.roll_back(running)

    def _failure(self, task: asyncio.Task[None]) -> BaseException | None:
        """Return the error that ended a processor early, or ``None`` if it finished or was rolled back."""
        if not task.cancelled():
            return task.exception()
        if self._processors.is_aborted():
            return None
        return RuntimeError(
            f"processor {task.get_name()!r} was cancelled before it finished, but not by the worker. Look for "
            "code that cancels the task of a handler after the handler has returned"
        )
