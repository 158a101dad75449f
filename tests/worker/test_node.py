"""The work of a node besides batches; nothing keeps it from it."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.worker._node import Node
from tests.fix_network import Proxy, worker_with
from tests.fix_store import wait_until_blocked
from tests.fix_worker import INSERT, Fleet, Recorder, stop_after_start
from tests.waiting import patiently


class TestMovedBack:
    """An operator has moved a checkpoint back, to rebuild a read model while workers run."""

    def test_an_idle_consumer_continues_from_there(self, both_fleets: Fleet, caplog: pytest.LogCaptureFixture):
        caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
        statements = {
            "to the start": ("UPDATE consumer_checkpoints SET last_position = 0", [1, 2, 3, 4, 5]),
            "to the third": ("UPDATE consumer_checkpoints SET last_position = 3", [4, 5]),
            "deleted": ("DELETE FROM consumer_checkpoints", [1, 2, 3, 4, 5]),
        }
        fleet, recorder = both_fleets, Recorder()
        fleet.append(5)
        fleet.start(fleet.worker(*map(fleet.see, statements), fleet.see("other"), telemetry=recorder))
        for name in (*statements, "other"):
            fleet.wait(lambda name=name: fleet.seen(name) == [1, 2, 3, 4, 5])
        for name, (statement, _) in statements.items():
            fleet.query(f"{statement} WHERE consumer_name = '{name}'", commit=True)
        for name, (_, again) in statements.items():
            fleet.wait(lambda name=name, again=again: fleet.seen(name) == [1, 2, 3, 4, 5, *again])
        fleet.append()
        for name, (_, again) in statements.items():
            fleet.wait(lambda name=name, again=again: fleet.seen(name) == [1, 2, 3, 4, 5, *again, 6])
        fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5, 6])
        begun = [data["consumer"] for data in recorder.named("worker.assigned")]
        assert sorted(begun) == sorted([*statements, *statements, "other"])
        records = [record for record in caplog.records if "moved back" in record.getMessage()]
        assert {(record.consumer, record.partition, record.position) for record in records} == {
            (name, 0, again[0] - 1) for name, (_, again) in statements.items()
        }
        assert len(records) == len(statements)

    def test_it_does_not_wait_until_a_failing_event_is_due(self, fleet: Fleet):
        is_broken = True

        def check(event: PersistedEvent) -> None:
            if is_broken and event.global_position == 3:
                raise ZeroDivisionError

        fleet.append(3)
        fleet.start(fleet.worker(fleet.see("all", check=check), retry_delay=600.0, max_retry_delay=600.0))
        fleet.wait(lambda: fleet.attempts("all") == 1)
        assert fleet.seen("all") == [1, 2]
        is_broken = False
        fleet.query("DELETE FROM consumer_checkpoints", commit=True)
        fleet.wait(lambda: fleet.seen("all") == [1, 2, 1, 2, 3])

    def test_nor_when_the_failing_event_was_its_first(self, fleet: Fleet, caplog: pytest.LogCaptureFixture):
        """After a deployment its first batch is the failing event, which is not due, or fails again."""
        caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
        patient = {"retry_delay": 600.0, "max_retry_delay": 600.0}
        statements = {
            "deleted": ("DELETE FROM consumer_checkpoints", [1, 2]),
            "due": ("UPDATE consumer_checkpoints SET retry_at = NULL", []),
        }
        is_broken = True

        def check(event: PersistedEvent) -> None:
            if is_broken and event.global_position == 3:
                raise ZeroDivisionError

        def start(recorder: Recorder | None = None) -> None:
            consumers = [fleet.see(name, check=check) for name in statements]
            fleet.start(fleet.worker(*consumers, telemetry=recorder, **patient))

        fleet.append(3)
        for attempts in (1, 2):
            fleet.query("UPDATE consumer_checkpoints SET retry_at = now()", commit=True)
            start()
            fleet.wait(lambda attempts=attempts: all(fleet.attempts(name) == attempts for name in statements))
            fleet.stop()
        is_broken = False
        recorder = Recorder()
        # As if the process had started before the failure; otherwise it would retry at once.
        fleet.query("UPDATE consumer_checkpoints SET failed_at = now() + interval '1 hour'", commit=True)
        start(recorder)
        fleet.wait(lambda: len({data["consumer"] for data in recorder.named("worker.batch")}) == 2)  # they were early
        for name, (statement, _) in statements.items():
            fleet.query(f"{statement} WHERE consumer_name = '{name}'", commit=True)
        for name, (_, again) in statements.items():
            fleet.wait(lambda name=name, again=again: fleet.seen(name) == [1, 2, *again, 3])
        for change in ("moved back", "retry_at was cleared"):
            assert any(change in message for message in caplog.messages)

    @pytest.mark.parametrize("ticks", [30, pytest.param(200, marks=pytest.mark.exhaustive)])
    def test_a_node_under_load_starts_no_processor_twice(self, fleet: Fleet, ticks: int):
        """Even when a batch is committed while a tick is on its way."""
        recorder = Recorder()
        partitions = 4
        worker = fleet.worker(fleet.see("all", partitions=partitions), telemetry=recorder, rebalance_interval=0.001)
        fleet.start(worker)
        appended = 0
        while len(recorder.named("worker.rebalance")) < ticks:
            fleet.append(5)
            appended += 5
        fleet.wait(lambda: len(fleet.seen("all")) == appended)
        fleet.stop()
        assert len(recorder.named("worker.assigned")) == partitions


class Lingering:
    """A consumer whose handler does not return before it may."""

    def __init__(self, fleet: Fleet, name: str = "all") -> None:
        self.is_begun, self.may_end = threading.Event(), threading.Event()

        @consumer(name)
        def linger(session: Session, event: PersistedEvent) -> None:
            self.is_begun.set()
            assert self.may_end.wait(patiently(60))
            session.execute(INSERT, {"consumer": name, "position": event.global_position})

        @consumer(name)
        async def linger_async(session: AsyncSession, event: PersistedEvent) -> None:
            self.is_begun.set()
            while not self.may_end.is_set():
                await asyncio.sleep(0.005)
            await session.execute(INSERT, {"consumer": name, "position": event.global_position})

        self.consumer: Any = linger_async if fleet.is_async else linger


@pytest.fixture
def lingering(fleet: Fleet):
    lingering = Lingering(fleet)
    yield lingering
    lingering.may_end.set()


def test_a_read_model_rebuilt_during_a_batch_has_each_event_once(fleet: Fleet):
    """By the statements of ``docs/howto/consume.md``, in their order."""
    page = Path(__file__).parents[2] / "docs" / "howto" / "consume.md"
    (recipe,) = re.findall(r"^```sql\n(BEGIN;\n.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    fleet.query("CREATE VIEW balances AS SELECT * FROM seen WHERE consumer = 'balances'", commit=True)
    lingering = Lingering(fleet, "balances")
    lingering.may_end.set()
    fleet.append(2)
    fleet.start(fleet.worker(lingering.consumer))
    fleet.wait(lambda: fleet.seen("balances") == [1, 2])
    lingering.is_begun.clear()
    lingering.may_end.clear()
    try:
        fleet.append(3)
        assert lingering.is_begun.wait(patiently(20))
        with fleet.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            assert pid is not None
            somebody = fleet.run(lambda: connection.exec_driver_sql(recipe))
            wait_until_blocked(fleet.engine, pid)
            lingering.may_end.set()
            somebody.join(patiently(20))
            assert not somebody.is_alive()
    finally:
        lingering.may_end.set()
    fleet.append()
    fleet.wait(lambda: 6 in fleet.seen("balances"))
    assert fleet.seen("balances") == [1, 2, 3, 4, 5, 6]


def test_a_node_that_waits_for_its_last_batch_stays_alive(fleet: Fleet, lingering: Lingering):
    """Otherwise other nodes would presume it dead, and terminate the transaction."""
    fleet.append()
    worker = fleet.worker(lingering.consumer, heartbeat_interval=0.05, shutdown_timeout=patiently(60.0))
    thread = fleet.start(worker)
    assert lingering.is_begun.wait(patiently(20))
    worker.stop()
    beats = set()

    def has_beaten() -> bool:
        beats.update(fleet.query("SELECT heartbeat_at FROM worker_nodes WHERE consumers = '{}'"))
        return len(beats) >= 4  # the first of them was written with the empty list

    fleet.wait(has_beaten)
    lingering.may_end.set()
    thread.join(patiently(20))
    assert not thread.is_alive()
    assert fleet.seen("all") == [1]
    assert fleet.query("SELECT * FROM worker_nodes") == []


def test_a_node_that_was_presumed_dead_rejoins(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    fleet.start(fleet.worker(fleet.see("all"), heartbeat_interval=0.05))
    fleet.wait(lambda: fleet.query("SELECT * FROM worker_nodes") != [])
    fleet.query("DELETE FROM worker_nodes", commit=True)
    fleet.wait(lambda: "node was presumed dead; rejoined" in caplog.messages)
    fleet.append()
    fleet.wait(lambda: fleet.seen("all") == [1])


@pytest.mark.parametrize("table", ["worker_nodes", "consumer_assignments", "consumer_checkpoints"])
def test_rows_that_are_deleted_while_a_node_runs_are_made_again(fleet: Fleet, table: str):
    fleet.start(fleet.worker(fleet.see("all", partitions=2), heartbeat_interval=0.05))
    fleet.append(4)
    fleet.wait(lambda: len(fleet.seen("all")) == 4)
    rows = len(fleet.query(f"SELECT * FROM {table}"))
    fleet.query(f"DELETE FROM {table}", commit=True)
    fleet.wait(lambda: len(fleet.query(f"SELECT * FROM {table}")) == rows)
    fleet.append(4)
    fleet.wait(lambda: set(fleet.seen("all")) == set(range(1, 9)))


def engine_of(fleet: Fleet, there: Engine) -> Engine:
    """Of the fleet's last worker, which has been made for that one."""
    return fleet._async_engines[-1].sync_engine if fleet.is_async else there


def test_a_heartbeat_that_is_never_answered_leaves_time_for_another(every_fleet: Fleet, engine: Engine):
    """Before another node presumes this one dead."""
    fleet, recorder = every_fleet, Recorder()
    times = {"heartbeat_interval": 0.2, "heartbeat_timeout": patiently(4.0)}
    other = fleet.worker(fleet.see("all"), telemetry=recorder, **times)
    with Proxy(engine) as proxy:
        there = create_engine(proxy.url)
        worker = worker_with(fleet, there, fleet.see("all"), **times)
        forgotten: list[int] = []

        def forget(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("UPDATE worker_nodes") and not forgotten:
                forgotten.append(proxy.forget())

        event.listen(engine_of(fleet, there), "before_cursor_execute", forget)
        fleet.start(other)
        thread = fleet.start(worker)
        fleet.wait(lambda: forgotten != [])
        (now,) = fleet.query("SELECT clock_timestamp()")[0]
        beaten = "SELECT * FROM worker_nodes WHERE worker_id = :id AND heartbeat_at > :now"
        fleet.wait(lambda: fleet.query(beaten, id=worker.id, now=now) != [])
        assert recorder.named("worker.node_removed") == []
        worker.stop()
        thread.join(patiently(20))
        assert not thread.is_alive()
    fleet.stop()
    there.dispose()


def test_a_node_ends_when_its_server_stops_answering(every_fleet: Fleet, engine: Engine):
    """Even though drivers wait for the end of each query that they cancel."""
    fleet, is_in_query, is_in_tick = every_fleet, threading.Event(), threading.Event()
    lock = text("SELECT pg_advisory_xact_lock(1)")

    @consumer("all")
    def wait(session: Session, event: PersistedEvent) -> None:
        session.execute(lock)

    @consumer("all")
    async def wait_async(session: AsyncSession, event: PersistedEvent) -> None:
        await session.execute(lock)

    fleet.append()
    with engine.connect() as holder, Proxy(engine) as proxy:
        holder.execute(lock)
        there = create_engine(proxy.url)
        handler = wait_async if fleet.is_async else wait
        worker = worker_with(fleet, there, handler, shutdown_timeout=0.1, heartbeat_timeout=60.0)

        def go_dark(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if is_in_query.is_set() and not is_in_tick.is_set() and "FROM consumer_assignments" in statement:
                proxy.go_dark()
                is_in_tick.set()

        event.listen(engine_of(fleet, there), "before_cursor_execute", go_dark)
        thread = fleet.start(worker)
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        fleet.wait(lambda: fleet.query(waiting) != [])
        is_in_query.set()
        assert is_in_tick.wait(patiently(20))
        worker.stop()
        thread.join(patiently(10))  # an idle machine needs half of it; two of psycopg's waits take longer
        assert not thread.is_alive()
    fleet.stop()
    there.dispose()


FORKING = """
import sys
from multiprocessing import get_context

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker

@consumer("all")
def handle(session, event): ...

worker = Worker(sessionmaker(create_engine(sys.argv[1])), EventStore(), [handle])
processes = [get_context("fork").Process(target=worker.run) for _ in range(2)]
for process in processes:
    process.start()
sys.stdin.read()
for process in processes:
    process.terminate()
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


def test_processes_forked_after_the_worker_was_made_are_nodes_of_their_own(sync_fleet: Fleet):
    """With one id, the first to stop would take the partitions from all of them, and no node would give them back."""
    url = sync_fleet.engine.url.render_as_string(hide_password=False)
    with subprocess.Popen([sys.executable, "-c", FORKING, url], stdin=subprocess.PIPE) as processes:
        nodes = "SELECT count(DISTINCT pid) FROM worker_nodes"
        sync_fleet.wait(lambda: sync_fleet.query(nodes) == [(2,)])
        assert processes.stdin is not None
        processes.stdin.close()
        assert processes.wait(patiently(30)) == 0
    assert sync_fleet.query(nodes) == [(0,)]


def test_a_stop_during_the_start_begins_no_batch(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    fleet.append(1)
    worker = fleet.worker(fleet.see("all"))
    stop_after_start(monkeypatch, Node)
    worker.run()
    assert fleet.seen("all") == []


def test_a_stop_during_a_tick_begins_no_batch(sync_fleet: Fleet):
    """Processors stop at once, even while the tick waits for a lock. The handler waits too, in a thread."""
    fleet = sync_fleet
    is_begun, may_end, recorder = threading.Event(), threading.Event(), Recorder()

    def wait(event: PersistedEvent) -> None:
        is_begun.set()
        assert may_end.wait(patiently(60))

    fleet.append(3)
    worker = fleet.worker(
        fleet.see("all", check=wait, batch_size=1), telemetry=recorder, heartbeat_interval=0.05, heartbeat_timeout=600.0
    )
    thread = fleet.start(worker)
    try:
        fleet.wait(is_begun.is_set)
        with fleet.engine.connect() as connection:
            connection.execute(text("LOCK TABLE worker_nodes IN ACCESS EXCLUSIVE MODE"))
            waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'worker_nodes'::regclass"
            fleet.wait(lambda: fleet.query(waiting) != [])
            worker.stop()
            fleet.wait(lambda: recorder.named("worker.revoked") != [])
            may_end.set()
            fleet.wait(lambda: fleet.seen("all") != [])
    finally:
        may_end.set()
    thread.join(patiently(20))
    assert not thread.is_alive()
    assert fleet.seen("all") == [1]


def test_a_worker_has_stopped_when_its_node_has_left(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
    staying, leaving = fleet.worker(fleet.see("all", partitions=2)), fleet.worker(fleet.see("all", partitions=2))
    fleet.start(staying)
    thread = fleet.start(leaving)
    fleet.wait(lambda: len(set(fleet.query("SELECT worker_id FROM consumer_assignments"))) == 2)
    leaving.stop()
    thread.join(patiently(20))
    of_it = [record.getMessage() for record in caplog.records if getattr(record, "worker", None) == str(leaving.id)]
    assert "partitions assigned" in of_it
    assert of_it[-1] == "worker stopped"
