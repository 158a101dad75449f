"""Transactions that keep a node from its partition, in the status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, AsyncEventStore, WorkerTables
from pupsourcing_sa.status.durations import locked_seconds
from pupsourcing_sa.worker import PartitionStatus, Status, StatusLimits, diagnose, read_status, read_status_async
from tests.fix_holders import unprivileged
from tests.fix_postgres import before_statements
from tests.fix_store import Log, make_event
from tests.fix_worker import Fleet

NODE = uuid4()


def name(connection: Connection, worker_id: UUID | None) -> None:
    if worker_id is not None:
        connection.execute(select(func.set_config("application_name", f"pupsourcing-sa {worker_id}", True)))


def declare(log: Log, engine: Engine) -> WorkerTables:
    """Create the workers' tables: a node, and a partition that it runs and that has not moved for an hour."""
    tables = WorkerTables(log.tables.metadata, schema=log.tables.events.schema)
    tables.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(tables.worker_nodes.insert().values(worker_id=NODE, hostname="h", pid=1, consumers=["a"]))
        key = {"consumer_name": "a", "partition": 0}
        connection.execute(tables.consumer_assignments.insert().values(key | {"worker_id": NODE}))
        moved_at = func.now() - timedelta(hours=1)
        connection.execute(tables.consumer_checkpoints.insert().values(key | {"updated_at": moved_at}))
    return tables


@pytest.fixture
def worker_tables(plain_log: Log, engine: Engine) -> WorkerTables:
    return declare(plain_log, engine)


def partition_of(status: Status) -> PartitionStatus:
    ((found,),) = (each.partitions for each in status.consumers)
    return found


def read(log: Log, tables: WorkerTables) -> PartitionStatus:
    transaction = log.begin()
    if isinstance(log.store, AsyncEventStore):
        status = transaction._run(read_status_async(transaction.session, log.store, tables))
    else:
        status = read_status(transaction.session, log.store, tables)
    transaction.rollback()
    return partition_of(status)


class TestReading:
    def test_in_every_kind_of_session(self, log: Log, engine: Engine):
        worker_tables = declare(log, engine)
        change = worker_tables.consumer_checkpoints.update().values(attempts=0)
        assert read(log, worker_tables).locked_by is None
        other = uuid4()
        for worker_id in (None, other):
            with engine.connect() as connection:
                name(connection, worker_id)
                connection.execute(change)
                found = read(log, worker_tables)
                holder = found.locked_by
                assert holder is not None
                assert holder.pid == connection.scalar(select(func.pg_backend_pid()))
                assert (holder.gid, holder.state) == (None, "idle in transaction")
                assert holder.application_name == (f"pupsourcing-sa {other}" if worker_id else "")
                assert holder.age is not None
                assert 0 < found.locked_seconds <= holder.age.total_seconds()
            found = read(log, worker_tables)
            assert (found.locked_by, found.locked_seconds) == (None, 0.0)
        with engine.connect() as connection:
            name(connection, NODE)
            connection.execute(change)
            assert read(log, worker_tables).locked_by is None, "its own batch"
            with engine.begin() as assigning:
                assigning.execute(worker_tables.consumer_assignments.update().values(worker_id=None))
            assert read(log, worker_tables).locked_by is not None

    def test_a_prepared_transaction(self, plain_log: Log, engine: Engine, worker_tables: WorkerTables):
        gid = f"forgotten {uuid4()}"
        with engine.connect() as connection:
            transaction = connection.begin_twophase(gid)
            name(connection, NODE)
            connection.execute(worker_tables.consumer_checkpoints.update().values(attempts=0))
            transaction.prepare()
            try:
                holder = read(plain_log, worker_tables).locked_by
            finally:
                transaction.rollback()
        assert holder is not None
        assert (holder.pid, holder.gid, holder.state) == (None, gid, "prepared")

    def test_a_role_that_may_not_see_for_how_long(self, plain_log: Log, engine: Engine, worker_tables: WorkerTables):
        """The upper limits are the time since the checkpoint moved, and the time for which events have waited."""
        with unprivileged(engine) as monitor:

            def look() -> PartitionStatus:
                with Session(monitor) as session:
                    return partition_of(read_status(session, plain_log.store, worker_tables))

            with engine.connect() as connection:
                pid = connection.scalar(select(func.pg_backend_pid()))
                connection.execute(worker_tables.consumer_checkpoints.update().values(attempts=0))
                found = look()
                assert found.locked_by is not None
                assert (found.locked_by.pid, found.locked_by.state, found.locked_by.age) == (pid, None, None)
                assert found.locked_by.user == engine.url.username
                assert found.locked_seconds == 0, "nothing waits for it"
                now = connection.scalar(select(func.clock_timestamp()))
                for age in (timedelta(minutes=2), timedelta(hours=3)):
                    log = plain_log.begin()
                    log.execute("DELETE FROM events")
                    log.append(AnyVersion(), [make_event("u1", created_at=now - age)])
                    log.commit()
                    least = min(age, timedelta(hours=1)).total_seconds()
                    assert least <= look().locked_seconds < least + 60

    @pytest.mark.parametrize(
        ("age", "unmoved", "waiting", "locked"),
        [
            (timedelta(hours=1), 5.0, 0.0, 5.0),  # open for long, but the lock is recent
            (timedelta(seconds=5), 3600.0, 0.0, 5.0),  # no appends, and the lock is recent
            (timedelta(seconds=-1), 5.0, 5.0, 0.0),
            (None, 3600.0, 5.0, 5.0),
            (None, 5.0, 3600.0, 5.0),
        ],
    )
    def test_the_smaller_of_two_bounds(self, age: timedelta | None, unmoved: float, waiting: float, locked: float):
        assert locked_seconds(age, unmoved, waiting) == locked


def asks_for_locks(statement: str) -> bool:
    return "pupsourcing_locks" in statement


class TestAtTheSameTime:
    """Neither the node's own batch is ever shown, whenever it begins and ends, nor a transaction that has ended."""

    @pytest.fixture
    def batches(self, engine: Engine) -> Iterator[Connection]:
        """A connection of the node, on another engine."""
        other = create_engine(engine.url)
        with other.connect() as connection:
            connection.execute(text("SELECT 1"))
            connection.rollback()
            yield connection
        other.dispose()

    def status(self, engine: Engine, log: Log, tables: WorkerTables, call: Callable[[str], None]) -> PartitionStatus:
        with Session(engine) as session, before_statements(engine, call):
            session.execute(text("SELECT * FROM pg_stat_activity"))  # from now on this stays unchanged
            return partition_of(read_status(session, log.store, tables))

    def test_a_batch_that_begins_just_before(
        self, engine: Engine, plain_log: Log, worker_tables: WorkerTables, batches: Connection
    ):
        begun = []

        def begin(statement: str) -> None:
            if asks_for_locks(statement) and not begun:
                begun.append(True)
                name(batches, NODE)
                batches.execute(worker_tables.consumer_checkpoints.update().values(attempts=0))

        assert self.status(engine, plain_log, worker_tables, begin).locked_by is None
        assert begun

    def test_a_connection_that_has_just_been_the_nodes(
        self, engine: Engine, plain_log: Log, worker_tables: WorkerTables, batches: Connection
    ):
        """A pool may lend the same connection to the worker and to other code."""
        looks = []
        name(batches, NODE)

        def change_hats(statement: str) -> None:
            if asks_for_locks(statement):
                looks.append(True)
                if len(looks) == 1:
                    batches.rollback()
                    batches.execute(worker_tables.consumer_checkpoints.update().values(attempts=0))

        assert self.status(engine, plain_log, worker_tables, change_hats).locked_by is not None

    def test_whoever_takes_the_place_of_another(
        self, engine: Engine, plain_log: Log, worker_tables: WorkerTables, batches: Connection
    ):
        looks = []

        def change_places(statement: str) -> None:
            if asks_for_locks(statement):
                looks.append(True)
                batches.rollback()
                batches.execute(worker_tables.consumer_checkpoints.update().values(attempts=0))

        assert self.status(engine, plain_log, worker_tables, change_places).locked_by is None
        assert len(looks) == 2

    def test_a_batch_that_sets_its_name_in_between(
        self, engine: Engine, plain_log: Log, worker_tables: WorkerTables, batches: Connection
    ):
        """The status reads the lock of a batch, and its name just before the batch sets it."""
        looks = []

        def get_a_name(statement: str) -> None:
            if asks_for_locks(statement):
                looks.append(True)
                if len(looks) == 1:
                    batches.execute(worker_tables.consumer_checkpoints.update().values(attempts=0))
                else:
                    name(batches, NODE)

        assert self.status(engine, plain_log, worker_tables, get_a_name).locked_by is None
        assert len(looks) == 2

    def test_whoever_stays(self, engine: Engine, plain_log: Log, worker_tables: WorkerTables, batches: Connection):
        looks = []
        batches.execute(worker_tables.consumer_checkpoints.update().values(attempts=0))

        def note(statement: str) -> None:
            if asks_for_locks(statement):
                looks.append(True)

        assert self.status(engine, plain_log, worker_tables, note).locked_by is not None
        assert len(looks) == 2


#: The limits of a `diagnose` that reports everything.
STRICT = StatusLimits(max_lock_seconds=1e-9)


@pytest.mark.parametrize("appends", [80, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_a_log_under_load_never_has_a_problem(fleet: Fleet, appends: int):
    """A writer and a worker are running, and a partition that no node runs is locked."""
    fleet.start(fleet.worker(fleet.see("a"), fleet.see("p", partitions=2), batch_size=3))
    fleet.wait(lambda: fleet.checkpoint("p") is not None)
    for table in ("consumer_checkpoints", "consumer_assignments"):
        fleet.query(f"INSERT INTO {table} (consumer_name, partition) VALUES ('b', 0)", commit=True)

    def write() -> None:
        for _ in range(appends):
            fleet.append(2)

    others, locked, looks = [], 0, 0
    writer = fleet.run(write)
    with fleet.engine.connect() as connection:
        connection.execute(text("UPDATE consumer_checkpoints SET attempts = 0 WHERE consumer_name = 'b'"))
        while writer.is_alive() or len(fleet.seen("a")) < 2 * appends or looks <= 10:
            with Session(fleet.engine) as session:
                status = read_status(session, fleet.store, fleet.tables)
            looks += 1
            for finding in diagnose(status, STRICT):
                if finding.kind in ("locked", "ahead_of_log"):
                    locked += "consumer 'b'" in finding.message
                    others += [finding] if "consumer 'b'" not in finding.message else []
    writer.join()
    assert others == []
    assert locked == looks
