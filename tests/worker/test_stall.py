from __future__ import annotations

from pupsourcing_sa.worker.dispatch.stall import StallMonitor


def test_a_stalled_position_is_reported_after_a_while():
    watch = StallMonitor(30, now=0)
    assert not watch.is_due(5, 7, now=1)
    assert not watch.is_due(5, 8, now=30)
    assert watch.is_due(5, 8, now=31)
    assert watch.seconds(31) == 30


def test_it_is_reported_again_after_the_same_time():
    watch = StallMonitor(30, now=0)
    watch.is_due(5, 7, now=0)
    assert watch.is_due(5, 7, now=30)
    watch.reported(30)
    assert not watch.is_due(5, 7, now=59)
    assert watch.is_due(5, 7, now=60)
    assert watch.seconds(60) == 60


def test_what_could_not_be_reported_stays_due():
    watch = StallMonitor(30, now=0)
    watch.is_due(5, 7, now=0)
    assert watch.is_due(5, 7, now=30)
    assert watch.is_due(5, 7, now=31)


def test_a_position_that_moves_or_is_the_head_does_not_stall():
    watch = StallMonitor(30, now=0)
    for now in range(0, 300, 20):
        assert not watch.is_due(now, 1000, now=now)
    for now in range(300, 600, 20):
        assert not watch.is_due(1000, 1000, now=now)
    assert not watch.is_due(1000, 1001, now=601)  # the time at the head does not count


def test_the_end_is_reported_once():
    watch = StallMonitor(30, now=0)
    watch.is_due(5, 7, now=0)
    watch.is_due(5, 7, now=30)
    watch.reported(30)
    watch.is_due(5, 7, now=31)
    assert not watch.has_ended()
    watch.is_due(6, 7, now=32)
    assert watch.has_ended()
    assert not watch.has_ended()


def test_the_next_stall_is_a_new_one():
    watch = StallMonitor(30, now=0)
    watch.is_due(5, 7, now=0)
    watch.is_due(5, 7, now=30)
    watch.reported(30)
    watch.is_due(7, 7, now=32)
    assert watch.has_ended()
    assert not watch.is_due(7, 9, now=61)
    assert watch.is_due(7, 9, now=62)


def test_without_a_report_there_is_no_end():
    watch = StallMonitor(30, now=0)
    watch.is_due(5, 7, now=0)
    watch.is_due(6, 7, now=1)
    assert not watch.has_ended()
