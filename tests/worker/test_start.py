"""The start of a worker: dead nodes, and servers that refuse or do not answer."""

from __future__ import annotations

import logging
from uuid import uuid4

import pytest
from sqlalchemy import create_engine

from tests.fix_network import deaf_server, refusing_server, worker_with
from tests.fix_worker import Fleet
from tests.waiting import patiently
from tests.worker.test_holders import declare, holding, is_alive

REFUSED = "cannot connect to the database; will retry"


@pytest.mark.parametrize("moves", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_a_worker_that_starts_meets_a_dead_node(fleet: Fleet, moves: bool):
    checkpoint = declare(fleet)
    fleet.append(3)
    with holding(fleet.engine, checkpoint, uuid4(), moves=moves) as session:
        fleet.start(fleet.worker(fleet.see("all")))
        fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
        assert not is_alive(session)


def refusals(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == REFUSED]


class TestRefusal:
    """By a server that answers, and refuses every connection."""

    @pytest.mark.parametrize("sqlstate", ["57P03", "53300"])  # it starts up; it has no connection left
    def test_a_temporary_one_is_logged_with_growing_delays(
        self, every_fleet: Fleet, sqlstate: str, caplog: pytest.LogCaptureFixture
    ):
        with refusing_server(sqlstate) as url:
            worker = worker_with(every_fleet, create_engine(url), every_fleet.see("all"), max_retry_delay=0.04)
            every_fleet.start(worker)
            every_fleet.wait(lambda: len(refusals(caplog)) >= 5)
            every_fleet.stop()
        records = refusals(caplog)
        assert all(record.exc_info is None for record in records)  # one line each
        assert {record.worker for record in records} == {str(worker.id)}
        assert all(record.error.endswith("no entry") for record in records)
        pauses = [record.retry_after for record in records[:5]]
        longest = [0.01, 0.02, 0.04, 0.04, 0.04]
        assert all(most * 0.75 <= pause <= most for pause, most in zip(pauses, longest, strict=True))

    def test_the_delays_have_an_upper_limit(
        self, fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("pupsourcing_sa.worker._node._MAX_START_DELAY", 0.02)
        with refusing_server("57P03") as url:
            fleet.start(worker_with(fleet, create_engine(url), fleet.see("all"), max_retry_delay=600.0))
            fleet.wait(lambda: len(refusals(caplog)) >= 5)
            fleet.stop()
        assert max(record.retry_after for record in refusals(caplog)) <= 0.02

    @pytest.mark.parametrize("sqlstate", ["28P01", "3D000"])  # a wrong password; no such database
    def test_a_permanent_one(self, every_fleet: Fleet, sqlstate: str, caplog: pytest.LogCaptureFixture):
        """The worker does not start, if the driver reports the reason."""
        with refusing_server(sqlstate) as url:
            worker = worker_with(every_fleet, create_engine(url), every_fleet.see("all"))
            if every_fleet.driver == "asyncpg":
                with pytest.raises(Exception, match="no entry") as caught:
                    worker.run()
                assert getattr(caught.value, "orig", caught.value).sqlstate == sqlstate
                assert refusals(caplog) == []
            else:
                every_fleet.start(worker)
                every_fleet.wait(lambda: len(refusals(caplog)) >= 3)
                every_fleet.stop()


def test_a_stop_does_not_wait_for_a_server_that_never_answers(every_fleet: Fleet):
    with deaf_server() as (url, is_reached):
        worker = worker_with(every_fleet, create_engine(url), every_fleet.see("all"))
        thread = every_fleet.start(worker)
        assert is_reached.wait(patiently(20))
        worker.stop()
        thread.join(patiently(20))
        assert not thread.is_alive(), "it did not return"
