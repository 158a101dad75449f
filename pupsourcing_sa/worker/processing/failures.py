"""Failures: counted in the table, where they are an event's fault; in any case told, and waited for.

All are tried again after a pause that doubles. An event's failures are counted in its checkpoint, by whatever process
they happened in, and may park the partition. What befalls a batch from outside is never counted, but an event with
which it happens again and again, when it is tried alone, is shown in the table as well: its handler may be what ends
the connection. A handler that commits is not tried again, because that would apply the event twice.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeGuard
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.backoff import delay_after
from pupsourcing_sa.worker.classification import is_lost_race
from pupsourcing_sa.worker.config import WorkerConfig
from pupsourcing_sa.worker.execution.protocol import BindHandler, Execution
from pupsourcing_sa.worker.processing.batch import (
    BatchCommitted,
    BatchDisturbed,
    BatchFailed,
    BatchStopped,
)
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint, Failure

__all__ = ["Failures"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: The longest pause after an outage, in seconds: it shall stop nothing for much longer than it lasts.
_MOST_AFTER_OUTAGE: Final = 2.0
#: After so many batches in a row that were disturbed at their events, one of these may be the reason, and is searched
#: for. An outage, as a rule, is noticed before there are any events.
_SUSPICIOUS: Final = 3
#: After so many, an event that was tried alone is shown in the table.
_SHOWN: Final = 5


class Failures:
    """What a processor does about the batches that fail.

    Args:
        checkpoint: where failed attempts are counted.
        max_attempts: after so many the partition is parked; ``None`` for never.
        worker_id: the node that the partition is assigned to; ``None`` if there is none.
        execution: runs database work.
        name: of that work.
        config: the worker's settings.
        hooks: what is told.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_attempts: int | None,
        *,
        worker_id: UUID | None,
        execution: Execution,
        name: str,
        config: WorkerConfig,
        hooks: Hooks,
    ) -> None:
        self._checkpoint = checkpoint
        self._max_attempts = max_attempts
        self._worker_id = worker_id
        self._execution = execution
        self._name = name
        self._config = config
        self._hooks = hooks
        self._unrecorded = 0  # attempts at an event that failed, in a row, that the table knows nothing of
        self._disturbances = 0  # in a row
        self._disturbed_events = 0  # how many batches in a row were disturbed that had come to their events
        self._shown = 0  # of these, when the table was last told
        self._details = {"consumer": checkpoint.consumer_name, "partition": checkpoint.partition}

    # -- an event's fault --------------------------------------------------------------------------------------

    async def record(self, failure: BatchFailed) -> float | None:
        """Count a failed attempt at an event; gives the seconds to wait for the next, ``None`` if there is none."""
        record = partial(self._checkpoint.record_failure, delay=self._delay, max_attempts=self._max_attempts)
        recorded = self._or_unrecorded(await self._written(failure, record))
        details = self._of_event(failure) | {"attempts": recorded.attempts}
        if recorded.retry_after is None:
            _logger.error("handler failed; partition is parked", exc_info=failure.__cause__, extra=details)
            self._hooks.event("worker.parked", **details)
        else:
            details["retry_after"] = recorded.retry_after
            _logger.error("handler failed; will try again", exc_info=failure.__cause__, extra=details)
            self._hooks.event("worker.event_failed", **details)
        return recorded.retry_after

    async def park(self, committed: BatchCommitted) -> float | None:
        """Park the partition; gives the seconds to wait until that is to be tried again, ``None`` when it is parked."""
        recorded = self._or_unrecorded(await self._written(committed, self._checkpoint.park))
        details = self._of_event(committed) | {"attempts": recorded.attempts}
        if recorded.retry_after is None:
            _logger.error("handler committed; partition is parked", exc_info=committed.__cause__, extra=details)
            self._hooks.event("worker.parked", **details)
        else:
            details["retry_after"] = recorded.retry_after
            _logger.error(
                "handler committed; partition is not parked yet, will try again to do so",
                exc_info=committed.__cause__,
                extra=details,
            )
        return recorded.retry_after

    @property
    def is_recorded(self) -> bool:
        """Whether the table knows of the last failed attempt."""
        return not self._unrecorded

    def passed(self, failures: int) -> None:
        """Events were handled, of which the first had failed so often, according to the table."""
        failures = max(failures, self._unrecorded, self._shown)
        self._unrecorded = self._disturbed_events = self._shown = 0
        if failures:
            _logger.info("consumer goes on after a failure", extra=self._details | {"failures": failures})
            self._hooks.event("worker.recovered", **self._details, failures=failures)

    def _or_unrecorded(self, recorded: Failure | None) -> Failure:
        """What the table knows or, if it does not, what this process does."""
        if recorded is None:
            self._unrecorded += 1
            return Failure(self._unrecorded, self._delay(self._unrecorded))
        self._unrecorded = 0
        return recorded

    # -- nobody's fault ----------------------------------------------------------------------------------------

    def suspects(self, error: Exception) -> TypeGuard[BatchDisturbed]:
        """Whether this happens for so many times in a row now that an event of the batch may be the reason."""
        return (
            isinstance(error, BatchDisturbed)
            and self._disturbed_events + 1 >= _SUSPICIOUS
            and not is_lost_race(error)  # which takes two
        )

    async def disturbed(self, error: Exception, *, is_isolated: bool = False) -> float:
        """Tell what befell a batch; gives the seconds to wait before the next.

        Args:
            error: what it was.
            is_isolated: the batch is suspected, and it had one event or is known to have come to its first only.
        """
        is_race = is_lost_race(error)
        self._disturbances += 1
        self._disturbed_events += isinstance(error, BatchDisturbed) and not is_race
        pause = self._delay(1) if is_race else min(self._delay(self._disturbances), _MOST_AFTER_OUTAGE)
        if is_isolated and isinstance(error, BatchDisturbed) and self._disturbed_events >= _SHOWN:
            # It may be an event with which the server crashes, for everybody: ever less often.
            pause = max(pause, self._delay(self._disturbed_events - _SHOWN + 1))
            await self._show(error, pause)
        elif self._is_worth_telling(is_race=is_race):
            _logger.warning(
                "batch could not be run; will try again",
                exc_info=error.__cause__ if isinstance(error, BatchDisturbed) else error,
                extra=self._details | {"failures": self._disturbances, "retry_after": pause},
            )
        self._hooks.event("worker.batch_retried", **self._details, retry_after=pause)
        return pause

    def _is_worth_telling(self, *, is_race: bool) -> bool:
        """Less and less often while it lasts; a few lost races are nothing."""
        number = self._disturbances
        return number & (number - 1) == 0 and not (is_race and number <= _SUSPICIOUS)

    def undisturbed(self) -> None:
        """A batch came to its end, perhaps because somebody else is at work."""
        self._disturbances = 0

    async def _show(self, disturbed: BatchDisturbed, pause: float) -> None:
        """Let the table have the error, without counting it."""
        self._shown = self._disturbed_events
        details = self._of_event(disturbed) | {"failures": self._disturbed_events, "retry_after": pause}
        _logger.error(
            "event could not be handled, for no fault that counts; will try again",
            exc_info=disturbed.__cause__,
            extra=details,
        )
        await self._written(disturbed, partial(self._checkpoint.record_disturbance, retry_after=pause))

    # ----------------------------------------------------------------------------------------------------------

    async def _written(self, stopped: BatchStopped, record: Callable[..., Failure | None]) -> Failure | None:
        """What the table knows now; ``None`` if that it does not know of this."""
        position = stopped.event.global_position
        text = "".join(traceback.format_exception(stopped.__cause__))

        def work(session: Session, _: BindHandler) -> Failure | None:
            recorded = record(session, position=position, error=text, worker_id=self._worker_id)
            session.commit()
            return recorded

        try:
            recorded = await self._execution(self._name, work)
        except Exception:
            _logger.warning("failure could not be recorded", exc_info=True, extra=self._details)
            return None
        if recorded is None:
            _logger.warning("failure not recorded: another process is at work on the partition", extra=self._details)
        return recorded

    def _of_event(self, stopped: BatchStopped) -> dict[str, Any]:
        event = stopped.event
        return self._details | {
            "event_id": str(event.event_id),
            "event_type": event.event_type,
            "global_position": event.global_position,
        }

    def _delay(self, failures: int) -> float:
        config = self._config
        return delay_after(failures, first=config.retry_delay, most=config.max_retry_delay, jitter=random.random())
