"""The size of the next batch: pure, without a clock and a session."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupsourcing_sa.worker.processing import limits as module
from pupsourcing_sa.worker.processing.limits import BatchLimits, checkpoint_delay, checkpoint_threshold, limit_after
from pupsourcing_sa.worker.processing.outcomes import BatchFailed, BatchResult


def failed(events: int, index: int | None) -> BatchFailed:
    given: Any = [None] * events
    return BatchFailed(given, index)


class TestLimits:
    def test_a_failure_narrows_and_success_doubles(self):
        limits = BatchLimits.of(100)
        assert (limits.max_events, limits.window) == (100, 100_000)
        limits = limits.narrowed(failed(100, 7))
        assert (limits.max_events, limits.window) == (7, 100_000)
        limits = limits.narrowed(failed(7, None))
        assert limits.max_events == 3
        sizes = [3]
        for _ in range(6):
            limits = limits.grown(has_events=True)
            sizes.append(limits.max_events)
        assert sizes == [3, 6, 12, 24, 48, 96, 100]

    def test_a_timeout_shrinks_both_until_there_is_no_less_and_success_grows_both(self, monkeypatch: Any):
        monkeypatch.setattr(module, "_WINDOW", 8)
        limits, sizes = BatchLimits.of(20), []
        while not limits.is_smallest:
            sizes.append((limits.max_events, limits.window))
            limits = limits.shrunk()
        assert sizes == [(20, 8), (10, 4), (5, 2), (2, 1), (1, 1)]
        assert (limits.max_events, limits.window) == (1, 1)
        assert limits.shrunk() is limits
        for _ in range(10):
            limits = limits.grown(has_events=False)
        assert (limits.max_events, limits.window) == (20, 8)

    def test_batches_without_events_do_not_end_the_search_for_an_event(self):
        limits = BatchLimits.of(100).narrowed(failed(100, 1))
        assert limits.grown(has_events=False).max_events == 1

    def test_the_largest_stays_the_same_object(self):
        limits = BatchLimits.of(100)
        assert limits.grown(has_events=True) is limits


@pytest.mark.parametrize(
    ("events", "index", "is_isolated"), [(5, 0, True), (5, 3, False), (5, None, False), (1, None, True), (1, 0, True)]
)
def test_an_event_is_isolated(events: int, index: int | None, is_isolated: bool):
    assert failed(events, index).is_isolated is is_isolated


def test_the_checkpoint_follows_positions_without_events():
    assert checkpoint_threshold(4.9) == 10_000
    assert checkpoint_threshold(5.0) == 1
    assert checkpoint_delay(BatchResult(10, 5, 0), 2.0) == 3.0
    assert checkpoint_delay(BatchResult(10, 10, 0), 2.0) is None
    assert checkpoint_delay(BatchResult(0, -1, 0), 2.0) is None


@given(st.integers(1, 1000), st.data())
def test_a_failing_event_is_isolated_in_a_few_steps(events, data):
    """Searching for it by halves, whichever it is, ends with it alone, and what precedes it done."""
    bad = data.draw(st.integers(0, events - 1))
    done, limit, steps = 0, events, 0
    while (done, limit) != (bad, 1):
        steps += 1
        batch = range(done, min(done + limit, events))
        if bad in batch:
            limit = limit_after(len(batch), None)
        else:
            done, limit = batch.stop, events
    assert steps <= 2 + (events.bit_length() + 1) ** 2


def test_what_precedes_a_known_event_comes_first():
    assert limit_after(100, 7) == 7
    assert limit_after(100, 0) == 1
    assert limit_after(1, None) == 1
