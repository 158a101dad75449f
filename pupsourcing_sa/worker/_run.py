"""The parts that every run of a worker shares, as a node or as a drain."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.store.server_checks import CheckResult, check_server, raise_problem
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.coordination.membership import Membership
from pupsourcing_sa.worker.execution.protocol import Execution
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all
from pupsourcing_sa.worker.partition import Partition
from pupsourcing_sa.worker.processing.careful import Announcements
from pupsourcing_sa.worker.processing.checkpoint_fence import CheckpointFence, KnownLogs
from pupsourcing_sa.worker.processing.checkpoint_statements import CheckpointStatements
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.context import PartitionContext
from pupsourcing_sa.worker.processing.turn_lock import TurnLock

__all__ = ["Executions", "Processors", "Run"]

_logger = logging.getLogger("pupsourcing_sa.worker")
_T = TypeVar("_T")


class Executions(NamedTuple):
    """The executions of a run. Each has its own slots, so that heartbeats and polls never wait for batches.

    Attributes:
        batches: runs batches, at most ``concurrency`` at a time.
        log: runs the dispatcher's polls and opens its listener.
        coordination: runs the transactions of the node.
    """

    batches: Execution
    log: Execution
    coordination: Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a worker.

    Attributes:
        worker_id: id of the worker.
        store: the log.
        tables: nodes, assignments and checkpoints.
        subscriptions: the consumers by name.
        config: the worker's settings.
        hooks: telemetry.
        executions: run the database work.
        checked_servers: identities of the servers that have passed the self-check. The runs of a worker share it.
        statements: the statements about checkpoints, which the runs of a worker share.
        on_ready: called when the worker is ready; see `Worker.run`.
    """

    worker_id: UUID
    store: EventStore
    tables: WorkerTables
    subscriptions: Mapping[str, Subscription]
    config: WorkerConfig
    hooks: Hooks
    executions: Executions
    checked_servers: set[str]
    statements: CheckpointStatements
    on_ready: Callable[[], None] | None = None

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Log the start and the end of the worker."""
        details = {"worker": str(self.worker_id)}
        names = tuple(self.subscriptions)
        _logger.info("worker started", extra=details | {"consumers": names})
        self.hooks.event("worker.started", consumers=names)
        if self.on_ready is not None:
            self.on_ready()
        try:
            yield
        finally:
            _logger.info("worker stopped", extra=details)
            self.hooks.event("worker.stopped")

    def membership(self) -> Membership:
        """Return the membership of this run in its worker group."""
        log = LogName(self.store.tables, self.tables)
        return Membership(self.tables, log, self.worker_id, self.subscriptions.values(), self.config, self.hooks)

    async def check_server(self, server_identity: str) -> None:
        """Refuse a server that does not do what the stable position relies on; see `EventStore.check`.

        Tests drain a worker again and again. A server that has passed is not checked again until it is restarted.
        """
        if server_identity not in self.checked_servers:
            await self.executions.log("pupsourcing-check", lambda session, _: raise_problem(self.checks(session)))
            self.checked_servers.add(server_identity)

    def checks(self, session: Session) -> list[CheckResult]:
        """Run the self-check, and return the result of each step."""
        return check_server(session, self.store.reader, self.tables)

    async def coordinate(self, work: Callable[[Session], _T]) -> _T:
        """Run a transaction of the node."""
        return await self.executions.coordination("pupsourcing-coordination", lambda session, _: work(session))


class Processors:
    """The contexts of the processors of a run, and the roll-back of their batches.

    Args:
        run: the run.
        worker_id: the node that the partitions are assigned to; ``None`` for a drain, which is not a node.
        starts: position after which each reaction began.
    """

    def __init__(self, run: Run, worker_id: UUID | None, starts: Mapping[str, int]) -> None:
        self._run = run
        self._starts = starts
        self._worker_id = worker_id
        self._logs = KnownLogs(run.store.tables, run.tables)
        patience = run.config.stall_warning
        self._announcements = None if worker_id is None else Announcements(run.tables, worker_id, patience)
        self._turn_locks = {name: TurnLock(run.config.batch_time) for name in run.subscriptions}
        #: Batches read this in their threads.
        self._is_aborted = threading.Event()

    def context(self, partition: Partition, started_at: datetime | None = None) -> PartitionContext:
        """Return the context in which a processor runs the partition."""
        run, subscription = self._run, self._run.subscriptions[partition.consumer]
        return PartitionContext(
            subscription=subscription,
            scope=replace(subscription.scope, partition=partition.number),
            checkpoint=Checkpoint(
                run.tables,
                partition.consumer,
                partition.number,
                run.statements,
                CheckpointFence(self._logs, partition.consumer, subscription.scope.partitions),
                self._starts.get(partition.consumer),
            ),
            execution=run.executions.batches,
            store=run.store,
            config=run.config,
            is_aborted=self.is_aborted,
            hooks=run.hooks,
            turn_lock=self._turn_locks[partition.consumer],
            worker_id=self._worker_id,
            started_at=started_at,
            announcements=self._announcements,
        )

    def is_aborted(self) -> bool:
        """Return True if running batches must roll back."""
        return self._is_aborted.is_set()

    def abort(self) -> None:
        """Make running batches roll back before their next event."""
        self._is_aborted.set()

    async def roll_back(self, tasks: set[asyncio.Task[None]]) -> None:
        """Make running batches roll back, then cancel those that have not done so in time."""
        names = sorted(task.get_name() for task in tasks)
        _logger.error("batches did not finish in time; rolling them back", extra={"processors": names})
        self.abort()
        await asyncio.wait(tasks, timeout=shutdown.ROLL_BACK_SECONDS)
        await cancel_all(tasks)
