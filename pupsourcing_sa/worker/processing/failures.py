"""Failures of one partition: recorded, counted, logged, and delayed.

========================  ============================  =====================  ====================================
outcome of the batch      in the checkpoint's row       delay                  log
========================  ============================  =====================  ====================================
`BatchFailed`, isolated   counted; may park             doubles per attempt    first attempt ERROR with traceback,
                                                                               others WARNING in one line;
                                                                               parking ERROR with traceback
`BatchCommitted`          parked at once                until it is parked     ERROR with traceback
outage                    nothing                       doubles, up to 2 s     WARNING once, INFO when it is over
outages of one event,     shown, not counted            doubles per outage     first one ERROR with traceback,
five in a row, isolated                                 if the event may be    others WARNING in one line, for the 8th,
                                                        expensive to retry     16th … in a row if they are frequent
lost race                 nothing                       see `retry_delay`      WARNING for the 32nd, 64th … in a
                                                                               row, INFO when it is over
========================  ============================  =====================  ====================================

The row counts the attempts of all processes. An event whose handler ends the connection each time is shown in the row,
so that other processes know about it, but it is not counted. The same goes for an event whose statement always exceeds
``statement_timeout``. Both are expensive to retry, so the delays grow. For other troubles, such as a full disk, the
delays stay short, so that the partition continues soon after. A handler that commits is not retried, because that would
apply the event twice.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeGuard

from sqlalchemy.orm import Session

from pupsourcing_sa.postgres.redaction import redacted
from pupsourcing_sa.worker.backoff import delay_after
from pupsourcing_sa.worker.classification import is_cheap_to_retry, is_lost_race, is_timeout
from pupsourcing_sa.worker.execution.protocol import BindHandler
from pupsourcing_sa.worker.lifecycle.outage import Outage, first_line
from pupsourcing_sa.worker.processing.checkpoints import Failure
from pupsourcing_sa.worker.processing.context import PartitionContext
from pupsourcing_sa.worker.processing.outcomes import BatchCommitted, BatchError, BatchFailed, BatchInterrupted
from pupsourcing_sa.worker.processing.races import retry_delay

__all__ = ["Failures"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: Upper limit of the delay after an outage, in seconds, so that batches run again soon after it ends.
_MAX_OUTAGE_DELAY: Final = 2.0
#: After this number of consecutive batches that were interrupted while they had events, one of the events is suspected,
#: and the next batches search for it. Most outages interrupt a batch before it has events.
_SUSPICIOUS: Final = 3
#: After this number, an event that was handled alone is shown in the checkpoint's row.
_SHOWN: Final = 5
#: A lost race is reported only after this number in a row.
_UNREPORTED_RACES: Final = 20

_INTERRUPTED: Final = "batch was interrupted; will retry"
_RUNNING_AGAIN: Final = "batches are running again"


class Failures:
    """The failures of one partition, in the table and in the log. Used on the event loop only.

    Args:
        context: the partition.
    """

    def __init__(self, context: PartitionContext) -> None:
        self._context = context
        self._details = context.details
        self._outage = Outage(
            _INTERRUPTED,
            _RUNNING_AGAIN,
            details=self._details,
            first_delay=context.config.retry_delay,
            max_delay=min(context.config.max_retry_delay, _MAX_OUTAGE_DELAY),
            hide_parameters=context.config.hide_parameters,
        )
        # All of these count consecutive occurrences.
        self._lost_races = 0
        self._unrecorded = 0  # failed attempts at an event that the table does not have
        self._interruptions = 0  # of batches that had events, outages only
        self._shown = 0  # interruptions when the event was last shown in the table
        self._is_write_failing = False

    # -- failures of an event ----------------------------------------------------------------------------------

    async def record(self, failure: BatchFailed) -> float | None:
        """Count a failed attempt at an event.

        Returns:
            The seconds until the next attempt; ``None`` if the partition is parked.
        """
        checkpoint, max_attempts = self._context.checkpoint, self._context.subscription.max_attempts
        record = partial(checkpoint.record_failure, delay=self._delay, max_attempts=max_attempts)
        recorded = self._or_unrecorded(await self._write(failure, record))
        details = self._event_details(failure) | {"attempts": recorded.attempts}
        error = self._report(failure.__cause__)
        if recorded.retry_after is None:
            _logger.error("handler failed; partition is parked", exc_info=error, extra=details)
            self._context.hooks.event("worker.parked", **details)
            return None
        details["retry_after"] = recorded.retry_after
        if recorded.attempts == 1:
            _logger.error("handler failed; will retry", exc_info=error, extra=details)
        else:
            _logger.warning("handler failed again; will retry", extra=details | _summary(error))
        self._context.hooks.event("worker.event_failed", **details)
        return recorded.retry_after

    async def park(self, committed: BatchCommitted) -> float | None:
        """Park the partition.

        Returns:
            The seconds until the next attempt to park it; ``None`` if it is parked.
        """
        recorded = self._or_unrecorded(await self._write(committed, self._context.checkpoint.park))
        details = self._event_details(committed) | {"attempts": recorded.attempts}
        error = self._report(committed.__cause__)
        if recorded.retry_after is None:
            message = "handler committed the transaction; partition is parked"
            _logger.error(message, exc_info=error, extra=details)
            self._context.hooks.event("worker.parked", **details)
        else:
            details["retry_after"] = recorded.retry_after
            message = "handler committed the transaction; cannot park the partition, will retry"
            _logger.error(message, exc_info=error if recorded.attempts == 1 else None, extra=details)
        return recorded.retry_after

    @property
    def is_recorded(self) -> bool:
        """True if the table has the last failed attempt."""
        return not self._unrecorded

    def events_handled(self, failures: int) -> None:
        """Note that events were handled.

        Args:
            failures: number of earlier failures of the first one, according to the table.
        """
        failures = max(failures, self._unrecorded, self._shown)
        self._unrecorded = self._interruptions = self._shown = 0
        if failures:
            _logger.info("event is processed after failures", extra=self._details | {"failures": failures})
            self._context.hooks.event("worker.recovered", **self._details, failures=failures)

    def _or_unrecorded(self, recorded: Failure | None) -> Failure:
        """Return the recorded failure. If none was recorded, return the count of this process."""
        if recorded is None:
            self._unrecorded += 1
            return Failure(self._unrecorded, self._delay(self._unrecorded))
        self._unrecorded = 0
        return recorded

    # -- interruptions -----------------------------------------------------------------------------------------

    def is_suspicious(self, error: Exception) -> TypeGuard[BatchInterrupted]:
        """Return True if an event may be the reason: outages have interrupted several batches in a row."""
        return (
            isinstance(error, BatchInterrupted)
            and self._interruptions + 1 >= _SUSPICIOUS
            and not is_lost_race(error)  # it takes two transactions to lose a race
        )

    async def interrupted(self, error: Exception, *, is_isolated: bool = False) -> float:
        """Log an interruption and return the seconds until the next batch.

        Args:
            error: a `BatchInterrupted`, or the error of a batch that had no events yet.
            is_isolated: an event is suspected, and the interrupted batch had no other event.
        """
        cause = error.__cause__ if isinstance(error, BatchInterrupted) and error.__cause__ else error
        if is_lost_race(error):
            return self.race_lost(cause)
        delay = self._outage.failed(cause)
        if isinstance(error, BatchInterrupted):
            self._interruptions += 1
            if is_isolated and self._interruptions >= _SHOWN:
                delay = await self._show(error, delay)
        self._context.hooks.event("worker.batch_retried", **self._details, retry_after=delay)
        return delay

    def batch_completed(self) -> None:
        """Note that a batch was committed, or found the checkpoint locked by another transaction."""
        self._outage.over()
        if self._lost_races > _UNREPORTED_RACES:
            _logger.info(_RUNNING_AGAIN, extra=self._details | {"failures": self._lost_races})
        self._lost_races = 0

    def race_lost(self, error: BaseException) -> float:
        """Return the seconds until the next batch. Warn of lost races less and less often; a few are normal."""
        self._lost_races = number = self._lost_races + 1
        delay = retry_delay(number, random.random())
        if number > _UNREPORTED_RACES and _is_power_of_two(number):
            details = self._details | {"failures": number, "retry_after": delay} | _summary(self._report(error))
            _logger.warning(_INTERRUPTED, extra=details)
        self._context.hooks.event("worker.batch_retried", **self._details, retry_after=delay)
        return delay

    async def _show(self, interrupted: BatchInterrupted, delay: float) -> float:
        """Show the error in the table, without counting it. Return the delay, which may be longer."""
        cause, is_first = interrupted.__cause__ or interrupted, not self._shown
        error = self._report(cause)
        self._shown = self._interruptions
        is_cheap = is_cheap_to_retry(cause)
        if not is_cheap:
            # The event may crash the server, and with it the work of others, or keep it busy until the timeout: retry
            # it less and less often.
            delay = max(delay, self._delay(self._interruptions - _SHOWN + 1))
        details = self._event_details(interrupted) | {"failures": self._interruptions, "retry_after": delay}
        message = "handling the event keeps losing the connection; will retry"
        if is_cheap or is_timeout(cause):
            message = "handling the event keeps being interrupted; will retry"
        if is_first:
            _logger.error(message, exc_info=error, extra=details)
        elif not is_cheap or _is_power_of_two(self._interruptions):
            _logger.warning(message, extra=details | _summary(error))
        await self._write(interrupted, partial(self._context.checkpoint.record_interruption, retry_after=delay))
        return delay

    # ----------------------------------------------------------------------------------------------------------

    async def _write(self, error: BatchError, record: Callable[..., Failure | None]) -> Failure | None:
        """Write the failure to the checkpoint's row and return it; ``None`` if it was not recorded."""
        position, worker_id = error.event.global_position, self._context.worker_id
        text = "".join(traceback.format_exception(self._report(error.__cause__)))

        def work(session: Session, _: BindHandler) -> Failure | None:
            recorded = record(session, position=position, error=text, worker_id=worker_id)
            session.commit()
            return recorded

        try:
            recorded = await self._context.execution(self._context.name, work)
        except Exception as failed:
            # The reason may be an outage that lasts.
            if not self._is_write_failing:
                _logger.warning("cannot record the failure", exc_info=self._report(failed), extra=self._details)
            self._is_write_failing = True
            return None
        self._is_write_failing = False
        if recorded is None:
            _logger.warning("failure is not recorded: another process has the partition", extra=self._details)
        return recorded

    def _report(self, error: BaseException | None) -> BaseException | None:
        """Return the exception as it may be recorded and logged."""
        return error and redacted(error, hide_parameters=self._context.config.hide_parameters)

    def _event_details(self, error: BatchError) -> dict[str, Any]:
        event = error.event
        return self._details | {
            "event_id": str(event.event_id),
            "event_type": event.event_type,
            "global_position": event.global_position,
        }

    def _delay(self, failures: int) -> float:
        config = self._context.config
        return delay_after(failures, first=config.retry_delay, max_delay=config.max_retry_delay, jitter=random.random())


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _summary(error: BaseException | None) -> dict[str, str]:
    return {} if error is None else {"error": first_line(error)}
