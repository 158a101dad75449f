"""The lines about catching up, by a clock that the test sets."""

from __future__ import annotations

import logging

import pytest

from pupsourcing_sa.worker.processing.catch_up import CATCHING_UP, CAUGHT_UP, CatchUp
from tests.fix_worker import Fleet


def test_a_start_is_followed_by_one_line_when_the_partition_has_caught_up():
    catch_up = CatchUp()
    assert catch_up.line(50, 100, now=0.0) is None
    assert catch_up.line(100, 100, now=1.0) == CAUGHT_UP
    for position in range(101, 200):
        assert catch_up.line(position, position, now=float(position)) is None


def test_a_busy_partition_reports_every_30_seconds():
    catch_up = CatchUp()
    times = [now for now in range(100) if catch_up.line(now, 1000, now=float(now)) == CATCHING_UP]
    assert times == [30, 60, 90]
    assert catch_up.line(1000, 1000, now=101.0) == CAUGHT_UP
    assert catch_up.line(1000, 1000, now=102.0) is None


def test_a_partition_that_was_idle_for_long_is_not_behind_at_once():
    catch_up = CatchUp()
    assert catch_up.line(10, 10, now=0.0) == CAUGHT_UP
    assert catch_up.line(20, 1000, now=5000.0) is None
    assert catch_up.line(1000, 1000, now=5029.0) is None
    assert catch_up.line(1001, 2000, now=5031.0) is None
    assert catch_up.line(1002, 2000, now=5060.0) is None
    assert catch_up.line(1003, 2000, now=5061.0) == CATCHING_UP
    assert catch_up.line(2000, 2000, now=5062.0) == CAUGHT_UP


def test_the_lines_of_a_worker(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
    fleet.append(5)
    worker = fleet.worker(fleet.see("all"), poll_interval=0.01)
    fleet.start(worker)
    fleet.wait(lambda: CAUGHT_UP in caplog.messages)
    for number in (6, 7, 8):
        fleet.append()
        fleet.wait(lambda number=number: len(fleet.seen("all")) == number)
    fleet.stop()
    (record,) = (record for record in caplog.records if record.message == CAUGHT_UP)
    found = (record.levelno, record.consumer, record.partition, record.position, record.positions_left)
    assert found == (logging.INFO, "all", 0, 5, 0)
    assert record.stable_position == 5
