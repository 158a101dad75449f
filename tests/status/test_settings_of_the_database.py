"""Settings of a session, a role or a database change nothing that the library reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, LargeBinary, NullPool, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, WorkerTables
from pupsourcing_sa.migrations._catalog import read_guards
from pupsourcing_sa.postgres.log_names import LogName
from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.worker import read_status
from pupsourcing_sa.worker.coordination.assignments import Assignments
from pupsourcing_sa.worker.coordination.nodes import Nodes
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.lock_watch import HolderQuery
from pupsourcing_sa.worker.running import Announcement, to_text
from tests.fix_postgres import DatabasePool
from tests.fix_store import make_event

NODE = UUID(int=1)
MOMENT = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
#: Seconds since the node's heartbeat and until the next attempt. One digit of it is not enough.
AGE = 1234

SETTINGS = [
    ("IntervalStyle", "iso_8601"),
    ("IntervalStyle", "sql_standard"),
    ("IntervalStyle", "postgres_verbose"),
    ("DateStyle", "SQL,DMY"),
    ("DateStyle", "German"),
    ("DateStyle", "Postgres,MDY"),
    ("TimeZone", "Asia/Kathmandu"),
    ("TimeZone", "<+01>-01:30"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("extra_float_digits", "3"),
    ("client_encoding", "LATIN1"),
    ("lc_messages", "C"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("quote_all_identifiers", "on"),
    ("row_security", "off"),
    ("xmloption", "document"),
    ("xmlbinary", "hex"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_isolation", "repeatable\\ read"),
    ("default_transaction_deferrable", "on"),
    ("plan_cache_mode", "force_generic_plan"),
    ("search_path", "pg_temp,public,pg_catalog"),
]


class Scene:
    """A log with an open append, and a consumer with a failing and a locked partition."""

    def __init__(self, engine: Engine, payload: Any) -> None:
        self.engine = engine
        self.tables = EventTables(payload=payload, guarded=True)
        self.store = EventStore(self.tables)
        self.workers = WorkerTables(self.tables.metadata)
        self.tables.metadata.create_all(engine)
        now = func.clock_timestamp()
        failure = {
            "last_position": 1,
            "failed_position": 2,
            "attempts": 3,
            "error": "\\ 'é'",
            "failed_at": MOMENT,
            "retry_at": now + timedelta(seconds=AGE),
        }
        heartbeat_at = now - timedelta(seconds=AGE)
        batch = RunningBatch("é", 1, 2**62, 0.1)
        running = json.loads(to_text(batches=[batch], announced=Announcement("é", 1, 2**62, "id", "\\", None)))
        node = {"worker_id": NODE, "hostname": "é", "pid": 1, "consumers": ["a", "b c"], "created_at": MOMENT}
        node["running"] = running
        with Session(engine) as session:
            for number in range(3):
                event = make_event(f"é{number}", payload={"é\\": number / 3}, metadata={"x": "\\é"}, created_at=MOMENT)
                self.store.append(session, AnyVersion(), [event])
            session.execute(self.workers.worker_nodes.insert().values(node | {"heartbeat_at": heartbeat_at}))
            for partition in range(2):
                key = {"consumer_name": "a", "partition": partition}
                session.execute(self.workers.consumer_assignments.insert().values(key | {"worker_id": NODE}))
                row = key | (failure if partition == 0 else {"updated_at": MOMENT})
                session.execute(self.workers.consumer_checkpoints.insert().values(row))
            session.commit()

    def read(self, engine: Engine) -> dict[str, Any]:
        """Execute every statement that reads, and return the values that stay the same."""
        with Session(engine) as session:
            status = read_status(session, self.store, self.workers)
            (blocking,) = self.store.blocking_appends(session)
            (consumer,) = status.consumers
            failing, locked = consumer.partitions
            assert failing.failing is not None
            assert locked.locked_by is not None
            assert failing.failing.retry_at is not None
            for age in (blocking.age, locked.locked_by.age, datetime.now(UTC) - status.taken_at):
                assert age is not None
                assert timedelta(-60) < age < timedelta(seconds=60)
            assert AGE <= status.nodes[0].heartbeat_age < AGE + 60
            assert abs(failing.lag_seconds - (status.taken_at - MOMENT).total_seconds()) < 60
            values = {
                "node": replace(status.nodes[0], heartbeat_age=0.0),
                "status": (status.last_position, status.last_issued, status.stable_position, failing.failing),
                "blocking": (blocking.pid, blocking.mark, blocking.state, blocking.query),
                "locked": (locked.locked_by.pid, locked.locked_by.user),
                "events": self.store.read_events(session, up_to=10, aggregate_types={"User"}),
                "backwards": self.store.read_events(session, up_to=10, backwards=True),
                "stream": self.store.read_aggregate_stream(session, "User", "é1"),
                "version": self.store.aggregate_version(session, "User", "é1"),
                "positions": self.store.reader.positions(session),
                "by id": self.store.reader.events_by_id(session, [failing.failing.event_id]),
                "guards": read_guards(session.connection()),
                "runnable": Assignments(self.workers).runnable(session.connection(), NODE, {"a": 2}, "log"),
                "log": LogName(self.tables, self.workers).read(session),
                "nodes": Nodes(self.workers).all(session.connection()),
            }
            lock = HolderQuery(Checkpoint(self.workers, "a", 1)).find(session, terminate_dead=True)
            assert lock is not None
            values["lock"] = lock.holder.pid
        with Session(engine) as session:
            checkpoint = Checkpoint(self.workers, "a", 0).lock(session)
            assert checkpoint is not None
            assert AGE - 60 < checkpoint.retry_after < AGE
            values["checkpoint"] = checkpoint._replace(retry_after=0.0, transaction=0)
        with Session(engine) as session:
            (removed,) = Nodes(self.workers).remove_silent(session.connection(), AGE - 60)
            assert AGE <= removed.silence < AGE + 60
            values["removed"] = replace(removed, silence=0.0)
        with Session(engine) as session:
            joined_at = Nodes(self.workers).write(session.connection(), UUID(int=2), ["a"])
            assert abs(datetime.now(UTC) - joined_at) < timedelta(seconds=60)
            first = Checkpoint(self.workers, "a", 0)
            values["failed before"] = [first.failed_before(session, time) for time in (MOMENT, joined_at)]
        return values


@pytest.fixture(scope="module", params=[LargeBinary, JSONB])
def scene(request: pytest.FixtureRequest, database_pool: DatabasePool) -> Iterator[Scene]:
    """One for all tests, which only read."""
    name = database_pool.take()
    engine = create_engine(database_pool.url(name))
    scene = Scene(engine, request.param)
    checkpoints = scene.workers.consumer_checkpoints
    with Session(engine) as session:
        scene.store.append(session, AnyVersion(), [make_event("open")])
        session.execute(checkpoints.update().where(checkpoints.c.partition == 1).values(attempts=0))
        yield scene
    engine.dispose()
    database_pool.give_back(name)


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_reads_return_the_same(scene: Scene, name: str, value: str) -> None:
    expected = scene.read(scene.engine)
    changed = create_engine(scene.engine.url, connect_args={"options": f"-c{name}={value}"}, poolclass=NullPool)
    assert scene.read(changed) == expected
    appended = make_event("new", payload={"é\\": 1 / 3}, metadata={"x": "\\é"}, created_at=MOMENT)
    with Session(changed) as session:
        scene.store.append(session, AnyVersion(), [appended])
        (found,) = scene.store.read_aggregate_stream(session, "User", "new")
    assert (found.created_at, found.json(), found.metadata) == (MOMENT, appended.json(), appended.metadata)
