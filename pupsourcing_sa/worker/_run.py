"""What one run of a worker consists of, whether it is one node among others or drains the log and returns."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.postgres.errors import is_lock_timeout
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.classification import is_lost_race, is_outage
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.execution.protocol import Execution
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.outage import Outage
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all, wait_for_event
from pupsourcing_sa.worker.partition import Partition
from pupsourcing_sa.worker.processing.checkpoint_statements import CheckpointStatements
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.processor import Processor

__all__ = ["Run"]

_logger = logging.getLogger("pupsourcing_sa.worker")
_T = TypeVar("_T")

#: Upper limit of the delay between two attempts to start, so that a worker starts soon after an outage ends.
_MAX_START_DELAY: Final = 5.0


@dataclass(frozen=True, slots=True)
class Run:
    """Shared by all parts of a run.

    Attributes:
        worker_id: the worker's.
        store: where the events are.
        tables: where the nodes, assignments and checkpoints are.
        subscriptions: the consumers, by name.
        config: the worker's settings.
        hooks: what is told of everything.
        batches: runs batches, so many at a time.
        lookout: runs the dispatcher's looks and opens its listener; apart from batches, so that it waits for none.
        coordination: runs the transactions of the node; for the same reason.
        stopping: set when the run is to end.
        is_aborted: set when running batches are to be rolled back.
        checkpoints: the statements that all processors share.
    """

    worker_id: UUID
    store: EventStore
    tables: WorkerTables
    subscriptions: Mapping[str, Subscription]
    config: WorkerConfig
    hooks: Hooks
    batches: Execution
    lookout: Execution
    coordination: Execution
    stopping: asyncio.Event
    is_aborted: threading.Event
    checkpoints: CheckpointStatements

    def processor(self, partition: Partition, stopping: asyncio.Event, *, worker_id: UUID | None) -> Processor:
        """The processor of a partition.

        Args:
            partition: the partition.
            stopping: set when it is not to begin another batch.
            worker_id: the node that the partition is assigned to; ``None`` if there is none.
        """
        name, number = partition
        subscription = self.subscriptions[name]
        return Processor(
            subscription,
            replace(subscription.scope, partition=number),
            Checkpoint(self.tables, name, number, self.checkpoints),
            execution=self.batches,
            store=self.store,
            config=self.config,
            stopping=stopping,
            is_aborted=self.is_aborted.is_set,
            hooks=self.hooks,
            worker_id=worker_id,
        )

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Say that the worker starts, and that it has stopped."""
        details = {"worker": str(self.worker_id)}
        names = tuple(self.subscriptions)
        _logger.info("worker started", extra=details | {"consumers": names})
        self.hooks.event("worker.started", consumers=names)
        try:
            yield
        finally:
            _logger.info("worker stopped", extra=details)
            self.hooks.event("worker.stopped")

    async def coordinate(self, work: Callable[[Session], _T]) -> _T:
        """Run a transaction of the node."""
        return await self.coordination("pupsourcing-coordination", lambda session, _: work(session))

    async def unless_stopped(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T | None:
        """Return the result of the work, retrying through an outage; ``None`` if the run is stopped before.

        psycopg gives no SQLSTATE for a failure to connect. A wrong password is therefore retried with psycopg, and
        raised with asyncpg.

        Raises:
            Exception: any error that an outage does not explain.
        """
        outage = Outage(
            "cannot connect to the database; will retry",
            "database reachable again",
            details={"worker": str(self.worker_id)},
            first_delay=self.config.retry_delay,
            max_delay=min(self.config.max_retry_delay, _MAX_START_DELAY),
            is_each_logged=True,
        )
        stopped = asyncio.create_task(self.stopping.wait(), name="pupsourcing-stopped")
        task: asyncio.Task[_T] | None = None
        try:
            while not self.stopping.is_set():
                task = asyncio.create_task(work(), name="pupsourcing-start")
                await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    return None
                error = task.exception()
                if error is None:
                    outage.over()
                    return task.result()
                if not _is_retried(error):
                    raise error
                await wait_for_event(self.stopping, outage.failed(error))
        finally:
            # The task may wait for a server that does not answer.
            await cancel_all({stopped} if task is None else {stopped, task})
        return None

    async def roll_back(self, tasks: set[asyncio.Task[None]]) -> None:
        """Have running batches rolled back; leave behind those that do not come to it."""
        names = sorted(task.get_name() for task in tasks)
        _logger.error("batches did not finish in time; rolling them back", extra={"processors": names})
        self.is_aborted.set()  # a thread sees it before its next event
        _, running = await asyncio.wait(tasks, timeout=shutdown.ROLL_BACK_SECONDS)
        for task in running:
            task.cancel()


def _is_retried(error: BaseException) -> bool:
    """Return True if the next attempt to start may succeed."""
    # asyncpg raises the operating system's own errors when it cannot connect.
    return is_outage(error) or is_lost_race(error) or is_lock_timeout(error) or isinstance(error, OSError)
