from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pupsourcing_sa.worker.backoff import delay_after, limit_after


def test_it_doubles_up_to_the_most():
    delays = [delay_after(failures, first=0.5, most=3.0, jitter=0) for failures in range(1, 6)]
    assert delays == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_it_stays_between_three_quarters_and_the_most(failures, jitter):
    delay = delay_after(failures, first=0.5, most=60.0, jitter=jitter)
    assert 0.375 <= delay <= 60.0


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
