"""The processor: runs the batches of one partition of one consumer, one after the other.

What a processor does next::

            ┌────────────── nothing new: wait for the stable position ◀──────────────────┐
            ▼                                                                            │
         batch ── committed ─────────────────────────────────────────── more? ── no ─────┘
            ├──── locked by somebody else ────────── end it if it is dead; wait, again
            ├──── lost connection, deadlock … ────── wait, again; nothing is counted. A connection that is lost again
            │                                        and again, with events: again with fewer of them, and at last
            │                                        show the event in the table
            ├──── failed, not known by which event ─ again with fewer events
            ├──── failed by its only event ───────── count it in the table; wait, again
            │                                        or park: the processor ends
            ├──── a handler has committed ────────── park: the processor ends
            └──── parked ─────────────────────────── the processor ends

What is known of a failing event is in the table and survives the process: whoever runs the partition next tries it
alone, when it is due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Scope, Subscription
from pupsourcing_sa.errors import PartitionParkedError
from pupsourcing_sa.postgres.errors import is_privilege_missing, is_query_canceled
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.telemetry import NO_TELEMETRY, Hooks
from pupsourcing_sa.worker.backoff import limit_after
from pupsourcing_sa.worker.classification import is_lost_race
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.execution.protocol import BindHandler, Execution
from pupsourcing_sa.worker.lifecycle.tasks import wait_for_event
from pupsourcing_sa.worker.partition import PartitionState
from pupsourcing_sa.worker.processing.batch import (
    Batch,
    BatchCommitted,
    BatchDisturbed,
    BatchFailed,
    BatchStopped,
    RetryLater,
    Share,
    ShuttingDown,
    run_batch,
)
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.failures import Failures
from pupsourcing_sa.worker.processing.lock_watch import Holders, LockWatch
from pupsourcing_sa.worker.processing.progress import Patience, Progress
from pupsourcing_sa.worker.stable_position import StablePosition

__all__ = ["Processor"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: A batch looks at so many positions at the most, so that a rare scope does not scan the whole log in one transaction.
_WINDOW: Final = 100_000
#: The checkpoint moves over positions that hold nothing of the scope after so many of them, or so many seconds.
_IDLE_POSITIONS: Final = 10_000
_IDLE_SECONDS: Final = 5.0
#: Batches follow one another for so many seconds before others, who wait for one of the `concurrency` slots, get it.
_TURN_SECONDS: Final = 0.1


class Processor:
    """Runs one partition of one consumer.

    Args:
        subscription: the consumer.
        scope: its scope, with the partition.
        checkpoint: where it has come to.
        execution: runs database work.
        store: where the events are.
        config: the worker's settings.
        stopping: set when no new batch is to be begun, and the running one is to end with the event it is at.
        is_aborted: whether a running batch is to be rolled back.
        hooks: what is told of batches and failures.
        worker_id: the node that the partition is assigned to; ``None`` if there is none.
        clock: seconds, as of ``time.monotonic``.
    """

    def __init__(
        self,
        subscription: Subscription,
        scope: Scope,
        checkpoint: Checkpoint,
        *,
        execution: Execution,
        store: EventStore,
        config: WorkerConfig,
        stopping: asyncio.Event,
        is_aborted: Callable[[], bool],
        hooks: Hooks = NO_TELEMETRY,
        worker_id: UUID | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = f"pupsourcing-{subscription.name}-{scope.partition}"
        self._share = Share(subscription, scope, store, checkpoint, worker_id, is_aborted)
        self._holders = Holders(checkpoint)
        self._lock_watch = LockWatch(config.heartbeat_timeout)
        self._execution = execution
        self._config = config
        self._stopping = stopping
        self._hooks = hooks
        self._clock = clock
        self._details = {"consumer": subscription.name, "partition": scope.partition}
        self._failures = Failures(
            checkpoint,
            subscription.max_attempts,
            worker_id=worker_id,
            execution=execution,
            name=self.name,
            config=config,
            hooks=hooks,
        )
        self._patience = Patience(config.stall_warning, self._complain, clock)
        self._batch_size = subscription.batch_size or config.batch_size
        self._known = Batch(scanned=0, checkpoint=-1, handled=0)  # nothing yet: no checkpoint lies before the log
        self._moved_at = clock()
        self._limit = self._batch_size
        self._divisor = 1  # of what is read at once
        self._may_end_holders = True
        self._is_waiting = False

    @property
    def standing(self) -> PartitionState:
        """How the last batch has left the partition."""
        return PartitionState(self._known.checkpoint, self._is_waiting)

    async def look(self) -> int:
        """Where the checkpoint is.

        Raises:
            TablesMissingError: the worker's tables do not exist.
        """
        return await self._execution(self.name, lambda session, _: self._share.checkpoint.read(session))

    async def run(self, stable: StablePosition) -> None:
        """Follow the log until the processor is stopped, or the partition parked. Failures are tried again."""
        while not self._stopping.is_set():
            up_to = await self._news(stable)
            if self._stopping.is_set():
                return
            try:
                is_ours = await self._run_batches(
                    up_to, stable.server_identity, self._is_checkpoint_due, lambda remaining: False
                )
                if not is_ours:
                    await self._look_at_holders()
                elif self._lock_watch.has_ended():
                    _logger.info("checkpoint is not locked any more", extra=self._details)
            except (PartitionParkedError, ShuttingDown):
                return
            except RetryLater as early:
                # No longer than that, whatever the database's clock says.
                await self._wait_for_retry(min(early.seconds, self._config.max_retry_delay))
            except BatchFailed as failure:
                if not self._narrow_down(failure):
                    pause = await self._failures.record(failure)
                    if pause is None:
                        return
                    await self._wait_for_retry(pause)
            except BatchCommitted as committed:
                await self._park(committed)
                return
            except Exception as error:
                self._yield_to_others(error)
                self._read_less(error)
                is_isolated = self._failures.suspects(error) and not self._narrow_down(error)
                await self._pause(await self._failures.disturbed(error, is_isolated=is_isolated))
            else:
                if not is_ours:
                    await self._pause(self._config.max_poll_interval)

    async def _news(self, stable: StablePosition) -> int:
        """The stable position, once it has moved, or the checkpoint is to follow what has been scanned."""
        known = self._known
        overdue = _IDLE_SECONDS - (self._clock() - self._moved_at) if 0 <= known.checkpoint < known.scanned else None
        with suppress(TimeoutError):
            async with asyncio.timeout(overdue):
                return await stable.beyond(known.scanned, self._stopping, server_identity=known.origin)
        return stable.value

    async def drain(self, up_to: int, origin: str | None = None) -> None:
        """Process everything up to a stable position, of this origin, at once, also what is to be tried again later.

        Raises:
            PartitionParkedError: the partition is parked.
            Exception: what a handler raised; it is not counted. Deadlocks and serialization failures are tried again.
                If it committed, the partition is parked.
        """
        failure: Exception | None = None
        while self._known.scanned < up_to and not self._stopping.is_set():
            try:
                is_ours = await self._run_batches(up_to, origin, lambda passed: passed > 0, lambda remaining: True)
            except ShuttingDown:
                return
            except BatchCommitted as committed:
                await self._failures.park(committed)
                failure = committed
            except Exception as error:
                if is_lost_race(error):
                    self._yield_to_others(error)
                    await self._pause(await self._failures.disturbed(error))
                    continue
                if self._read_less(error) or (isinstance(error, BatchFailed) and self._narrow_down(error)):
                    continue
                failure = error  # raised outside of this block, which would become part of its traceback
            if failure is not None:
                raise self._unwrapped(failure)
            if not is_ours:  # another process is at work on it, perhaps up to where we want it
                if await self.look() >= up_to:
                    return
                await self._pause(self._config.poll_interval)

    def _unwrapped(self, error: Exception) -> BaseException:
        """What the handler raised."""
        cause = error.__cause__
        if not isinstance(error, BatchStopped) or cause is None:
            return error
        if isinstance(cause, asyncio.CancelledError):  # which of a task means that it was cancelled itself
            cancelled = RuntimeError(f"the handler of consumer {self._details['consumer']!r} was cancelled")
            cancelled.__cause__ = cause
            cause = cancelled
        return cause

    async def _park(self, committed: BatchCommitted) -> None:
        """Park the partition, however often that has to be tried: another batch would apply its events again."""
        while (pause := await self._failures.park(committed)) is not None and not self._stopping.is_set():
            await self._pause(pause)

    async def _wait_for_retry(self, seconds: float) -> None:
        self._is_waiting = self._failures.is_recorded
        await self._pause(seconds)
        self._is_waiting = False

    async def _pause(self, seconds: float) -> None:
        await wait_for_event(self._stopping, seconds)

    # -- batches -----------------------------------------------------------------------------------------------

    async def _run_batches(
        self,
        up_to: int,
        origin: str | None,
        is_checkpoint_due: Callable[[int], bool],
        is_retry_due: Callable[[float], bool],
    ) -> bool:
        """Run batches up to a position, for a turn at the most; tell whether the checkpoint was ours to move."""

        def work(session: Session, bind: BindHandler) -> bool:
            if self._stopping.is_set():  # while this was waiting for its turn
                raise ShuttingDown
            turn_ends_at = self._clock() + _TURN_SECONDS
            while True:
                with self._hooks.span("worker.batch", **self._details) as data, self._patience.batch() as progress:
                    batch = run_batch(
                        session,
                        bind,
                        self._share,
                        self._known,
                        up_to=up_to,
                        origin=origin,
                        window=max(1, _WINDOW // self._divisor),
                        limit=max(1, self._limit // self._divisor),
                        progress=progress,
                        is_checkpoint_due=is_checkpoint_due,
                        is_retry_due=is_retry_due,
                        is_over=self._end_of_batch(),
                    )
                    if batch is not None:
                        data["events"], data["position"] = batch.handled, batch.checkpoint
                self._failures.undisturbed()
                if batch is None:
                    return False
                self._committed(batch)
                if batch.scanned >= up_to or self._stopping.is_set() or self._clock() >= turn_ends_at:
                    return True
                session.reset()  # as good as a new one

        with self._patience.watching():
            return await self._execution(self.name, work)

    def _end_of_batch(self) -> Callable[[], bool]:
        """What tells of a batch that begins now whether it is to end with the event that it is at."""
        clock, is_stopping = self._clock, self._stopping.is_set  # who is aborted was told to stop before
        ends_at = clock() + self._config.batch_time
        return lambda: clock() >= ends_at or is_stopping()

    def _committed(self, batch: Batch) -> None:
        if batch.checkpoint != self._known.checkpoint:
            self._moved_at = self._clock()
        self._known = batch
        self._divisor = max(1, self._divisor // 2)
        if batch.handled:
            self._limit = min(2 * self._limit, self._batch_size)
            self._failures.passed(batch.failures)

    def _is_checkpoint_due(self, passed: int) -> bool:
        """Whether to move the checkpoint over positions that held nothing of the scope."""
        return passed >= _IDLE_POSITIONS or (passed > 0 and self._clock() - self._moved_at >= _IDLE_SECONDS)

    def _complain(self, progress: Progress, seconds: float) -> None:
        """Nobody knows whether the batch will ever end."""
        details = self._details | {"seconds": seconds} | progress.where()
        _logger.warning("batch has been running for long", extra=details)
        self._hooks.event("worker.batch_overdue", **details)

    async def _look_at_holders(self) -> None:
        """The checkpoint of a partition that is assigned to us is locked: end who is dead, tell of anybody else."""
        if self._share.worker_id is None:
            return
        is_ending = self._may_end_holders
        try:
            held = await self._execution(self.name, lambda session, _: self._holders.look(session, is_ending=is_ending))
        except Exception as error:
            if not is_ending or not is_privilege_missing(error):
                raise
            self._may_end_holders = False
            _logger.warning(
                "a dead node holds the checkpoint, and this role may not end its backend",
                exc_info=True,
                extra=self._details,
            )
            return
        if held is not None and held.is_ended:
            who = {"pid": held.holder.pid, "application_name": held.holder.application_name}
            _logger.warning("ended the transaction of a dead node", extra=self._details | who)
            self._hooks.event("worker.holder_ended", **self._details, pid=held.holder.pid)
            return
        seconds = self._lock_watch.overdue(held.transaction if held else "", self._clock())
        if seconds is not None:
            details = self._details | {"seconds": seconds} | (held.holder.to_dict() if held else {})
            _logger.warning("another transaction has locked the checkpoint; waiting for its end", extra=details)
            self._hooks.event("worker.locked_out", **details)

    def _yield_to_others(self, error: Exception) -> None:
        """After a lost race, make the next batch smaller: it locks fewer rows, for less long."""
        if isinstance(error, BatchDisturbed) and is_lost_race(error):
            self._narrow_down(error)

    def _read_less(self, error: Exception) -> bool:
        """After a statement of the worker's own that took too long, read less at once; tell whether that is possible.

        It is reading, as the others find one row: large events, or a rare scope, and a ``statement_timeout``.
        """
        if not is_query_canceled(error) or self._divisor >= max(_WINDOW, self._batch_size):
            return False
        self._divisor *= 2
        return True

    def _narrow_down(self, failure: BatchStopped) -> bool:
        """Make the next batch smaller; tell whether that says something new, or the failing event is isolated."""
        self._limit = limit_after(len(failure.events), failure.failed)
        return bool(failure.failed) or (failure.failed is None and len(failure.events) > 1)
