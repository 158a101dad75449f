"""A run as one node among others: join, follow the assignments, leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.orm import Session

from pupsourcing_sa.store.positions import LogPositions
from pupsourcing_sa.worker._run import Run
from pupsourcing_sa.worker.coordination.membership import Membership
from pupsourcing_sa.worker.dispatch.dispatcher import dispatch, look
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all, wait_for_event, with_timeout
from pupsourcing_sa.worker.partition import Partition, PartitionState
from pupsourcing_sa.worker.processing.pool import Crew
from pupsourcing_sa.worker.stable_position import StablePosition

__all__ = ["run_node"]

_logger = logging.getLogger("pupsourcing_sa.worker")
_T = TypeVar("_T")


async def run_node(run: Run) -> None:
    """Be a node until the run is to end.

    Raises:
        TablesMissingError, PartitionsError, StablePositionError: a reason not to start.
    """
    await _Node(run).run()


class _Node:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._details = {"worker": str(run.worker_id)}
        self._membership = Membership(run.tables, run.worker_id, run.subscriptions.values(), run.config, run.hooks)
        self._failures = 0  # to coordinate, in a row
        self._may_have_joined = False

    async def run(self) -> None:
        try:
            started = await self._run.unless_stopped(self._start)
            if started is not None:
                await self._work(*started)
        finally:
            if self._may_have_joined:
                self._membership.abandon()
                await self._attempt(self._membership.leave, shutdown.LEAVE_SECONDS)

    async def _work(self, found: LogPositions, partitions: dict[Partition, PartitionState]) -> None:
        run, stable = self._run, StablePosition()
        stable.publish(found.stable, found.server_identity)
        crew = Crew(
            str(run.worker_id),
            lambda partition, stopping: run.processor(partition, stopping, worker_id=run.worker_id),
            stable,
            run.hooks,
            run.is_aborted.is_set,
        )
        with run.announced():
            crew.adjust(partitions, {})
            watch = dispatch(
                run.lookout,
                run.store,
                stable,
                run.config,
                run.stopping,
                worker_id=run.worker_id,
                hooks=run.hooks,
            )
            dispatcher = asyncio.create_task(watch, name="pupsourcing-dispatcher")
            dispatcher.add_done_callback(lambda _: run.stopping.set())  # nothing would move without it
            try:
                await self._follow(crew)
                await self._finish(crew)
                if dispatcher.done():
                    await dispatcher  # why it ended
            finally:
                crew.dismiss_all()
                run.is_aborted.set()
                await cancel_all({dispatcher, *crew.tasks})

    async def _start(self) -> tuple[LogPositions, dict[Partition, PartitionState]]:
        try:
            found = await look(self._run.lookout, self._run.store)
            self._may_have_joined = True  # also when this is cancelled, and its thread goes on
            return found, await self._run.coordinate(self._membership.join)
        except Exception:
            self._may_have_joined = False
            self._membership.distrust()
            raise

    async def _follow(self, crew: Crew) -> None:
        """Run what is assigned, until the run is to end."""
        while not await wait_for_event(self._run.stopping, self._membership.tick_interval):
            known = crew.standings()  # before the tick reads the table: a batch that ends meanwhile changes it itself
            partitions = await self._attempt(self._tick)
            if partitions is not None and not self._run.stopping.is_set():
                crew.adjust(partitions, known)

    def _tick(self, session: Session) -> dict[Partition, PartitionState]:
        partitions = self._membership.tick(session)
        if partitions is not None:
            return partitions
        session.rollback()
        partitions = self._membership.join(session)
        _logger.warning("node had been taken for dead; it has joined again", extra=self._details)
        self._run.hooks.event("worker.rejoined")
        return partitions

    async def _finish(self, crew: Crew) -> None:
        """Let the running batches end, while others take the partitions over."""
        run = self._run
        crew.dismiss_all()
        await asyncio.sleep(0)
        _logger.info(
            "worker is stopping; running batches may finish",
            extra=self._details | {"batches": len(crew.tasks), "shutdown_timeout": run.config.shutdown_timeout},
        )
        ends_at = asyncio.get_running_loop().time() + run.config.shutdown_timeout
        if crew.tasks:
            await self._attempt(self._membership.retire, run.config.shutdown_timeout)
        while crew.tasks and (left := ends_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(crew.tasks, timeout=min(left, run.config.heartbeat_interval))
            if crew.tasks and (left := ends_at - asyncio.get_running_loop().time()) > 0:
                await self._attempt(self._membership.tick, left)  # to stay alive
        if crew.tasks:
            await run.roll_back(crew.tasks)

    async def _attempt(self, work: Callable[[Session], _T], seconds: float | None = None) -> _T | None:
        """Coordinate; ``None`` if that is not possible now, or takes too long. The processors go on in the meantime.

        Args:
            work: the transaction.
            seconds: how long it may take; without it, until the run is to end, and a moment.
        """
        config = self._run.config
        # A beat begins one interval after the last. Half of the time that is left then is for another one, over another
        # connection.
        patience = (config.heartbeat_timeout - config.heartbeat_interval) / 2
        try:
            if seconds is None:
                result = await with_timeout(patience, self._run.coordinate(work), self._run.stopping)
            else:
                result = await with_timeout(min(seconds, patience), self._run.coordinate(work))
        except Exception as error:
            if not self._failures:  # once for each outage
                _logger.warning(
                    "cannot coordinate with other nodes; will try again", exc_info=error, extra=self._details
                )
            self._failures += 1
            return None
        if self._failures:
            _logger.info("can coordinate again", extra=self._details | {"failures": self._failures})
        self._failures = 0
        return result
