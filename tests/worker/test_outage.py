"""Log messages about an outage."""

from __future__ import annotations

import logging

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from pupsourcing_sa.worker.lifecycle.outage import Outage

REFUSED = OperationalError("SELECT 1", None, psycopg.OperationalError("connection refused\nIs the server running?"))


def outage(recovered: str | None = "it works again", **options: bool) -> Outage:
    return Outage("it does not work", recovered, details={"worker": "w1"}, first_delay=1.0, max_delay=4.0, **options)


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pupsourcing_sa.worker")


def test_it_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture):
    it = outage()
    assert it.over() == 0
    for _ in range(2):
        delays = [it.failed(REFUSED) for _ in range(5)]
        assert all(0.75 * most <= delay <= most for delay, most in zip(delays, (1, 2, 4, 4, 4), strict=True))
        assert it.failures == 5
        assert it.over() == 5
        assert it.over() == 0
    assert caplog.messages == ["it does not work", "it works again"] * 2
    began, ended = caplog.records[:2]
    assert (began.levelno, ended.levelno) == (logging.WARNING, logging.INFO)
    assert (began.worker, began.error) == ("w1", "psycopg.OperationalError: connection refused")
    assert 0.75 <= began.retry_after <= 1
    assert (ended.worker, ended.failures) == ("w1", 5)


def test_the_caller_may_log_the_end(caplog: pytest.LogCaptureFixture):
    it = outage(None)
    it.failed(REFUSED)
    assert it.over() == 1
    assert caplog.messages == ["it does not work"]


def test_only_an_unexpected_error_has_a_traceback_and_only_once(caplog: pytest.LogCaptureFixture):
    for error in (REFUSED, TimeoutError(), ZeroDivisionError("division by zero")):
        outage().failed(error)
    assert [record.exc_info is not None for record in caplog.records] == [False, False, True]
    caplog.clear()
    it = outage(is_each_logged=True)
    for _ in range(2):
        it.failed(ZeroDivisionError("division by zero"))
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


def test_another_error_during_an_outage_is_logged(caplog: pytest.LogCaptureFixture):
    it = outage()
    for _ in range(2):
        for error in (REFUSED, REFUSED, ZeroDivisionError("division by zero"), REFUSED, KeyError("a second one")):
            it.failed(error)
        it.over()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.error for record in warnings] == [
        "psycopg.OperationalError: connection refused",
        "ZeroDivisionError: division by zero",
    ] * 2
    assert [record.exc_info is not None for record in warnings] == [False, True] * 2
