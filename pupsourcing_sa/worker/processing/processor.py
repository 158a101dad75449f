"""The processor: the loop of one partition of one consumer.

::

    wait until the stable position has moved ◀────────────────────────────────────────────────────┐
      │                                                                                           │
      ▼                                                                                           │
    run a turn of batches ──┬─ committed ─────────────────────────────────────────────────────────┤
                            ├─ locked by another transaction: see lock_watch ────────── delay ────┤
                            ├─ the next event has failed, and is not due ────────────── delay ────┤
                            ├─ nodes have died in this partition: see careful ─ one by one ───────┤
                            ├─ interrupted: lost race, see races ────────────────────── delay ────┤
                            ├─ a statement of the worker timed out ─ read less ──────── delay ────┤
                            ├─ interrupted: outage ──────────────────────────────────── delay ────┤
                            │    the third in a row: search for the event, with fewer events      │
                            │    the fifth of an isolated event: show it in the table             │
                            ├─ failed, by one of several events ──── fewer events ────────────────┤
                            ├─ failed, by an isolated event: count it ──────────────── delay ─────┘
                            │                                  or park the partition ────┐
                            ├─ a handler has committed: park the partition ──────────────┤
                            ├─ the partition is parked, or the worker stops ─────────────┤
                            └─ the checkpoint belongs to another log ────────────────────┴──▶ end

The table records the failing event. The next process that runs the partition retries it alone when it is due.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from pupsourcing_sa.errors import LogMismatchError, PartitionParkedError, PartitionsError
from pupsourcing_sa.postgres.errors import is_query_canceled
from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.worker.classification import is_lost_race
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.lifecycle.tasks import wait_for_event
from pupsourcing_sa.worker.partition import PartitionState
from pupsourcing_sa.worker.processing.context import PartitionContext
from pupsourcing_sa.worker.processing.failures import Failures
from pupsourcing_sa.worker.processing.limits import checkpoint_delay
from pupsourcing_sa.worker.processing.lock_watch import LockWatch
from pupsourcing_sa.worker.processing.outcomes import (
    BatchCommitted,
    BatchFailed,
    BatchInterrupted,
    NodesDied,
    RetryLater,
    ShuttingDown,
)
from pupsourcing_sa.worker.processing.turns import Turns
from pupsourcing_sa.worker.stable_position import StablePosition

__all__ = ["Processor"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Processor(Service):
    """The service that runs one partition of one consumer until it is stopped, or the partition is parked.

    Args:
        context: the partition.
        stable: the stable position, published by the dispatcher.
    """

    def __init__(self, context: PartitionContext, stable: StablePosition) -> None:
        super().__init__(context.name)
        self._context = context
        self._stable = stable
        self._failures = Failures(context)
        self._turns = Turns(context, self._failures, self.stopping)
        self._lock_watch = LockWatch(context)
        self._is_waiting = False

    @property
    def batch(self) -> RunningBatch | None:
        """The batch that runs; ``None`` between batches."""
        return self._turns.batch

    @property
    def state(self) -> PartitionState:
        """The state in which the last turn has left the partition."""
        return PartitionState(self._turns.state.last.checkpoint, self._is_waiting)

    def stop(self) -> None:
        """Begin no batch, and end the running one with the current event."""
        super().stop()
        self._stable.wake()

    async def _run(self) -> None:
        while not self.stopping.is_set():
            up_to = await self._next_position()
            if self.stopping.is_set():
                return
            delay = await self._attempt(up_to)
            if delay is None:
                return
            if delay:
                await wait_for_event(self.stopping, delay)
            self._is_waiting = False

    async def _next_position(self) -> int:
        """Wait until the stable position has moved, or the checkpoint is due over positions without events."""
        state = self._turns.state
        last = state.last
        with suppress(TimeoutError):
            async with asyncio.timeout(checkpoint_delay(last, self._context.clock() - state.moved_at)):
                return await self._stable.beyond(last.scanned, self.stopping, server_identity=last.server_identity)
        return self._stable.value

    async def _attempt(self, up_to: int) -> float | None:
        """Run a turn. Return the seconds until the next one; ``None`` if there is none."""
        try:
            if await self._turns.run(up_to, self._stable.server_identity):
                self._lock_watch.released()
                return 0.0
            await self._lock_watch.inspect()
            return self._context.config.max_poll_interval
        except (PartitionParkedError, ShuttingDown):
            return None
        except (LogMismatchError, PartitionsError) as error:
            message = "checkpoint belongs to another log or number of partitions; partition is not run"
            _logger.error(message, extra=self._context.details | {"error": str(error)})
            return None
        except RetryLater as early:
            self._is_waiting = self._failures.is_recorded
            # Limit the delay, because the database's clock may jump.
            return min(early.seconds, self._context.config.max_retry_delay)
        except NodesDied as died:
            self._turns.be_careful(died, up_to)
            return 0.0
        except BatchFailed as failure:
            return await self._failed(failure)
        except BatchCommitted as committed:
            await self._park(committed)
            return None
        except Exception as error:
            return await self._interrupted(error)

    async def _failed(self, failure: BatchFailed) -> float | None:
        self._turns.narrow(failure)
        if not failure.is_isolated:
            return 0.0
        if self._turns.may_have_lost_race(failure):
            return self._failures.race_lost(failure.__cause__ or failure)
        delay = await self._failures.record(failure)
        self._is_waiting = delay is not None and self._failures.is_recorded
        return delay

    async def _interrupted(self, error: Exception) -> float:
        is_suspicious = self._failures.is_suspicious(error)
        if isinstance(error, BatchInterrupted):
            if is_lost_race(error):
                self._turns.lose_race(error)
            elif is_suspicious:
                self._turns.narrow(error)
        if is_query_canceled(error):
            self._turns.shrink()
        is_isolated = is_suspicious and isinstance(error, BatchInterrupted) and error.is_isolated
        return await self._failures.interrupted(error, is_isolated=is_isolated)

    async def _park(self, committed: BatchCommitted) -> None:
        """Park the partition, and retry until it is parked: another batch would apply its events again."""
        while (delay := await self._failures.park(committed)) is not None and not self.stopping.is_set():
            await wait_for_event(self.stopping, delay)
