"""P4: an event is applied once, also when two processes run the same consumer, and when one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, WorkerTables, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.fix_store import make_event, make_tables

APPLIED = text("INSERT INTO applied (position, aggregate_id, version) VALUES (:position, :aggregate_id, :version)")


@pytest.fixture
def store(engine: Engine) -> EventStore:
    store = EventStore(make_tables(engine))
    WorkerTables(store.tables.metadata).metadata.create_all(engine)
    with engine.begin() as connection:  # without a unique constraint, so that a second application would be seen
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
    config = WorkerConfig(batch_size=7, poll_interval=0.005, max_poll_interval=0.01)
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


def test_a_worker_that_is_killed_in_a_batch(engine: Engine, store: EventStore):
    append(engine, store, 100)
    script = """
import os, sys, time
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.proof.test_exactly_once import apply

@consumer("applied")
def handle(session, event):
    apply(session, event)
    if event.global_position == 55:
        session.flush()
        print("in the batch", flush=True)
        time.sleep(600)

engine = create_engine(os.environ["DATABASE_URL"])
Worker(sessionmaker(engine), EventStore(), [handle], config=WorkerConfig(batch_size=20)).run()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"DATABASE_URL": engine.url.render_as_string(hide_password=False)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"in the batch\n"
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM applied")) == 40  # whole batches only
        process.send_signal(signal.SIGKILL)
        process.wait()

    Worker(sessionmaker(engine), store, [consumer("applied")(apply)]).drain()
    assert_applied_exactly_once(engine, 100)


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

    config = WorkerConfig(batch_size=50, retry_delay=0.01, poll_interval=0.01)
    worker = Worker(sessionmaker(engine), store, [handle], config=config)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_for_checkpoint(engine, 50)
    worker.stop()
    thread.join()
    assert cut
    assert_applied_exactly_once(engine, 50)


def wait_for_checkpoint(engine: Engine, position: int) -> None:
    deadline = time.monotonic() + 30
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(text("SELECT min(last_position) FROM consumer_checkpoints")) != position:
            assert time.monotonic() < deadline, "the worker did not get there"
            time.sleep(0.01)
