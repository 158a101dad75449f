"""The node: a run of a worker that shares the partitions with other nodes.

::

                positions read, joined           stop()             batches ended, or
                                                                    shutdown_timeout is over
    starting ──────────────────────▶ following ────────▶ finishing ─────────────────────────▶ leaving ──▶ ended
     ▲  │ │ outage: retry            ▲    │ tick                                                ▲
     └──┘ │                          └────┘                                                     │
          └──────────── stop() ─────────────────────────────────────────────────────────────────┘

- *starting* retries through an outage of the database. Any other error ends the run.
- *following* ticks: it sends a heartbeat, plans if no other node does, and runs the partitions that are assigned to the
  node. When a tick fails, the processors keep running, and the next tick retries.
- *finishing* begins no batch. The node hands its partitions over at once. It keeps sending heartbeats, so that other
  nodes do not presume it dead and terminate its last batches. After ``shutdown_timeout`` it rolls them back.
- *leaving* deletes the node's row, unless the node cannot have joined. If that fails, the other nodes remove the row
  after ``heartbeat_timeout``.

Cancelling a node skips *finishing*. `shutdown` has the timeouts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final, TypeVar

from sqlalchemy.orm import Session

from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.store.positions import LogPositions
from pupsourcing_sa.worker._run import Processors, Run
from pupsourcing_sa.worker.classification import is_temporary
from pupsourcing_sa.worker.dispatch.dispatcher import Dispatcher, read_positions
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.outage import Outage
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all, wait_for_event, with_timeout
from pupsourcing_sa.worker.partition import Partition, PartitionState
from pupsourcing_sa.worker.processing.pool import ProcessorPool
from pupsourcing_sa.worker.processing.processor import Processor
from pupsourcing_sa.worker.stable_position import StablePosition

__all__ = ["Node"]

_logger = logging.getLogger("pupsourcing_sa.worker")
_T = TypeVar("_T")

#: Upper limit of the delay between two attempts to start, so that a worker starts soon after an outage ends.
_MAX_START_DELAY: Final = 5.0


class Node(Service):
    """A node of a worker group; see the module.

    The task raises `TablesMissingError`, `LogMismatchError`, `PartitionsError` and `StablePositionError` if the node
    cannot start.
    """

    def __init__(self, run: Run) -> None:
        super().__init__("pupsourcing-node")
        self._node_run = run
        self._details = {"worker": str(run.worker_id)}
        self._membership = run.membership()
        self._processors = Processors(run, run.worker_id, self._membership.starts)
        self._stable = StablePosition()
        self._pool = ProcessorPool(
            str(run.worker_id),
            lambda partition: Processor(self._processors.context(partition, self._membership.joined_at), self._stable),
            run.hooks,
            self._processors.is_aborted,
            hide_parameters=run.config.hide_parameters,
        )
        tick_interval = self._membership.tick_interval
        self._outage = Outage(
            "cannot reach the database to coordinate; will retry",
            "database reachable again",
            details=self._details,
            first_delay=tick_interval,
            max_delay=tick_interval,
            hide_parameters=run.config.hide_parameters,
        )
        self._may_have_joined = False

    def stop(self) -> None:
        # Stop the processors first: a tick in flight may take a while.
        self._pool.stop_all()
        super().stop()

    async def _run(self) -> None:
        # Log the stop after the node has left, because leaving may log messages, too.
        with ExitStack() as announced:
            try:
                started = await self._unless_stopped(self._start())
                if started is not None:
                    announced.enter_context(self._node_run.announced())
                    await self._work(*started)
            finally:
                if self._may_have_joined:
                    self._membership.abandon_join()
                    await self._coordinate(self._membership.leave, shutdown.LEAVE_SECONDS)

    async def _start(self) -> tuple[LogPositions, dict[Partition, PartitionState]]:
        """Read the positions and join. Retry through an outage.

        psycopg reports no SQLSTATE for a failure to connect. A wrong password is therefore retried with psycopg, and
        raised with asyncpg.
        """
        config = self._node_run.config
        outage = Outage(
            "cannot connect to the database; will retry",
            "database reachable again",
            details=self._details,
            first_delay=config.retry_delay,
            max_delay=min(config.max_retry_delay, _MAX_START_DELAY),
            is_each_logged=True,
            hide_parameters=config.hide_parameters,
        )
        while True:
            try:
                positions = await read_positions(self._node_run.executions.log, self._node_run.store)
                await self._node_run.check_server(positions.server_identity)
                self._membership.begin_reactions_at(positions.stable)
                # Set this before joining: after a cancellation, a thread may still finish the transaction.
                self._may_have_joined = True
                partitions = await self._node_run.coordinate(self._membership.join)
            except Exception as error:
                self._may_have_joined = False
                self._membership.note_outage()
                if not is_temporary(error):
                    raise
                delay = outage.failed(error)
            else:
                outage.over()
                return positions, partitions
            await asyncio.sleep(delay)

    async def _work(self, positions: LogPositions, partitions: dict[Partition, PartitionState]) -> None:
        run = self._node_run
        self._stable.publish(positions.stable, positions.server_identity)
        self._pool.adjust(partitions, {})
        dispatcher = Dispatcher(
            run.executions.log, run.store, self._stable, run.config, worker_id=run.worker_id, hooks=run.hooks
        )
        dispatching = dispatcher.start()
        dispatching.add_done_callback(lambda _: self.stop())  # a node without a dispatcher processes nothing
        try:
            await self._follow()
            dispatcher.stop()
            await self._finish()
            if dispatching.done():
                await dispatching  # raises its error if it failed
        finally:
            self._pool.stop_all()
            self._processors.abort()
            await cancel_all({dispatching, *self._pool.tasks})

    async def _follow(self) -> None:
        """Run the partitions that are assigned to the node, until it is stopped."""
        while not await wait_for_event(self.stopping, self._membership.tick_interval):
            # Read this before the tick reads the table: a batch that commits during the tick changes its row.
            known = self._pool.states()
            partitions = await self._coordinate(partial(self._tick, self._pool.batches()))
            if partitions is not None and not self.stopping.is_set():
                self._pool.adjust(partitions, known)

    def _tick(self, batches: list[RunningBatch], session: Session) -> dict[Partition, PartitionState]:
        partitions = self._membership.tick(session, batches)
        if partitions is not None:
            return partitions
        session.rollback()
        partitions = self._membership.join(session)
        _logger.warning("node was presumed dead; rejoined", extra=self._details)
        self._node_run.hooks.event("worker.rejoined")
        return partitions

    async def _finish(self) -> None:
        """Wait for running batches while other nodes take over the partitions."""
        config, pool = self._node_run.config, self._pool
        # `stop` found no processors if it was called while the node joined.
        pool.stop_all()
        # Let idle processors end.
        await asyncio.sleep(0)
        _logger.info(
            "worker is stopping; running batches may finish",
            extra=self._details | {"batches": len(pool.tasks), "shutdown_timeout": config.shutdown_timeout},
        )
        ends_at = asyncio.get_running_loop().time() + config.shutdown_timeout
        if pool.tasks:
            await self._coordinate(self._membership.hand_over, config.shutdown_timeout)
        while pool.tasks and (seconds := ends_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(pool.tasks, timeout=min(seconds, config.heartbeat_interval))
            if pool.tasks and (seconds := ends_at - asyncio.get_running_loop().time()) > 0:
                heartbeat = partial(self._membership.tick, batches=pool.batches())
                await self._coordinate(heartbeat, seconds)
        if pool.tasks:
            await self._processors.roll_back(pool.tasks)

    async def _coordinate(self, work: Callable[[Session], _T], seconds: float | None = None) -> _T | None:
        """Run a transaction of the node; return ``None`` if it fails or times out.

        Args:
            work: the transaction.
            seconds: the timeout; ``None`` for the longest one, which `stop` cuts short.
        """
        config = self._node_run.config
        # A heartbeat begins one interval after the last. Use half of the time left until the node is presumed dead:
        # the other half is for another attempt, over another connection.
        longest = (config.heartbeat_timeout - config.heartbeat_interval) / 2
        try:
            if seconds is None:
                result = await with_timeout(longest, self._node_run.coordinate(work), self.stopping)
            else:
                result = await with_timeout(min(seconds, longest), self._node_run.coordinate(work))
        except Exception as error:
            self._outage.failed(error)
            return None
        self._outage.over()
        return result
