"""The levels and texts of the lines about failures, without a database."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy.exc import OperationalError

from pupsourcing_sa.errors import HandlerTransactionError
from pupsourcing_sa.worker.processing.checkpoints import Failure
from pupsourcing_sa.worker.processing.failures import Failures
from pupsourcing_sa.worker.processing.outcomes import BatchCommitted, BatchError, BatchFailed, BatchInterrupted
from tests.fix_processing import unbound_context


class Event:
    event_id, event_type, global_position = "id", "E", 3


def outcome(kind: type[BatchError], cause: BaseException) -> Any:
    events: Any = [Event()]
    error = kind(events, 0)
    error.__cause__ = cause
    return error


class Table:
    """An execution that returns what the table would have recorded."""

    def __init__(self, *recorded: Failure | None) -> None:
        self.recorded = list(recorded)

    async def __call__(self, name: str, work: Any) -> Any:
        return self.recorded.pop(0)

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pupsourcing_sa.worker")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, bool]]:
    """Return level, message, and True if there is a traceback."""
    return [(record.levelname, record.message, record.exc_info is not None) for record in caplog.records]


def test_the_first_failure_has_a_traceback_and_repeated_ones_are_a_line(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        failures = Failures(unbound_context(Table(Failure(1, 0.5), Failure(2, 1.0), Failure(3, None))))
        for _ in range(3):
            await failures.record(outcome(BatchFailed, ZeroDivisionError("three\nlines\nlong")))
        failures.events_handled(3)
        failures.events_handled(0)

    asyncio.run(main())
    assert lines(caplog) == [
        ("ERROR", "handler failed; will retry", True),
        ("WARNING", "handler failed again; will retry", False),
        ("ERROR", "handler failed; partition is parked", True),
        ("INFO", "event is processed after failures", False),
    ]
    again = caplog.records[1]
    assert (again.error, again.attempts, again.retry_after) == ("ZeroDivisionError: three", 2, 1.0)
    assert (again.consumer, again.partition, again.global_position, again.event_id) == ("all", 0, 3, "id")


def test_a_process_that_takes_over_a_failing_event_knows_that_it_is_not_the_first(caplog: pytest.LogCaptureFixture):
    failures = Failures(unbound_context(Table(Failure(5, 8.0))))
    asyncio.run(failures.record(outcome(BatchFailed, ZeroDivisionError())))
    assert lines(caplog) == [("WARNING", "handler failed again; will retry", False)]


def test_a_handler_that_commits_is_parked_with_an_error(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        failures = Failures(unbound_context(Table(None, Failure(1, None))))
        committed = outcome(BatchCommitted, HandlerTransactionError("it committed"))
        assert await failures.park(committed) is not None
        assert await failures.park(committed) is None

    asyncio.run(main())
    assert lines(caplog) == [
        ("WARNING", "failure is not recorded: another process has the partition", False),
        ("ERROR", "handler committed the transaction; cannot park the partition, will retry", True),
        ("ERROR", "handler committed the transaction; partition is parked", True),
    ]


def test_a_few_lost_races_are_silent_and_many_are_reported_less_and_less_often(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        failures = Failures(unbound_context(Table()))
        race = outcome(BatchInterrupted, OperationalError("UPDATE", {}, DeadlockDetected("deadlock")))
        for _ in range(20):
            await failures.interrupted(race)
        failures.batch_completed()
        for _ in range(128):
            await failures.interrupted(race)
        failures.batch_completed()

    asyncio.run(main())
    interrupted = ("WARNING", "batch was interrupted; will retry", False)
    assert lines(caplog) == [interrupted] * 3 + [("INFO", "batches are running again", False)]
    assert [record.failures for record in caplog.records] == [32, 64, 128, 128]
    assert caplog.records[0].error == "psycopg.errors.DeadlockDetected: deadlock, SQLSTATE 40P01"
