from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pupsourcing_sa.worker.backoff import delay_after


def test_it_doubles_up_to_the_most():
    delays = [delay_after(failures, first=0.5, max_delay=3.0, jitter=0) for failures in range(1, 6)]
    assert delays == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_it_stays_between_three_quarters_and_the_most(failures, jitter):
    delay = delay_after(failures, first=0.5, max_delay=60.0, jitter=jitter)
    assert 0.375 <= delay <= 60.0
