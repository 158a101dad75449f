"""A worker reports each transaction that keeps it from a checkpoint once, and continues when the transaction ends."""

from __future__ import annotations

import logging
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.lock_watch import LockTimer
from tests.fix_holders import holding, is_alive, unprivileged, write_node
from tests.fix_postgres import before_statements
from tests.fix_worker import Fleet, Recorder

#: Seconds after which a worker of these tests reports a lock.
OVERDUE = 0.1
TOLD = "checkpoint is locked by another transaction; waiting"
OVER = "checkpoint is no longer locked"


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report a lock early, without heartbeats that a busy machine may miss."""
    make = LockTimer.__init__
    monkeypatch.setattr(LockTimer, "__init__", lambda self, _: make(self, OVERDUE))


@pytest.mark.usefixtures("_impatient")
class TestTelling:
    def watch(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> Recorder:
        """Start a worker that has caught up."""
        caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
        recorder = Recorder()
        fleet.append()
        fleet.start(fleet.worker(fleet.see("all"), telemetry=recorder))
        fleet.wait(lambda: fleet.seen("all") == [1])
        return recorder

    def wait_for_batches(self, fleet: Fleet, recorder: Recorder, number: int) -> None:
        number += len(recorder.named("worker.batch"))
        fleet.wait(lambda: len(recorder.named("worker.batch")) >= number)

    def test_of_another_transaction_once_each(self, every_fleet: Fleet, caplog: pytest.LogCaptureFixture):
        fleet, recorder = every_fleet, self.watch(every_fleet, caplog)
        pids, ages = [], []
        for count in (1, 2):
            with fleet.engine.connect() as connection:
                connection.execute(select(func.set_config("application_name", "psql", True)))
                pids.append(connection.scalar(select(func.pg_backend_pid())))
                change_all = fleet.tables.consumer_checkpoints.update().values(attempts=0)
                connection.execute(change_all)
                fleet.append()
                fleet.wait(lambda count=count: len(recorder.named("worker.locked_out")) == count)
                self.wait_for_batches(fleet, recorder, 3)
                ages.append(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp() - now())::float")))
                assert fleet.seen("all") == list(range(1, count + 1))
            fleet.wait(lambda count=count: caplog.messages.count(OVER) == count)
            assert fleet.seen("all") == list(range(1, count + 2))
        events = recorder.named("worker.locked_out")
        assert [each["pid"] for each in events] == pids
        found = events[0]
        assert found["seconds"] >= OVERDUE
        # Not at least ``seconds``: under load, time passes between the server's answer and the worker's clock.
        assert 0 < found["age"] <= ages[0]
        assert (found["consumer"], found["partition"], found["gid"]) == ("all", 0, None)
        assert (found["application_name"], found["state"]) == ("psql", "idle in transaction")
        assert (found["user"], found["query"][:6]) == (fleet.engine.url.username, "UPDATE")
        records = [record for record in caplog.records if record.message == TOLD]
        assert [record.levelno for record in records] == [logging.WARNING] * 2
        assert {name: getattr(records[0], name) for name in found if name != "worker"}.items() <= found.items()
        assert recorder.named("worker.holder_ended") == []

    def test_of_a_prepared_transaction(self, fleet: Fleet, caplog: pytest.LogCaptureFixture):
        recorder, gid = self.watch(fleet, caplog), f"forgotten {uuid4()}"
        with fleet.engine.connect() as connection:
            transaction = connection.begin_twophase(gid)
            connection.execute(fleet.tables.consumer_checkpoints.update().values(attempts=0))
            transaction.prepare()
            try:
                fleet.append()
                fleet.wait(lambda: bool(recorder.named("worker.locked_out")))
            finally:
                transaction.rollback()
        fleet.wait(lambda: fleet.seen("all") == [1, 2])
        (found,) = recorder.named("worker.locked_out")
        assert (found["gid"], found["pid"], found["state"]) == (gid, None, "prepared")

    def test_of_a_live_node_that_is_not_the_owner(self, fleet: Fleet, caplog: pytest.LogCaptureFixture):
        recorder, worker_id = self.watch(fleet, caplog), uuid4()
        with fleet.engine.begin() as connection:
            write_node(connection, fleet.tables, worker_id)

        def is_told() -> bool:
            fleet.query("UPDATE worker_nodes SET heartbeat_at = clock_timestamp()", commit=True)
            return bool(recorder.named("worker.locked_out"))

        with holding(fleet.engine, Checkpoint(fleet.tables, "all", 0), worker_id) as session:
            fleet.append()
            fleet.wait(is_told)
            assert is_alive(session)
        fleet.wait(lambda: fleet.seen("all") == [1, 2])
        (found,) = recorder.named("worker.locked_out")
        assert found["application_name"] == f"pupsourcing-sa {worker_id}"

    def test_of_a_holder_that_cannot_be_determined(self, fleet: Fleet, caplog: pytest.LogCaptureFixture):
        recorder = self.watch(fleet, caplog)
        with fleet.engine.connect() as connection:
            with connection.begin_nested():
                connection.execute(fleet.tables.consumer_checkpoints.update().values(attempts=0))
            fleet.append()
            fleet.wait(lambda: bool(recorder.named("worker.locked_out")))
        fleet.wait(lambda: fleet.seen("all") == [1, 2])
        (found,) = recorder.named("worker.locked_out")
        assert found.keys() == {"worker", "consumer", "partition", "seconds"}


def test_batches_of_the_owner_do_not_ask_for_holders(sync_fleet: Fleet):
    fleet = sync_fleet
    executed: list[str] = []
    with before_statements(fleet.engine, executed.append):
        fleet.start(fleet.worker(fleet.see("all"), batch_size=1))
        fleet.append(20)
        fleet.wait(lambda: len(fleet.seen("all")) == 20)
        fleet.stop()
    assert [text for text in executed if "pg_locks" in text and "consumer_checkpoints" in text] == []


class TestLockTimer:
    def test_each_is_reported_once_when_it_has_lasted_long(self):
        watch = LockTimer(8.0)
        assert watch.overdue("a", 100.0) is None
        assert watch.overdue("a", 107.9) is None
        assert watch.overdue("a", 108.0) == 8.0
        assert watch.overdue("a", 999.0) is None
        assert watch.overdue("", 1000.0) is None
        assert watch.overdue("", 1009.0) == 9.0

    def test_those_that_come_and_go_are_not(self):
        """The transactions of a drain come and go; the drain advances."""
        watch = LockTimer(8.0)
        for now in range(100):
            assert watch.overdue(str(now // 5), now) is None
        assert not watch.has_ended()

    def test_a_holder_that_was_gone_starts_again(self):
        watch = LockTimer(8.0)
        watch.overdue("a", 0.0)
        assert not watch.has_ended()
        assert watch.overdue("a", 8.0) is None
        assert watch.overdue("a", 16.0) == 8.0
        watch.overdue("b", 17.0)
        assert watch.overdue("a", 18.0) is None
        assert watch.overdue("a", 26.0) == 8.0

    def test_the_end_of_a_reported_lock_is_reported_once(self):
        watch = LockTimer(8.0)
        assert not watch.has_ended()
        watch.overdue("a", 0.0)
        assert watch.overdue("a", 8.0) == 8.0
        watch.overdue("b", 9.0)
        assert watch.has_ended()
        assert not watch.has_ended()


@pytest.mark.usefixtures("_impatient")
def test_a_role_without_the_privilege_is_logged_once(sync_fleet: Fleet, caplog: pytest.LogCaptureFixture):
    fleet, recorder = sync_fleet, Recorder()
    fleet.worker(fleet.see("all")).drain()  # so that there is a checkpoint
    checkpoint = Checkpoint(fleet.tables, "all", 0)
    fleet.append(3)
    owner = fleet.engine
    with unprivileged(owner) as other:
        fleet.engine = other
        try:
            with holding(owner, checkpoint, uuid4()) as session:
                fleet.start(fleet.worker(fleet.see("all"), telemetry=recorder))
                fleet.wait(lambda: bool(recorder.named("worker.locked_out")))
                assert is_alive(session)
            fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
        finally:
            fleet.stop()
            fleet.engine = owner
    told = [record for record in caplog.records if "not allowed to terminate" in record.message]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert told[0].exc_info is not None
    assert isinstance(told[0].exc_info[1], DBAPIError)
