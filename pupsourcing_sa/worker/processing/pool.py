"""The processor pool: one processor for each partition that is assigned to the node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pupsourcing_sa.postgres.redaction import redacted
from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.partition import Partition, PartitionState
from pupsourcing_sa.worker.processing.processor import Processor

__all__ = ["ProcessorPool"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class _Running(NamedTuple):
    processor: Processor
    task: asyncio.Task[None]
    #: Position of the checkpoint in the table when the processor was started.
    start_position: int

    @property
    def state(self) -> PartitionState:
        """The state that the processor knows. Until its first batch ends, the position is the one from the table."""
        state = self.processor.state
        return state._replace(position=max(state.position, self.start_position))


class ProcessorPool:
    """The running processors of a node.

    Args:
        worker_id: the node.
        create: creates the processor of a partition.
        hooks: telemetry.
        is_aborted: returns True if the node rolls back running batches, and cancels processors.
        hide_parameters: the worker's setting.
    """

    def __init__(
        self,
        worker_id: str,
        create: Callable[[Partition], Processor],
        hooks: Hooks,
        is_aborted: Callable[[], bool],
        *,
        hide_parameters: bool = True,
    ) -> None:
        self._details = {"worker": worker_id}
        self._create = create
        self._hooks = hooks
        self._is_aborted = is_aborted
        self._hide_parameters = hide_parameters
        self._running: dict[Partition, _Running] = {}
        self._stopping: dict[asyncio.Task[None], Processor] = {}
        self._is_new = True

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Tasks of the processors that have not ended, even if they were stopped."""
        return {running.task for running in self._running.values() if not running.task.done()} | self._stopping.keys()

    def batches(self) -> list[RunningBatch]:
        """Return the batches that run, even those of processors that were stopped."""
        processors = [*(running.processor for running in self._running.values()), *self._stopping.values()]
        return [batch for processor in processors if (batch := processor.batch) is not None]

    def states(self) -> dict[Partition, PartitionState]:
        """Return the state in which each processor left its partition."""
        return {partition: running.state for partition, running in self._running.items()}

    def adjust(self, wanted: Mapping[Partition, PartitionState], known: Mapping[Partition, PartitionState]) -> None:
        """Run these partitions and no others.

        This replaces a processor that has ended, because its partition was parked or its task was cancelled. It also
        replaces one whose checkpoint an operator has moved back, or whose ``retry_at`` an operator has cleared. Such a
        processor would read its row only for the next event, or for the next attempt.

        Args:
            wanted: the partitions to run, with their states in the table.
            known: the result of `states` before the table was read; empty if no processor is running.
        """
        for partition in self._running.keys() - wanted.keys():
            self._log("partition revoked", partition)
            self._stop(partition)
        for partition, found in sorted(wanted.items()):
            running = self._running.get(partition)
            if running is None:
                self._log("partition assigned" if self._is_new else "took over partition", partition, found.position)
            elif (change := _change(found, known.get(partition, found), running.state)) is not None:
                self._log(change, partition, found.position)
            elif running.task.done():
                self._log("partition assigned", partition, found.position)
            else:
                continue
            self._stop(partition)
            self._start(partition, found.position)
        self._is_new = False

    def stop_all(self) -> None:
        """Begin no batches. Running batches continue."""
        for partition in list(self._running):
            self._stop(partition)

    def _start(self, partition: Partition, position: int) -> None:
        processor = self._create(partition)
        self._running[partition] = _Running(processor, processor.start(), position)
        self._hooks.event("worker.assigned", consumer=partition.consumer, partition=partition.number)

    def _stop(self, partition: Partition) -> None:
        running = self._running.pop(partition, None)
        if running is None:
            return
        running.processor.stop()
        self._stopping[running.task] = running.processor
        running.task.add_done_callback(self._ended)
        self._hooks.event("worker.revoked", consumer=partition.consumer, partition=partition.number)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._stopping.pop(task, None)
        details = self._details | {"processor": task.get_name()}
        if task.cancelled():
            if not self._is_aborted():
                # Other code may cancel the handler's task after the handler has returned.
                _logger.error("processor was cancelled, but not by the worker", extra=details)
        elif (error := task.exception()) is not None:
            report = redacted(error, hide_parameters=self._hide_parameters)
            _logger.error("processor failed", exc_info=report, extra=details)

    def _log(self, message: str, partition: Partition, position: int | None = None) -> None:
        details = self._details | {"consumer": partition.consumer, "partition": partition.number}
        _logger.info(message, extra=details if position is None else details | {"position": position})


def _change(found: PartitionState, left: PartitionState, now: PartitionState) -> str | None:
    """Return the log message about a change by an operator; ``None`` if there is none.

    Args:
        found: the state in the table.
        left: the state in which the processor had left the partition before the table was read.
        now: the state in which it has left it now. If it still waits for the same attempt, it has not run since.
    """
    if found.position < left.position:
        return "checkpoint was moved back; restarting from there"
    if left.is_waiting and now == left and not found.is_waiting:
        return "retry_at was cleared; retrying the failing event now"
    return None
