from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from typing import Final

import pytest

from tests.waiting import patiently

pytest_plugins = [
    "tests.fix_alembic",
    "tests.fix_command",
    "tests.fix_hypothesis",
    "tests.fix_postgres",
    "tests.fix_store",
    "tests.fix_worker",
]

#: Seconds, for a test that is not marked with a timeout of its own.
_LIMIT: Final = 120


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Fail a test that leaves another log level behind: later tests would see other records."""
    loggers = [logging.getLogger(), logging.getLogger("pupsourcing_sa")]
    before = [logger.level for logger in loggers]
    yield
    after = [logger.level for logger in loggers]
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)
    assert after == before, "the test has changed the level of the root logger or of pupsourcing_sa"


def pytest_configure() -> None:
    """Start child processes with default signal dispositions.

    A shell without job control starts a background job with SIGINT ignored. An ignored signal stays ignored in every
    program that the job executes, but exec() resets a handler. A handler that does nothing ignores the signal here.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test a limit, scaled by the patience of this run."""
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = marker.args[0] if marker else _LIMIT
        item.add_marker(pytest.mark.timeout(patiently(seconds)), append=False)
