"""The processors that a node runs at the moment: one for each of its partitions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.partition import Partition, PartitionState
from pupsourcing_sa.worker.processing.processor import Processor
from pupsourcing_sa.worker.stable_position import StablePosition

__all__ = ["Crew"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class _Member(NamedTuple):
    processor: Processor
    task: asyncio.Task[None]
    stopping: asyncio.Event
    began_at: int  # the position of the checkpoint

    @property
    def standing(self) -> PartitionState:
        """As the processor knows; before its first batch has come to an end, as the table said."""
        left = self.processor.standing
        return left._replace(position=max(left.position, self.began_at))


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

    def standings(self) -> dict[Partition, PartitionState]:
        """How the processors have left their partitions."""
        return {partition: member.standing for partition, member in self._running.items()}

    def adjust(self, wanted: Mapping[Partition, PartitionState], known: Mapping[Partition, PartitionState]) -> None:
        """Run these partitions and no others.

        A processor begins anew if it has ended, because it parked or was cancelled, and if somebody has changed its
        checkpoint: moved it back, to have events applied again, which it would not look at before there is another
        event; or set the time of the next attempt to NULL, to have a failing event tried at once.

        Args:
            wanted: the partitions, as the table says that they stand.
            known: what `standings` gave, before that was read; of those that begin, nothing.
        """
        for partition in self._running.keys() - wanted.keys():
            self._dismiss(partition)
        for partition, found in sorted(wanted.items()):
            member = self._running.get(partition)
            change = None if member is None else _change(found, known.get(partition, found), member.standing)
            if change is not None:
                where = {"consumer": partition[0], "partition": partition[1], "position": found.position}
                _logger.info(change, extra=self._details | where)
            if member is None or member.task.done() or change is not None:
                self._dismiss(partition)
                self._begin(partition, found.position)

    def dismiss_all(self) -> None:
        """No new batches; the running ones go on."""
        for partition in list(self._running):
            self._dismiss(partition)

    def _begin(self, partition: Partition, position: int) -> None:
        stopping = asyncio.Event()
        processor = self._hire(partition, stopping)
        task = asyncio.create_task(processor.run(self._stable), name=processor.name)
        self._running[partition] = _Member(processor, task, stopping, position)
        self._tell("worker.assigned", partition)

    def _dismiss(self, partition: Partition) -> None:
        if partition not in self._running:
            return
        member = self._running.pop(partition)
        member.stopping.set()
        self._stable.wake()  # it may be waiting for the position to move
        self._leaving.add(member.task)
        member.task.add_done_callback(self._gone)
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


def _change(found: PartitionState, left: PartitionState, now: PartitionState) -> str | None:
    """What somebody else has done to a partition, if the processor has to hear of it.

    Args:
        found: how the partition stood in the table.
        left: how the processor had left it before that was read.
        now: the same, since then. A processor that still waits for the same attempt has not had another one.
    """
    if found.position < left.position:
        return "checkpoint was moved back; going on from there"
    if left.is_waiting and now == left and not found.is_waiting:
        return "retry_at was set to NULL; trying the failing event now"
    return None
