"""The processors that a node runs at the moment: one for each of its partitions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker._plan import Partition
from pupsourcing_sa.worker._processor import Processor
from pupsourcing_sa.worker._stable import StablePosition

__all__ = ["Crew"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class _Member(NamedTuple):
    processor: Processor
    task: asyncio.Task[None]
    stopping: asyncio.Event


class Crew:
    """Starts and stops processors, each in a task of its own.

    Args:
        worker_id: the node's.
        hire: makes the processor of a partition, which ends when the event that it is given is set.
        stable: what the processors wait for.
        hooks: what is told of assignments.
        is_aborted: whether the processors may have been cancelled by the run that they are part of.
    """

    def __init__(
        self,
        worker_id: str,
        hire: Callable[[Partition, asyncio.Event], Processor],
        stable: StablePosition,
        hooks: Hooks,
        is_aborted: Callable[[], bool],
    ) -> None:
        self._details = {"worker": worker_id}
        self._hire = hire
        self._stable = stable
        self._hooks = hooks
        self._is_aborted = is_aborted
        self._running: dict[Partition, _Member] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Those that have not ended yet."""
        return {each.task for each in self._running.values() if not each.task.done()} | self._leaving

    def positions(self) -> dict[Partition, int]:
        """Where the processors have left their checkpoints; -1 for one that does not know yet."""
        return {partition: member.processor.position for partition, member in self._running.items()}

    def adjust(self, wanted: Mapping[Partition, int], known: Mapping[Partition, int]) -> None:
        """Run these partitions and no others.

        A processor begins anew if it has ended, because it parked or was cancelled, and if somebody has moved its
        checkpoint back, to have events applied again: it would not look at it before there is another event.

        Args:
            wanted: the partitions, with the positions of their checkpoints.
            known: what `positions` gave, before those positions were read; of those that begin, nothing.
        """
        for partition in self._running.keys() - wanted.keys():
            self._dismiss(partition)
        for partition, position in sorted(wanted.items()):
            member = self._running.get(partition)
            is_moved_back = position < known.get(partition, -1)
            if is_moved_back:
                details = self._details | {"consumer": partition[0], "partition": partition[1], "position": position}
                _logger.info("checkpoint was moved back; going on from there", extra=details)
            if member is None or member.task.done() or is_moved_back:
                self._dismiss(partition)
                self._begin(partition)

    def dismiss_all(self) -> None:
        """No new batches; the running ones go on."""
        for partition in list(self._running):
            self._dismiss(partition)

    def _begin(self, partition: Partition) -> None:
        stopping = asyncio.Event()
        processor = self._hire(partition, stopping)
        task = asyncio.create_task(processor.run(self._stable), name=processor.name)
        self._running[partition] = _Member(processor, task, stopping)
        self._tell("worker.assigned", partition)

    def _dismiss(self, partition: Partition) -> None:
        if partition not in self._running:
            return
        _, task, stopping = self._running.pop(partition)
        stopping.set()
        self._stable.wake()  # it may be waiting for the position to move
        self._leaving.add(task)
        task.add_done_callback(self._gone)
        self._tell("worker.revoked", partition)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        details = self._details | {"processor": task.get_name()}
        if task.cancelled():
            if not self._is_aborted():  # as by a handler that lets its own task be cancelled after it has returned
                _logger.error("processor was cancelled, and not by the worker", extra=details)
        elif (error := task.exception()) is not None:
            _logger.error("processor failed", exc_info=error, extra=details)

    def _tell(self, hook: str, partition: Partition) -> None:
        self._hooks.event(hook, consumer=partition[0], partition=partition[1])
