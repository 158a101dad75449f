"""The processor: runs the batches of one partition of one consumer, one after the other."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections.abc import Callable
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import Scope, Subscription
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.store._errors import is_lost_race, is_outage
from pupsourcing_sa.telemetry import NO_TELEMETRY, Hooks
from pupsourcing_sa.worker._backoff import delay_after, limit_after
from pupsourcing_sa.worker._batch import Batch, BatchFailed, Invoke, ShuttingDown, run_batch
from pupsourcing_sa.worker._checkpoints import Checkpoint
from pupsourcing_sa.worker._config import WorkerConfig
from pupsourcing_sa.worker._execution import Execution
from pupsourcing_sa.worker._stable import StablePosition, is_set_within

__all__ = ["Processor"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: A batch looks at so many positions at the most, so that a rare scope does not scan the whole log in one transaction.
_WINDOW = 100_000
#: The checkpoint moves over positions that hold nothing of the scope after so many of them, or so many seconds.
_IDLE_POSITIONS = 10_000
_IDLE_SECONDS = 5.0


class Processor:
    """Runs one partition of one consumer.

    Args:
        subscription: the consumer.
        scope: its scope, with the partition.
        checkpoint: where it has come to.
        execution: runs database work.
        store: where the events are.
        config: the worker's settings.
        stopping: set when no new batch is to be begun.
        is_aborted: whether a running batch is to be rolled back.
        hooks: what is told of batches and failures.
        worker_id: the node that the partition is assigned to; ``None`` if there is none.
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
    ) -> None:
        self.name = f"pupsourcing-{subscription.name}-{scope.partition}"
        self._subscription = subscription
        self._scope = scope
        self._checkpoint = checkpoint
        self._execution = execution
        self._store = store
        self._config = config
        self._stopping = stopping
        self._is_aborted = is_aborted
        self._hooks = hooks
        self._worker_id = worker_id
        self._known = Batch(scanned=0, checkpoint=-1, handled=0)  # nothing yet: no checkpoint lies before the log
        self._moved_at = time.monotonic()
        self._limit = config.batch_size
        self._failures = 0  # of the event that is failing now
        self._outages = 0  # in a row, of anything else
        self._details = {"consumer": subscription.name, "partition": scope.partition}

    async def look(self) -> int:
        """Where the checkpoint is.

        Raises:
            TablesMissingError: the worker's tables do not exist.
        """
        return await self._execution(self.name, lambda session, _: self._checkpoint.read(session))

    async def run(self, stable: StablePosition) -> None:
        """Follow the log until the worker stops. Failures are tried again, for ever."""
        while not self._stopping.is_set():
            up_to = await stable.beyond(self._known.scanned, self._stopping)
            if self._stopping.is_set():
                return
            try:
                is_ours = await self._run_batch(up_to, self._is_checkpoint_due)
            except ShuttingDown:
                return
            except Exception as error:
                await is_set_within(self._stopping, await self._failed(error))
            else:
                if not is_ours:
                    await is_set_within(self._stopping, self._config.max_poll_interval)

    async def drain(self, up_to: int) -> None:
        """Process everything up to a stable position. An event that fails ends it; its exception is raised."""
        failure: Exception | None = None
        while self._known.scanned < up_to and not self._stopping.is_set():
            try:
                is_ours = await self._run_batch(up_to, lambda passed: passed > 0)
            except ShuttingDown:
                return
            except Exception as error:
                cause = error.__cause__ if isinstance(error, BatchFailed) else error
                if is_lost_race(cause) or (isinstance(error, BatchFailed) and self._narrow_down(error)):
                    continue
                failure = error  # raised outside of this block, which would become part of its traceback
            if failure is not None:
                raise self._unwrapped(failure)
            if not is_ours:  # another process is at work on it, perhaps up to where we want it
                if await self.look() >= up_to:
                    return
                await is_set_within(self._stopping, self._config.poll_interval)

    def _unwrapped(self, error: Exception) -> BaseException:
        """What the handler raised, with a note of the event."""
        if not isinstance(error, BatchFailed) or error.__cause__ is None:
            return error
        error.__cause__.add_note(f"while consumer {self._subscription.name!r} handled {error.event!r}")
        return error.__cause__

    async def _run_batch(self, up_to: int, is_checkpoint_due: Callable[[int], bool]) -> bool:
        """Run one batch; tell whether the checkpoint was ours to move."""

        def work(session: Session, invoke: Invoke) -> Batch | None:
            return run_batch(
                session,
                invoke,
                store=self._store,
                subscription=self._subscription,
                scope=self._scope,
                checkpoint=self._checkpoint,
                known=self._known,
                up_to=up_to,
                window=_WINDOW,
                limit=self._limit,
                is_checkpoint_due=is_checkpoint_due,
                is_aborted=self._is_aborted,
            )

        batch = await self._execution(self.name, work)
        self._outages = 0
        if batch is None:
            return False
        if batch.checkpoint != self._known.checkpoint:
            self._moved_at = time.monotonic()
        if batch.handled:
            if self._failures:
                _logger.info("consumer goes on after a failure", extra=self._details | {"failures": self._failures})
            self._limit, self._failures = self._config.batch_size, 0
        self._known = batch
        return True

    def _is_checkpoint_due(self, passed: int) -> bool:
        """Whether to move the checkpoint over positions that held nothing of the scope."""
        return passed >= _IDLE_POSITIONS or (passed > 0 and time.monotonic() - self._moved_at >= _IDLE_SECONDS)

    def _narrow_down(self, failure: BatchFailed) -> bool:
        """Make the next batch smaller; tell whether that says something new, or the failing event is isolated."""
        self._limit = limit_after(len(failure.events), failure.failed)
        return bool(failure.failed) or (failure.failed is None and len(failure.events) > 1)

    async def _failed(self, error: Exception) -> float:
        """Log and record a failure; gives the seconds to wait before the next attempt."""
        cause = error.__cause__ if isinstance(error, BatchFailed) else error
        if is_lost_race(cause):
            return self._delay(1)
        if not isinstance(error, BatchFailed) or is_outage(cause):
            self._outages += 1
            _logger.warning("batch could not be run; will try again", exc_info=cause, extra=self._details)
            return self._delay(self._outages)
        if self._narrow_down(error):
            return 0.0
        self._failures += 1
        delay = self._delay(self._failures)
        event = error.event
        _logger.error(
            "handler failed; will try again",
            exc_info=cause,
            extra=self._details
            | {
                "event_id": str(event.event_id),
                "event_type": event.event_type,
                "global_position": event.global_position,
                "attempts": self._failures,
                "retry_after": delay,
            },
        )
        await self._record(event.global_position, "".join(traceback.format_exception(cause)), delay)
        return delay

    async def _record(self, position: int, text: str, delay: float) -> None:
        def work(session: Session, _: Invoke) -> None:
            self._checkpoint.record_failure(session, position=position, error=text, retry_after=delay)
            session.commit()

        try:
            await self._execution(self.name, work)
        except Exception:
            _logger.warning("failure could not be recorded", exc_info=True, extra=self._details)

    def _delay(self, failures: int) -> float:
        config = self._config
        return delay_after(failures, first=config.retry_delay, most=config.max_retry_delay, jitter=random.random())
