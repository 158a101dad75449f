"""The timeouts of a shutdown, of which each has to fit into the next."""

from __future__ import annotations

from pupsourcing_sa.worker.lifecycle import shutdown as s


def test_a_worker_whose_server_does_not_answer_stops_before_its_watchdog():
    tick, hand_over = 2 * s.CANCEL_SECONDS, s.CANCEL_SECONDS
    roll_back, leave = s.ROLL_BACK_SECONDS + s.CANCEL_SECONDS, s.LEAVE_SECONDS + s.CANCEL_SECONDS
    assert tick + hand_over + roll_back + leave < s.WATCHDOG_SECONDS


def test_a_process_ends_itself_before_its_supervisor_kills_it():
    watchdog, end_of_threads = s.WATCHDOG_SECONDS + s.LAST_LOG_SECONDS, s.EXIT_SECONDS + s.LAST_LOG_SECONDS
    assert watchdog + end_of_threads < s.NODE_KILL_SECONDS
    assert s.LAST_LOG_SECONDS < s.SUPERVISOR_EXIT_SECONDS
