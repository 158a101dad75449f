"""Whoever is dead and holds a checkpoint is ended; nobody else is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import WorkerTables
from pupsourcing_sa.worker._checkpoints import Checkpoint
from pupsourcing_sa.worker._holders import Holder, Holders
from tests.fix_worker import Fleet, Recorder


@contextmanager
def holding(
    engine: Engine, checkpoint: Checkpoint, worker_id: UUID | None, *, moves: bool = False
) -> Iterator[Session]:
    """A transaction that has locked the checkpoint, as a batch does, and stands still."""
    with Session(engine) as session:
        found = checkpoint.lock(session, worker_id=worker_id)
        assert found is not None
        if moves:
            checkpoint.move(session, 1, found.transaction)
        yield session


def pid_of(session: Session) -> int:
    pid: int = session.connection().connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
    return pid


def is_alive(session: Session) -> bool:
    try:
        return bool(session.scalar(select(1)))
    except OperationalError:
        return False


def write_node(connection: Connection, tables: WorkerTables, worker_id: UUID) -> None:
    """A node that will not be silent for some time."""
    connection.execute(
        tables.worker_nodes.insert().values(
            worker_id=worker_id, hostname="h", pid=1, consumers=[], heartbeat_at=func.now() + timedelta(days=1)
        )
    )


class TestEndDead:
    @pytest.fixture
    def checkpoint(self, worker_tables: WorkerTables) -> Checkpoint:
        return Checkpoint(worker_tables, "it's", 3)

    def end_dead(self, engine: Engine, checkpoint: Checkpoint) -> list[Holder]:
        with Session(engine) as session:
            return Holders(checkpoint).end_dead(session)

    @pytest.mark.parametrize("moves", [False, True])
    def test_a_node_that_there_is_none_of(self, engine: Engine, checkpoint: Checkpoint, moves: bool):
        worker_id = uuid4()
        with engine.begin() as connection:
            write_node(connection, checkpoint.tables, uuid4())  # somebody else
        with holding(engine, checkpoint, worker_id, moves=moves) as session:
            assert self.end_dead(engine, checkpoint) == [Holder(pid_of(session), f"pupsourcing-sa {worker_id}")]
            assert not is_alive(session)
        assert self.end_dead(engine, checkpoint) == []

    def test_not_a_node_that_is_alive(self, engine: Engine, checkpoint: Checkpoint):
        worker_id = uuid4()
        with engine.begin() as connection:
            write_node(connection, checkpoint.tables, worker_id)
        with holding(engine, checkpoint, worker_id) as session:
            assert self.end_dead(engine, checkpoint) == []
            assert is_alive(session)

    @pytest.mark.parametrize("name", [None, "psql", "pupsourcing-sa", "pupsourcing-sa x", f"xpupsourcing-sa {uuid4()}"])
    def test_not_a_drain_nor_anybody_else(self, engine: Engine, checkpoint: Checkpoint, name: str | None):
        with holding(engine, checkpoint, None) as session:
            if name is not None:
                session.execute(select(func.set_config("application_name", name, False)))
            assert self.end_dead(engine, checkpoint) == []
            assert is_alive(session)

    def test_not_who_holds_something_else(self, engine: Engine, checkpoint: Checkpoint):
        others = [Checkpoint(checkpoint.tables, *key) for key in (("it's", 2), ("other", 3))]
        with holding(engine, others[0], uuid4()) as one, holding(engine, others[1], uuid4()) as two:
            assert self.end_dead(engine, checkpoint) == []
            assert is_alive(one)
            assert is_alive(two)

    def test_not_who_waits_for_it(self, engine: Engine, checkpoint: Checkpoint):
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


@pytest.mark.parametrize("moves", [False, True])
def test_a_worker_ends_a_dead_node_and_goes_on(fleet: Fleet, moves: bool, caplog: pytest.LogCaptureFixture):
    checkpoint, recorder = declare(fleet), Recorder()
    fleet.start(fleet.worker(fleet.see("all"), telemetry=recorder))
    fleet.wait(lambda: len(recorder.named("worker.assigned")) == 1)
    with holding(fleet.engine, checkpoint, uuid4(), moves=moves) as session:
        pid = pid_of(session)
        fleet.append(3)
        fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
        assert not is_alive(session)
    assert recorder.named("worker.holder_ended") == [{"consumer": "all", "partition": 0, "pid": pid}]
    told = [record for record in caplog.records if record.message == "ended the transaction of a dead node"]
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


def test_a_drain_waits_for_whoever_it_is(fleet: Fleet):
    checkpoint, recorder = declare(fleet), Recorder()
    fleet.append(3)
    with holding(fleet.engine, checkpoint, uuid4()) as session:
        worker = fleet.worker(fleet.see("all"), telemetry=recorder)
        thread = fleet.run(worker.drain)
        fleet.wait(lambda: len(recorder.named("worker.batch")) >= 3)
        assert is_alive(session)
    thread.join()
    assert fleet.seen("all") == [1, 2, 3]


def test_a_role_that_may_not_is_told_once(sync_fleet: Fleet, caplog: pytest.LogCaptureFixture):
    fleet, recorder = sync_fleet, Recorder()
    checkpoint = declare(fleet)
    fleet.append(3)
    owner = fleet.engine
    role = f"worker_{uuid4().hex}"
    with owner.begin() as connection:
        schema = connection.scalar(text("SELECT current_schema()"))
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA {schema} TO {role}"))
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}"))
        connection.execute(text(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"))
    fleet.engine = create_engine(owner.url.update_query_dict({"options": f"-csearch_path={schema} -crole={role}"}))
    try:
        with holding(owner, checkpoint, uuid4()) as session:
            fleet.start(fleet.worker(fleet.see("all"), telemetry=recorder))
            fleet.wait(lambda: len(recorder.named("worker.batch")) >= 4)
            assert is_alive(session)
        fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
        fleet.stop()
        told = [record for record in caplog.records if "may not end" in record.message]
        assert [record.levelno for record in told] == [logging.WARNING]
        assert told[0].exc_info is not None
        assert isinstance(told[0].exc_info[1], DBAPIError)
    finally:
        fleet.stop()
        fleet.engine.dispose()
        fleet.engine = owner
        with owner.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))
