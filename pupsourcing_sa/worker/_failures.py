"""Failures: counted in the table, where they are an event's fault; in any case told, and waited for.

Both kinds are tried again after a pause that doubles. An event's failures are counted in its checkpoint, by whatever
process they happened in, and may park the partition. What befalls a batch from outside is never counted.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker._backoff import delay_after
from pupsourcing_sa.worker._batch import BatchDisturbed, BatchFailed, Bind
from pupsourcing_sa.worker._checkpoints import Checkpoint, Failure
from pupsourcing_sa.worker._config import WorkerConfig
from pupsourcing_sa.worker._disturbances import is_lost_race

__all__ = ["Failures"]

_logger = logging.getLogger("pupsourcing_sa.worker")

#: The longest pause after an outage, in seconds: it shall stop nothing for much longer than it lasts.
_MOST_AFTER_OUTAGE: Final = 2.0


class Failures:
    """What a processor does about the batches that fail.

    Args:
        checkpoint: where failed attempts are counted.
        max_attempts: after so many the partition is parked; ``None`` for never.
        worker_id: the node that the partition is assigned to; ``None`` if there is none.
        execution: runs database work.
        config: the worker's settings.
        hooks: what is told.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_attempts: int | None,
        *,
        worker_id: UUID | None,
        execution: Callable[[Callable[[Session, Bind], Failure | None]], Coroutine[Any, Any, Failure | None]],
        config: WorkerConfig,
        hooks: Hooks,
    ) -> None:
        self._checkpoint = checkpoint
        self._max_attempts = max_attempts
        self._worker_id = worker_id
        self._execution = execution
        self._config = config
        self._hooks = hooks
        self._unrecorded = 0  # failed attempts at an event, in a row, that the table knows nothing of
        self._disturbances = 0  # in a row
        self._details = {"consumer": checkpoint.consumer_name, "partition": checkpoint.partition}

    async def record(self, failure: BatchFailed) -> float | None:
        """Count a failed attempt at an event; gives the seconds to wait for the next, ``None`` if there is none."""
        recorded = await self._recorded(failure)
        if recorded is None:
            self._unrecorded += 1
            recorded = Failure(self._unrecorded, self._delay(self._unrecorded))
        else:
            self._unrecorded = 0
        event, pause = failure.event, recorded.retry_after
        details = self._details | {
            "event_id": str(event.event_id),
            "event_type": event.event_type,
            "global_position": event.global_position,
            "attempts": recorded.attempts,
        }
        if pause is None:
            _logger.error("handler failed; partition is parked", exc_info=failure.__cause__, extra=details)
            self._hooks.event("worker.parked", **details)
        else:
            details["retry_after"] = pause
            _logger.error("handler failed; will try again", exc_info=failure.__cause__, extra=details)
            self._hooks.event("worker.event_failed", **details)
        return pause

    async def _recorded(self, failure: BatchFailed) -> Failure | None:
        """What the table knows now; ``None`` if that it does not know of this failure."""
        position = failure.event.global_position
        text = "".join(traceback.format_exception(failure.__cause__))

        def work(session: Session, _: Bind) -> Failure | None:
            recorded = self._checkpoint.record_failure(
                session,
                position=position,
                error=text,
                delay=self._delay,
                max_attempts=self._max_attempts,
                worker_id=self._worker_id,
            )
            session.commit()
            return recorded

        try:
            recorded = await self._execution(work)
        except Exception:
            _logger.warning("failure could not be recorded", exc_info=True, extra=self._details)
            return None
        if recorded is None:
            _logger.warning("failure not recorded: another process is at work on the partition", extra=self._details)
        return recorded

    def passed(self, failures: int) -> None:
        """An event was handled that had failed so often, according to the table."""
        failures = max(failures, self._unrecorded)
        self._unrecorded = 0
        if failures:
            _logger.info("consumer goes on after a failure", extra=self._details | {"failures": failures})
            self._hooks.event("worker.recovered", **self._details, failures=failures)

    def disturbed(self, error: Exception) -> float:
        """Tell what befell a batch; gives the seconds to wait before the next."""
        if is_lost_race(error):
            pause = self._delay(1)
        else:
            self._disturbances += 1
            pause = min(self._delay(self._disturbances), _MOST_AFTER_OUTAGE)
            if self._disturbances & (self._disturbances - 1) == 0:  # less and less often while it lasts
                _logger.warning(
                    "batch could not be run; will try again",
                    exc_info=error.__cause__ if isinstance(error, BatchDisturbed) else error,
                    extra=self._details | {"failures": self._disturbances, "retry_after": pause},
                )
        self._hooks.event("worker.batch_retried", **self._details, retry_after=pause)
        return pause

    def undisturbed(self) -> None:
        """A batch came to its end."""
        self._disturbances = 0

    def _delay(self, failures: int) -> float:
        config = self._config
        return delay_after(failures, first=config.retry_delay, most=config.max_retry_delay, jitter=random.random())
