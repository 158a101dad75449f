"""Turns: batches of one partition that follow one another in one session, before other partitions get the slot.

A turn runs in a thread or a greenlet while the partition's loop waits for it. No attribute has two writers. The turn
gets the state of the partition and replaces it after each batch. The loop takes the state back when the turn has ended,
even with an exception.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from sqlalchemy.orm import Session

from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.worker.classification import may_be_lost_race
from pupsourcing_sa.worker.execution.protocol import BindHandler
from pupsourcing_sa.worker.processing.batch import BatchRequest, BatchTransaction
from pupsourcing_sa.worker.processing.careful import CarefulMode
from pupsourcing_sa.worker.processing.catch_up import CatchUp
from pupsourcing_sa.worker.processing.context import PartitionContext
from pupsourcing_sa.worker.processing.failures import Failures
from pupsourcing_sa.worker.processing.kept_instances import keeping_instances
from pupsourcing_sa.worker.processing.limits import BatchLimits, checkpoint_threshold
from pupsourcing_sa.worker.processing.outcomes import BatchError, BatchFailed, BatchResult, NodesDied, ShuttingDown
from pupsourcing_sa.worker.processing.overdue import BatchProgress, OverdueMonitor
from pupsourcing_sa.worker.processing.races import Races

__all__ = ["TurnState", "Turns"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: Length of a turn, in seconds. A shorter one would cost a thread for each batch.
_TURN_SECONDS: Final = 0.1
#: The result before the first batch: no checkpoint is at this position.
_NOTHING: Final = BatchResult(scanned=0, checkpoint=-1, handled=0)


@dataclass(frozen=True, slots=True)
class TurnState:
    """The state of a partition between two batches.

    Attributes:
        last: result of the last batch.
        limits: limits of the next batch.
        races: the lost races of the last batches.
        moved_at: time when the checkpoint moved, or when the processor was created.
        careful: the careful mode; ``None`` usually.
    """

    last: BatchResult
    limits: BatchLimits
    moved_at: float
    races: Races
    careful: CarefulMode | None = None

    def after(self, result: BatchResult, now: float, *, is_alone: bool) -> TurnState:
        """Return the state after another batch. ``is_alone`` is as for `Races.won`."""
        limits = self.limits.grown(has_events=result.handled > 0)
        races = self.races.won(limits.batch_size, is_alone=is_alone) if result.handled else self.races
        careful = self.careful and self.careful.after(result.handled, result.scanned)
        moved_at = self.moved_at if result.checkpoint == self.last.checkpoint else now
        return TurnState(result, limits, moved_at, races, careful)


@dataclass(slots=True)
class _Turn:
    """One turn. Its thread writes it until it ends; then the loop reads it.

    Attributes:
        state: the state after the last batch.
        batches: number of batches that ended without an exception.
        failures: number of earlier failures of events that were handled; ``None`` if no events were handled.
    """

    state: TurnState
    batches: int = 0
    failures: int | None = None


class Turns:
    """The turns of one partition. Used on the event loop, except for the work of a turn.

    Args:
        context: the partition.
        failures: is informed of batches that succeed.
        stopping: once it is set, no batch begins, and the running one ends with the current event.

    Attributes:
        state: the state of the partition; written by the event loop only.
    """

    def __init__(self, context: PartitionContext, failures: Failures, stopping: asyncio.Event) -> None:
        self._context = context
        self._failures = failures
        self._is_stopping = stopping.is_set
        self._transaction = BatchTransaction(context, stopping.is_set)
        self._overdue = OverdueMonitor(context.config.stall_warning, self._report_overdue, context.clock)
        self._catch_up = CatchUp()
        limits = BatchLimits.of(context.subscription.batch_size or context.config.batch_size)
        self.state = TurnState(_NOTHING, limits, context.clock(), Races())
        self._is_alone = True  # read in the turn, and written between turns
        self._suspected_position: int | None = None

    async def run(self, up_to: int, server_identity: str | None, *, is_draining: bool = False) -> bool:
        """Run batches up to a stable position, for one turn. Return False if another transaction has the checkpoint.

        Args:
            up_to: the stable position.
            server_identity: the server and database that it belongs to; ``None`` to trust that it is the session's.
            is_draining: retry a failing event before its time, and move the checkpoint over every position.

        Raises:
            Exception: as `BatchTransaction.run`, or from getting a connection.
        """
        turn = _Turn(self.state)
        work = keeping_instances(partial(self._work, turn, up_to, server_identity, is_draining))
        try:
            async with self._context.turn_lock.turn() as has_turn:
                self._is_alone = has_turn or self._context.scope.partitions == 1
                with self._overdue.watching():
                    has_lock = await self._execute(work)
        finally:
            was_careful, self.state = self.state.careful is not None, turn.state
            if was_careful and self.state.careful is None:
                _logger.info("events were handled one by one, and no node died", extra=self._context.details)
            if turn.batches:
                self._failures.batch_completed()
            if turn.failures is not None:
                self._failures.events_handled(turn.failures)
        if has_lock:
            self._report_catch_up(up_to)
        return has_lock

    @property
    def batch(self) -> RunningBatch | None:
        """The batch that runs; ``None`` between batches."""
        progress = self._overdue.progress
        if progress is None:
            return None
        seconds = self._context.clock() - progress.began_at
        return RunningBatch(**self._context.details, position=progress.position, seconds=round(seconds, 3))

    def be_careful(self, died: NodesDied, up_to: int) -> None:
        """Handle the next events one by one."""
        batch_size = self.state.limits.batch_size
        self.state = replace(self.state, careful=CarefulMode(batch_size, up_to))
        details = {"deaths": died.deaths, "events": batch_size}
        _logger.warning(
            "nodes died while they had this partition; handling events one by one",
            extra=self._context.details | details,
        )

    def narrow(self, error: BatchError) -> None:
        """Handle fewer events in the next batch."""
        self.state = replace(self.state, limits=self.state.limits.narrowed(error))

    def lose_race(self, error: BatchError) -> None:
        """Wait for the other partitions of the consumer in the next batches, or handle fewer events."""
        races = self.state.races
        if self._is_alone:
            races = races.lost(len(error.events), error.failed)
        else:
            self._context.turn_lock.lost()
            races = races.lost_beside()
        self.state = replace(self.state, races=races)

    def may_have_lost_race(self, failure: BatchFailed) -> bool:
        """Return True if another transaction may be the reason of an isolated failure, which then does not count.

        That may be so once for each event. The event is retried in a new snapshot.
        """
        position = failure.event.global_position
        if position == self._suspected_position or not may_be_lost_race(failure):
            return False
        self._suspected_position = position
        self.lose_race(failure)
        return True

    def shrink(self) -> None:
        """Read fewer positions, and handle fewer events, in the next batches."""
        self.state = replace(self.state, limits=self.state.limits.shrunk())

    async def _execute(self, work: Callable[[Session, BindHandler], bool]) -> bool:
        """Run a turn. In careful mode, no other partition of the node is in careful mode meanwhile."""
        context, announcements = self._context, self._context.announcements
        if self.state.careful is None or announcements is None:
            return await context.execution(context.name, work)

        def clear(session: Session, _: BindHandler) -> None:
            announcements.write(session, None)
            session.commit()

        async with announcements.alone():
            try:
                has_lock = await context.execution(context.name, work)
            except Exception:
                # The failure matters more. If the announcement stays and the process is killed before the next one, a
                # failed attempt too many is counted.
                with suppress(Exception):
                    await context.execution(context.name, clear)
                raise
            await context.execution(context.name, clear)
            return has_lock

    def _work(
        self,
        turn: _Turn,
        up_to: int,
        server_identity: str | None,
        is_draining: bool,
        session: Session,
        bind: BindHandler,
    ) -> bool:
        """Run the batches of a turn, in its thread or greenlet."""
        # The worker may have been stopped while the turn waited for a slot.
        if self._is_stopping():
            raise ShuttingDown
        context, clock = self._context, self._context.clock
        ends_at = clock() + _TURN_SECONDS
        info = dict(session.info)
        while True:
            state, now = turn.state, clock()
            request = BatchRequest(
                last=state.last,
                up_to=up_to,
                server_identity=server_identity,
                max_events=1 if state.careful else state.races.limit(state.limits.max_events, is_alone=self._is_alone),
                window=state.limits.window,
                checkpoint_threshold=1 if is_draining or state.careful else checkpoint_threshold(now - state.moved_at),
                ends_at=now + context.config.batch_time,
                is_contended=state.races.is_contended,
                ignore_retry_time=is_draining,
                careful=state.careful,
            )
            with context.hooks.span("worker.batch", **context.details) as data, self._overdue.batch() as progress:
                result = self._transaction.run(session, bind, request, progress)
                if result is not None:
                    data["events"], data["position"] = result.handled, result.checkpoint
            turn.batches += 1
            if result is None:
                return False
            turn.state = state.after(result, clock(), is_alone=self._is_alone)
            if result.handled:
                turn.failures = max(turn.failures or 0, result.failures)
            if result.scanned >= up_to or self._is_stopping() or clock() >= ends_at:
                return True
            # The next batch needs a session without instances, without a transaction, and with the factory's info.
            session.reset()
            session.info.clear()
            session.info.update(info)

    def _report_catch_up(self, up_to: int) -> None:
        scanned = self.state.last.scanned
        line = self._catch_up.line(scanned, up_to, self._context.clock())
        if line is not None:
            positions = {"position": scanned, "stable_position": up_to, "positions_left": max(0, up_to - scanned)}
            _logger.info(line, extra=self._context.details | positions)

    def _report_overdue(self, progress: BatchProgress, seconds: float) -> None:
        details = self._context.details | {"seconds": seconds} | progress.details()
        _logger.warning("batch is still running", extra=details)
        self._context.hooks.event("worker.batch_overdue", **details)
