"""The processors that a node runs at the moment: one for each of its partitions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker._plan import Partition
from pupsourcing_sa.worker._processor import Processor
from pupsourcing_sa.worker._stable import StablePosition

__all__ = ["Crew"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Crew:
    """Starts and stops processors, each in a task of its own.

    Args:
        worker_id: the node's.
        hire: makes the processor of a partition, which ends when the event that it is given is set.
        stable: what the processors wait for.
        hooks: what is told of assignments.
    """

    def __init__(
        self,
        worker_id: str,
        hire: Callable[[Partition, asyncio.Event], Processor],
        stable: StablePosition,
        hooks: Hooks,
    ) -> None:
        self._details = {"worker": worker_id}
        self._hire = hire
        self._stable = stable
        self._hooks = hooks
        self._running: dict[Partition, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Those that have not ended yet."""
        return {task for task, _ in self._running.values() if not task.done()} | self._leaving

    def adjust(self, wanted: Collection[Partition]) -> None:
        """Run these partitions and no others. A processor that has ended, because it parked, is begun anew."""
        for partition in self._running.keys() - set(wanted):
            self._dismiss(partition)
        for partition in sorted(wanted):
            if partition in self._running and not self._running[partition][0].done():
                continue
            self._dismiss(partition)
            stopping = asyncio.Event()
            processor = self._hire(partition, stopping)
            task = asyncio.create_task(processor.run(self._stable), name=processor.name)
            self._running[partition] = task, stopping
            self._tell("worker.assigned", partition)

    def dismiss_all(self) -> None:
        """No new batches; the running ones go on."""
        for partition in list(self._running):
            self._dismiss(partition)

    def _dismiss(self, partition: Partition) -> None:
        if partition not in self._running:
            return
        task, stopping = self._running.pop(partition)
        stopping.set()
        self._stable.wake()  # it may be waiting for the position to move
        self._leaving.add(task)
        task.add_done_callback(self._gone)
        self._tell("worker.revoked", partition)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("processor failed", exc_info=error, extra=self._details | {"processor": task.get_name()})

    def _tell(self, hook: str, partition: Partition) -> None:
        self._hooks.event(hook, **self._details, consumer=partition[0], partition=partition[1])
