"""The transaction of a dead node that holds a checkpoint is terminated; every other one is reported and waited for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, Select, Table, TextClause, func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import WorkerTables
from pupsourcing_sa.postgres.checkpoint_locks import checkpoint_locks
from pupsourcing_sa.postgres.lock_holders import LockHolder
from pupsourcing_sa.worker.processing import lock_watch
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.lock_watch import CheckpointLock, HolderQuery
from tests.fix_holders import holding, is_alive, pid_of, unprivileged, write_node
from tests.fix_processing import assign
from tests.fix_worker import Fleet, Recorder


def look(engine: Engine, checkpoint: Checkpoint, *, is_ending: bool = False) -> CheckpointLock | None:
    with Session(engine) as session:
        return HolderQuery(checkpoint).find(session, terminate_dead=is_ending)


@pytest.fixture
def checkpoint(engine: Engine, worker_tables: WorkerTables) -> Checkpoint:
    for key in (("it's", 3), ("it's", 2), ("other", 3)):
        assign(engine, worker_tables, *key)
    return Checkpoint(worker_tables, "it's", 3)


@pytest.fixture
def row(engine: Engine, checkpoint: Checkpoint) -> Table:
    """The table, in which the checkpoint is there, and another one."""
    table = checkpoint.tables.consumer_checkpoints
    with engine.begin() as connection:
        for partition in (2, 3):
            connection.execute(table.insert().values(consumer_name="it's", partition=partition))
    return table


def lock(connection: Connection, table: Table, **how: bool) -> None:
    connection.execute(select(table).where(table.c.partition == 3).with_for_update(**how))


def change(connection: Connection, table: Table) -> None:
    connection.execute(table.update().where(table.c.partition == 3).values(attempts=1))


def delete(connection: Connection, table: Table) -> None:
    connection.execute(table.delete())


class TestLook:
    def test_another_transaction(self, engine: Engine, checkpoint: Checkpoint, row: Table):
        for holds in (lock, change, delete):
            self.assert_found(engine, checkpoint, row, holds)

    def assert_found(self, engine: Engine, checkpoint: Checkpoint, row: Table, holds: Callable[..., None]) -> None:
        with engine.connect() as connection:
            connection.execute(select(func.set_config("application_name", "a tool", False)))
            holds(connection, row)
            pid = connection.scalar(select(func.pg_backend_pid()))
            for is_ending in (False, True):
                held = look(engine, checkpoint, is_ending=is_ending)
                assert held is not None
                assert not held.is_terminated
            holder = held.holder
            assert (holder.pid, holder.gid, holder.user) == (pid, None, engine.url.username)
            assert (holder.application_name, holder.state) == ("a tool", "idle in transaction")
            assert "pg_backend_pid" in (holder.query or "")
            assert holder.age is not None
            assert timedelta(0) < holder.age < timedelta(minutes=1)
            assert holder.to_dict() == {
                "pid": pid,
                "gid": None,
                "user": engine.url.username,
                "application_name": "a tool",
                "state": "idle in transaction",
                "age": holder.age.total_seconds(),
                "query": holder.query,
            }
            connection.rollback()
            assert look(engine, checkpoint) is None

    def test_a_savepoint_that_is_not_released(self, engine: Engine, checkpoint: Checkpoint, row: Table):
        with engine.connect() as connection, connection.begin_nested():
            change(connection, row)
            held = look(engine, checkpoint)
            assert held is not None
            assert held.holder.pid == connection.scalar(select(func.pg_backend_pid()))

    def test_a_holder_that_cannot_be_determined(self, engine: Engine, checkpoint: Checkpoint, row: Table):
        """An operator might terminate the wrong one: several share the lock, or a savepoint of psql has it."""
        with engine.connect() as connection, engine.connect() as other:
            other.execute(row.update().where(row.c.partition == 2).values(attempts=1))
            with connection.begin_nested():
                change(connection, row)
            assert look(engine, checkpoint) is None
        with engine.connect() as connection, engine.connect() as other:
            lock(connection, row, read=True)
            lock(other, row, read=True)
            assert look(engine, checkpoint) is None

    def test_a_prepared_transaction(self, engine: Engine, checkpoint: Checkpoint, row: Table):
        gid = f"it's {uuid4()}"
        with engine.connect() as connection:
            transaction = connection.begin_twophase(gid)
            change(connection, row)
            transaction.prepare()
            try:
                held = look(engine, checkpoint, is_ending=True)
            finally:
                transaction.rollback()
        assert held is not None
        holder = held.holder
        assert (holder.pid, holder.gid, holder.user, holder.state) == (None, gid, engine.url.username, "prepared")
        assert (holder.application_name, holder.query, held.is_terminated) == (None, None, False)
        assert holder.age is not None
        assert look(engine, checkpoint) is None

    def test_not_a_holder_of_another_lock(self, engine: Engine, checkpoint: Checkpoint, row: Table):
        with engine.connect() as other, engine.connect() as unrelated, engine.connect() as reading:
            other.execute(row.update().where(row.c.partition == 2).values(attempts=1))
            reading.execute(select(row))
            unrelated.execute(select(func.txid_current()))
            assert look(engine, checkpoint) is None

    def test_a_transaction_id_of_another_transaction(self, engine: Engine, checkpoint: Checkpoint, row: Table):
        """Transaction ids are reused, and a copy of a database has tables with the same oids."""
        statement = HolderQuery(checkpoint)._find
        with engine.connect() as other, engine.connect() as copied, engine.connect() as last:
            number = other.scalar(select(func.txid_current()))
            assert last.execute(statement_with(statement, {"held.xmax": f"'{number}'::xid"})).all() == []
            change(copied, row)
            found = last.execute(statement).all()
            assert [each.pid for each in found] == [copied.scalar(select(func.pg_backend_pid()))], "it does look there"
            elsewhere = {"current_database()": "'template1'"}
            assert last.execute(statement_with(statement, elsewhere)).all() == []

    def test_a_role_without_any_privilege_sees_who_it_is(self, engine: Engine, checkpoint: Checkpoint, row: Table):
        worker_id = uuid4()
        with unprivileged(engine, row.schema) as other, holding(engine, checkpoint, worker_id) as session:
            held = look(other, checkpoint)
            assert held is not None
            assert held.holder == LockHolder(
                pid=pid_of(session),
                gid=None,
                user=engine.url.username,
                application_name=f"pupsourcing-sa {worker_id}",
                state=None,
                age=None,
                query=None,
            )
            assert held.holder.to_dict()["age"] is None


def statement_with(statement: Select[Any], replacements: dict[str, str]) -> TextClause:
    """The statement's text, with something else here and there."""
    sql = str(statement.compile(dialect=postgresql.dialect(paramstyle="named"), compile_kwargs={"literal_binds": True}))
    for old, new in replacements.items():
        assert old in sql
        sql = sql.replace(old, new)
    return text(sql.replace(":", r"\:"))


class TestEndDead:
    def end_dead(self, engine: Engine, checkpoint: Checkpoint) -> list[tuple[int | None, str | None]]:
        held = look(engine, checkpoint, is_ending=True)
        return [(held.holder.pid, held.holder.application_name)] if held and held.is_terminated else []

    def test_a_node_that_has_no_row(self, engine: Engine, checkpoint: Checkpoint):
        worker_id = uuid4()
        with engine.begin() as connection:
            write_node(connection, checkpoint.tables, uuid4())  # another one
        for moves in (False, True):
            with holding(engine, checkpoint, worker_id, moves=moves) as session:
                assert self.end_dead(engine, checkpoint) == [(pid_of(session), f"pupsourcing-sa {worker_id}")]
                assert not is_alive(session)
            assert self.end_dead(engine, checkpoint) == []

    def test_not_unless_it_is_asked_for(self, engine: Engine, checkpoint: Checkpoint):
        with holding(engine, checkpoint, uuid4()) as session:
            held = look(engine, checkpoint, is_ending=False)
            assert held is not None
            assert (held.holder.pid, held.is_terminated) == (pid_of(session), False)
            assert is_alive(session)

    def test_not_a_node_that_is_alive(self, engine: Engine, checkpoint: Checkpoint):
        worker_id = uuid4()
        with engine.begin() as connection:
            write_node(connection, checkpoint.tables, worker_id)
        with holding(engine, checkpoint, worker_id) as session:
            assert self.end_dead(engine, checkpoint) == []
            assert is_alive(session)

    def test_not_a_drain_nor_another_program(self, engine: Engine, checkpoint: Checkpoint):
        for name in (None, "psql", "pupsourcing-sa", "pupsourcing-sa x", f"xpupsourcing-sa {uuid4()}"):
            with holding(engine, checkpoint, None) as session:
                if name is not None:
                    session.execute(select(func.set_config("application_name", name, False)))
                assert self.end_dead(engine, checkpoint) == [], name
                assert is_alive(session), name

    def test_not_a_holder_of_another_lock(self, engine: Engine, checkpoint: Checkpoint):
        others = [Checkpoint(checkpoint.tables, *key) for key in (("it's", 2), ("other", 3))]
        with holding(engine, others[0], uuid4()) as one, holding(engine, others[1], uuid4()) as two:
            assert self.end_dead(engine, checkpoint) == []
            assert is_alive(one)
            assert is_alive(two)

    def test_not_a_transaction_that_waits_for_the_lock(self, engine: Engine, checkpoint: Checkpoint):
        """A node that is gone, in a transaction that only wants the row, which a node has that is alive."""
        holder_id = uuid4()
        with engine.begin() as connection:
            write_node(connection, checkpoint.tables, holder_id)
        with holding(engine, checkpoint, holder_id), engine.connect() as waiting:
            waiting.execute(select(func.set_config("application_name", f"pupsourcing-sa {uuid4()}", True)))
            waiting.execute(text("SET LOCAL lock_timeout = '50ms'"))
            with pytest.raises(OperationalError):
                waiting.execute(checkpoint.tables.consumer_checkpoints.update().values(last_position=9))
            assert self.end_dead(engine, checkpoint) == []

    def test_nobody(self, engine: Engine, checkpoint: Checkpoint):
        assert self.end_dead(engine, checkpoint) == []
        with holding(engine, checkpoint, uuid4()) as session:
            session.commit()  # the row still says who it was
            assert self.end_dead(engine, checkpoint) == []
            assert is_alive(session)


def declare(fleet: Fleet) -> Checkpoint:
    """The checkpoint of a consumer, which exists."""
    fleet.worker(fleet.see("all")).drain()
    return Checkpoint(fleet.tables, "all", 0)


@pytest.mark.parametrize("moves", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_a_worker_ends_a_dead_node_and_goes_on(fleet: Fleet, moves: bool, caplog: pytest.LogCaptureFixture):
    checkpoint, recorder = declare(fleet), Recorder()
    fleet.start(fleet.worker(fleet.see("all"), telemetry=recorder))
    fleet.wait(lambda: len(recorder.named("worker.assigned")) == 1)
    with holding(fleet.engine, checkpoint, uuid4(), moves=moves) as session:
        pid = pid_of(session)
        fleet.append(3)
        fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
        assert not is_alive(session)
    (ended,) = recorder.named("worker.holder_ended")
    assert (ended["consumer"], ended["partition"], ended["pid"]) == ("all", 0, pid)
    told = [record for record in caplog.records if record.message == "terminated the transaction of a dead node"]
    assert [(record.levelno, record.consumer, record.pid) for record in told] == [(logging.WARNING, "all", pid)]


def test_a_worker_waits_for_a_node_that_is_alive(fleet: Fleet):
    checkpoint, recorder, worker_id = declare(fleet), Recorder(), uuid4()
    fleet.append(3)
    with fleet.engine.begin() as connection:
        write_node(connection, fleet.tables, worker_id)
    with holding(fleet.engine, checkpoint, worker_id) as session:
        fleet.start(fleet.worker(fleet.see("all"), telemetry=recorder))
        fleet.wait(lambda: len(recorder.named("worker.batch")) >= 3)
        assert is_alive(session)
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
    assert recorder.named("worker.holder_ended") == []


def test_a_drain_waits_for_every_holder(fleet: Fleet):
    checkpoint, recorder = declare(fleet), Recorder()
    fleet.append(3)
    with holding(fleet.engine, checkpoint, uuid4()) as session:
        worker = fleet.worker(fleet.see("all"), telemetry=recorder)
        thread = fleet.run(worker.drain)
        fleet.wait(lambda: len(recorder.named("worker.batch")) >= 3)
        assert is_alive(session)
    thread.join()
    assert fleet.seen("all") == [1, 2, 3]


def test_the_query_for_holders_is_not_built_before_it_is_needed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """A node that begins a thousand processors at once has no time for it, and its heartbeat none to wait for it."""
    built: list[WorkerTables] = []

    def count(tables: WorkerTables) -> Select[Any]:
        built.append(tables)
        return checkpoint_locks(tables)

    monkeypatch.setattr(lock_watch, "checkpoint_locks", count)
    fleet.append()
    fleet.start(fleet.worker(fleet.see("all")))
    fleet.wait(lambda: fleet.seen("all") == [1])
    assert built == []
