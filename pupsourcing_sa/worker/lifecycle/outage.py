"""Outages: the first failure is logged, retries are delayed, and the end is logged.

::

              failed(): WARNING                failed(): silent
    working ────────────────────▶ failing ──────┐
       ▲                             │  ▲───────┘
       └─────────────────────────────┘
              over(): INFO

A later failure is silent unless it is the first unexpected one. For example, "permission denied" is logged after
"connection refused".
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Mapping
from typing import Any

from pupsourcing_sa.postgres.redaction import redacted
from pupsourcing_sa.worker.backoff import delay_after
from pupsourcing_sa.worker.classification import is_connection_error

__all__ = ["Outage", "first_line"]

_logger = logging.getLogger("pupsourcing_sa.worker")


class Outage:
    """Counter of consecutive failures of a retried operation. It logs the first failure, the first unexpected error,
    and the recovery.

    Args:
        failing: message of a failure.
        recovered: message of the first success after failures; without one the caller logs it.
        details: data of the log messages.
        first_delay: delay after the first failure, in seconds; it doubles with each failure, with jitter.
        max_delay: upper limit of the delay, in seconds.
        is_each_logged: log every failure, for an operation that the caller cannot do without.
        hide_parameters: the worker's setting.

    Attributes:
        failures: number of failures in a row.
    """

    def __init__(
        self,
        failing: str,
        recovered: str | None = None,
        *,
        details: Mapping[str, Any],
        first_delay: float,
        max_delay: float,
        is_each_logged: bool = False,
        hide_parameters: bool = True,
    ) -> None:
        self.failures = 0
        #: True if the traceback of an unexpected error of this outage was logged.
        self._has_traceback = False
        self._failing = failing
        self._recovered = recovered
        self._details = details
        self._first_delay = first_delay
        self._max_delay = max_delay
        self._is_each_logged = is_each_logged
        self._hide_parameters = hide_parameters

    def failed(self, error: BaseException) -> float:
        """Count the failure, and return the seconds until the next attempt.

        A lost connection is logged in one line, and the first other error of the outage with its traceback.
        """
        self.failures += 1
        delay = delay_after(self.failures, first=self._first_delay, max_delay=self._max_delay, jitter=random.random())
        is_news = not (self._has_traceback or is_connection_error(error) or isinstance(error, OSError))
        if is_news or self.failures == 1 or self._is_each_logged:
            self._has_traceback |= is_news
            error = redacted(error, hide_parameters=self._hide_parameters)
            _logger.warning(
                self._failing,
                exc_info=error if is_news else None,
                extra={**self._details, "error": first_line(error), "retry_after": delay},
            )
        return delay

    def over(self) -> int:
        """Note a success, and return the number of failures before it."""
        failures, self.failures, self._has_traceback = self.failures, 0, False
        if failures and self._recovered is not None:
            _logger.info(self._recovered, extra={**self._details, "failures": failures})
        return failures


def first_line(error: BaseException) -> str:
    """Return the first line of the driver's error, with its type. The other lines are hints and the SQL."""
    error = getattr(error, "orig", None) or error
    return "".join(traceback.format_exception_only(error)).partition("\n")[0]
