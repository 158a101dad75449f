"""An event is applied once, even when two processes run the same consumer, or one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, WorkerTables, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.fix_store import make_event, make_tables
from tests.waiting import patiently

QUICK: dict[str, Any] = {
    "poll_interval": 0.005,
    "max_poll_interval": 0.01,
    "rebalance_interval": 0.05,
    "heartbeat_interval": 0.1,
    "heartbeat_timeout": 0.5,
    "retry_delay": 0.01,
}
APPLIED = text("INSERT INTO applied (position, aggregate_id, version) VALUES (:position, :aggregate_id, :version)")


@pytest.fixture
def store(engine: Engine) -> EventStore:
    store = EventStore(make_tables(engine))
    WorkerTables(store.tables.metadata).metadata.create_all(engine)
    with engine.begin() as connection:  # without a unique constraint, so that a second application is visible
        connection.execute(
            text("CREATE TABLE applied (number serial, position bigint, aggregate_id text, version bigint)")
        )
    return store


def append(engine: Engine, store: EventStore, events: int) -> None:
    with Session(engine) as session:
        for number in range(events):
            store.append(session, AnyVersion(), [make_event(f"u{number % 7}")])
            if number % 10 == 9:
                session.commit()
        session.commit()


def apply(session: Session, event) -> None:
    session.execute(
        APPLIED,
        {"position": event.global_position, "aggregate_id": event.aggregate_id, "version": event.aggregate_version},
    )


def assert_applied_exactly_once(engine: Engine, events: int) -> None:
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM events")) == events
        differences = text(
            "SELECT count(*) FROM (SELECT global_position AS position FROM events"
            " EXCEPT ALL SELECT position FROM applied"
            " UNION ALL (SELECT position FROM applied EXCEPT ALL SELECT global_position FROM events)) AS different"
        )
        assert connection.scalar(differences) == 0
        disordered = text(
            "SELECT count(*) FROM (SELECT version, lag(version, 1, 0::bigint)"
            " OVER (PARTITION BY aggregate_id ORDER BY number) AS before FROM applied) AS neighbours"
            " WHERE version <> before + 1"
        )
        assert connection.scalar(disordered) == 0


@pytest.mark.parametrize("partitions", [1, 3])
def test_several_workers_on_one_consumer(engine: Engine, store: EventStore, partitions: int):
    consumes = consumer("applied", partitions=partitions)(apply)
    config = WorkerConfig(batch_size=7, **QUICK)
    workers = [Worker(sessionmaker(engine), store, [consumes], config=config) for _ in range(3)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    append(engine, store, 400)
    workers[0].stop()
    Worker(sessionmaker(engine), store, [consumes]).drain()
    for worker in workers:
        worker.stop()
    for thread in threads:
        thread.join()
    assert_applied_exactly_once(engine, 400)


SCRIPT = """
import os, sys, time
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.proof.test_exactly_once import QUICK, apply

@consumer("applied")
def handle(session, event):
    apply(session, event)
    if event.global_position == 55:
        session.flush()
        print("in the batch", flush=True)
        sys.stdin.readline()

engine = create_engine(os.environ["DATABASE_URL"])
Worker(sessionmaker(engine), EventStore(), [handle], config=WorkerConfig(batch_size=20, **QUICK)).run()
"""


@contextmanager
def process_in_a_batch(engine: Engine) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own that has handled event 55. It continues on a signal from the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"DATABASE_URL": engine.url.render_as_string(hide_password=False)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            assert process.stdout.readline() == b"in the batch\n"
            with engine.connect() as connection:
                assert connection.scalar(text("SELECT count(*) FROM applied")) == 40  # whole batches only
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_worker_that_is_killed_in_a_batch(engine: Engine, store: EventStore):
    append(engine, store, 100)
    with process_in_a_batch(engine) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    Worker(sessionmaker(engine), store, [consumer("applied")(apply)]).drain()
    assert_applied_exactly_once(engine, 100)


def test_a_worker_that_is_stopped_in_a_batch_and_continued(engine: Engine, store: EventStore):
    """The server does not know that the process is paused, and keeps its transaction and its locks."""
    append(engine, store, 100)
    with process_in_a_batch(engine) as process, running(engine, store) as worker:
        wait_for_nodes(engine, 2)
        process.send_signal(signal.SIGSTOP)
        wait_for_checkpoint(engine, 100)  # the other worker has taken over the partition and the lock
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        wait_for_nodes(engine, 2)  # it has rejoined
        append(engine, store, 50)
        wait_for_checkpoint(engine, 150)
        worker.stop()
        wait_for_nodes(engine, 1)
        append(engine, store, 50)
        wait_for_checkpoint(engine, 200)  # by that process alone
        process.send_signal(signal.SIGTERM)
        assert process.wait(patiently(30)) == 0
    assert_applied_exactly_once(engine, 200)


def test_a_commit_whose_answer_is_lost(engine: Engine, store: EventStore):
    lost: list[int] = []

    class Lossy(psycopg.Connection[Any]):
        def commit(self) -> None:
            super().commit()
            if len(lost) < 3 and "move" in told:
                told.clear()
                lost.append(1)
                self.close()
                raise psycopg.OperationalError("the answer is lost")

    told: set[str] = set()

    @consumer("applied")
    def handle(session: Session, event) -> None:
        apply(session, event)
        told.add("move")

    append(engine, store, 50)
    lossy = create_engine(engine.url, creator=lambda: Lossy.connect(**connect_args(engine)))
    worker = Worker(sessionmaker(lossy), store, [handle], config=WorkerConfig(batch_size=10, **QUICK))
    with in_thread(worker):
        wait_for_checkpoint(engine, 50)
    lossy.dispose()
    assert len(lost) == 3
    assert_applied_exactly_once(engine, 50)


def test_a_connection_that_is_cut_between_handler_and_commit(engine: Engine, store: EventStore):
    append(engine, store, 50)
    cut: list[int] = []

    @consumer("applied")
    def handle(session: Session, event) -> None:
        apply(session, event)
        if event.global_position == 25 and not cut:
            cut.append(session.scalar(text("SELECT pg_backend_pid()")))
            with engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": cut[0]})

    with in_thread(Worker(sessionmaker(engine), store, [handle], config=WorkerConfig(batch_size=50, **QUICK))):
        wait_for_checkpoint(engine, 50)
    assert cut
    assert_applied_exactly_once(engine, 50)


@contextmanager
def in_thread(worker: Worker) -> Iterator[Worker]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def running(engine: Engine, store: EventStore) -> AbstractContextManager[Worker]:
    return in_thread(Worker(sessionmaker(engine), store, [consumer("applied")(apply)], config=WorkerConfig(**QUICK)))


def connect_args(engine: Engine) -> dict[str, Any]:
    return engine.dialect.create_connect_args(engine.url)[1]


def wait_for_checkpoint(engine: Engine, position: int) -> None:
    wait_for(engine, "SELECT min(last_position) FROM consumer_checkpoints", position)


def wait_for_nodes(engine: Engine, nodes: int) -> None:
    wait_for(engine, "SELECT count(*) FROM worker_nodes", nodes)


def wait_for(engine: Engine, query: str, expected: int) -> None:
    deadline = time.monotonic() + patiently(30)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while (found := connection.scalar(text(query))) != expected:
            assert time.monotonic() < deadline, f"{query}: {found}, and not {expected}"
            time.sleep(0.01)
