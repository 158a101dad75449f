"""The status of workers, read in every kind of session from tables that the tests fill."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, Executable, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, AsyncEventStore, EventStore, EventTables, WorkerTables
from pupsourcing_sa.status import PartitionStatus, Status, read_status, read_status_async
from pupsourcing_sa.status.durations import held_back_seconds
from pupsourcing_sa.store.positions import BlockingAppend
from tests.fix_postgres import before_statements
from tests.fix_store import Log, make_async_engine, make_event, make_tables

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
CUSTOM = {
    "worker_nodes": 'nodes "x"',
    "consumer_assignments": "the.assignments",
    "consumer_checkpoints": "%(checkpoints)s",
}


class Group:
    """A log and the tables of a group of workers. No worker runs: the tests write the rows."""

    def __init__(self, engine: Engine, events: EventTables) -> None:
        self.engine = engine
        self.store = EventStore(events)
        schema = events.events.schema
        self.tables = WorkerTables(events.metadata, schema=schema, **(CUSTOM if schema else {}))
        events.metadata.create_all(engine)

    def append(self, number: int, **given: Any) -> None:
        with Session(self.engine) as session:
            for count in range(number):
                self.store.append(session, AnyVersion(), [make_event(f"u{count}", **given)])
            session.commit()

    def node(self, *consumers: str, silent_for: float = 0.0) -> UUID:
        values = {"worker_id": uuid4(), "hostname": "host", "pid": 7, "consumers": list(consumers)}
        self._insert("worker_nodes", **values, heartbeat_at=func.now() - timedelta(seconds=silent_for))
        return values["worker_id"]

    def partition(
        self, name: str, partition: int = 0, *, node: UUID | None = None, position: int = 0, **failure: Any
    ) -> None:
        self.assignment(name, partition, node)
        self.checkpoint(name, partition, position, **failure)

    def assignment(self, name: str, partition: int, node: UUID | None) -> None:
        self._insert("consumer_assignments", consumer_name=name, partition=partition, worker_id=node)

    def checkpoint(self, name: str, partition: int, position: int, **failure: Any) -> None:
        self._insert("consumer_checkpoints", consumer_name=name, partition=partition, last_position=position, **failure)

    def read(self, **options: Any) -> Status:
        with Session(self.engine) as session:
            return read_status(session, self.store, self.tables, **options)

    def execute(self, statement: Executable, values: dict[str, Any] | None = None) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement, values)

    def _insert(self, table: str, **values: Any) -> None:
        self.execute(getattr(self.tables, table).insert().values(values))


@pytest.fixture
def group(engine: Engine) -> Group:
    return Group(engine, make_tables(engine))


def partitions(status: Status) -> dict[str, PartitionStatus]:
    return {f"{each.name}/{part.partition}": part for each in status.consumers for part in each.partitions}


class TestReading:
    def test_everything_in_every_kind_of_session(self, log: Log, engine: Engine):
        group = Group(engine, log.tables)
        group.append(4)
        alive = group.node("orders", "mails")
        silent = group.node("mails", "gone", silent_for=20)
        group.partition("orders", 0, node=alive, position=4)
        failure = {"failed_position": 3, "attempts": 5, "error": "ValueError: 1", "failed_at": func.now()}
        group.partition("orders", 1, node=alive, position=2, **failure, retry_at=func.now() + timedelta(hours=1))
        group.partition("mails", node=silent, position=1, **failure, parked_at=func.now())
        group.partition("gone")

        transaction = log.begin()
        if isinstance(log.store, AsyncEventStore):
            status = transaction._run(
                read_status_async(transaction.session, log.store, group.tables, heartbeat_timeout=19.0)
            )
        else:
            status = read_status(transaction.session, log.store, group.tables, heartbeat_timeout=19.0)

        assert abs((status.taken_at - datetime.now(UTC)).total_seconds()) < 60
        assert (status.last_position, status.stable_position, status.head) == (4, 4, 4)
        assert (status.held_back_seconds, status.blocking) == (0.0, ())
        found = {node.worker_id: node for node in status.nodes}
        assert (found[alive].consumers, found[alive].hostname, found[alive].pid) == (("mails", "orders"), "host", 7)
        assert not found[alive].is_silent
        assert found[alive].heartbeat_age < 19
        assert found[silent].is_silent
        assert 20 <= found[silent].heartbeat_age < 60
        assert abs(status.taken_at - found[silent].started_at) < timedelta(seconds=60)
        assert [(each.name, each.live_nodes) for each in status.consumers] == [("gone", 0), ("mails", 1), ("orders", 1)]
        parts = partitions(status)
        assert {
            name: (part.worker_id, part.position, part.lag_events, part.is_lag_exact) for name, part in parts.items()
        } == {
            "gone/0": (None, 0, 4, True),
            "mails/0": (silent, 1, 3, True),
            "orders/0": (alive, 4, 0, True),
            "orders/1": (alive, 2, 2, True),
        }
        assert {(part.locked_by, part.locked_seconds) for part in parts.values()} == {(None, 0.0)}
        assert status.last_issued == 4
        assert parts["orders/0"].lag_seconds == 0
        assert 0 < parts["orders/1"].lag_seconds < 60
        assert parts["gone/0"].failing is parts["orders/0"].failing is None
        retried, parked = parts["orders/1"].failing, parts["mails/0"].failing
        assert retried is not None
        assert parked is not None
        assert (retried.position, retried.event_type, retried.attempts) == (3, "UserRegistered", 5)
        assert retried.error == "ValueError: 1"
        assert retried.event_id == log.begin().read_events(after=2, limit=1)[0].event_id
        assert retried.failed_at is not None
        assert retried.retry_at is not None
        assert timedelta(minutes=59) < retried.retry_at - retried.failed_at < timedelta(minutes=61)
        assert retried.parked_at is None
        assert (parked.retry_at, parked.parked_at) == (None, parked.failed_at)

        plain = json.loads(json.dumps(status.to_dict()))
        assert plain["taken_at"] == status.taken_at.isoformat()
        assert plain["last_position"] == plain["head"] == status.head == status.last_position
        assert plain["nodes"][0]["worker_id"] in {str(alive), str(silent)}
        assert plain["consumers"][2]["partitions"][1]["failing"]["event_id"] == str(retried.event_id)

    def test_nothing_at_all(self, group: Group):
        status = group.read()
        assert (status.last_position, status.stable_position, status.nodes, status.consumers) == (0, 0, (), ())

    def test_tables_are_in_the_schema_of_the_log_by_default(self, engine: Engine, shared_database: Engine):
        schema = engine.url.query["options"].removeprefix("-csearch_path=")  # type: ignore[union-attr]
        events = EventTables(schema=schema)
        WorkerTables(events.metadata, schema=schema)
        events.metadata.create_all(shared_database)
        with Session(shared_database) as session:
            assert read_status(session, EventStore(events)).last_position == 0

    def test_an_async_scoped_session(self, group: Group):
        async def main() -> Status:
            engine = make_async_engine(group.engine)
            scoped = async_scoped_session(lambda: AsyncSession(engine), scopefunc=asyncio.current_task)
            try:
                return await read_status_async(scoped, AsyncEventStore(group.store.tables), group.tables)
            finally:
                await scoped.remove()
                await engine.dispose()

        assert asyncio.run(main()).last_position == 0

    def test_the_number_of_statements_does_not_grow(self, group: Group):
        def count() -> int:
            executed: list[str] = []
            with before_statements(group.engine, executed.append):
                group.read()
            return len(executed)

        few = count()
        group.append(3)
        for number in range(20):
            group.partition(f"c{number}", node=group.node(f"c{number}"), position=number % 3)
        assert count() == few == 7

    def test_rows_without_their_counterpart(self, group: Group):
        """A drain leaves checkpoints without assignments. A new consumer has only assignments."""
        group.append(2)
        group.checkpoint("drained", 0, 1)
        group.assignment("declared", 0, node := group.node())
        found = partitions(group.read())
        assert (found["drained/0"].worker_id, found["drained/0"].position, found["drained/0"].lag_events) == (
            None,
            1,
            1,
        )
        assert (found["declared/0"].worker_id, found["declared/0"].position, found["declared/0"].lag_events) == (
            node,
            0,
            2,
        )

    def test_a_failing_event_that_is_not_in_the_log_and_a_partition_parked_by_hand(self, group: Group):
        group.partition("a", failed_position=99, attempts=1, error="x", failed_at=func.now())
        group.partition("b", parked_at=func.now())
        found = partitions(group.read())
        assert found["a/0"].failing is not None
        assert (found["a/0"].failing.position, found["a/0"].failing.event_id) == (99, None)
        assert found["b/0"].failing is not None
        assert found["b/0"].failing.position is None

    def test_a_heartbeat_timeout_of_the_callers(self, group: Group):
        group.node(silent_for=20)
        assert group.read(heartbeat_timeout=30).has_live_node
        assert not group.read(heartbeat_timeout=10.5).has_live_node


class TestLag:
    def test_counting_ends_at_the_limit_and_says_so(self, group: Group):
        group.append(7)
        for position in (0, 2, 3, 3, 7):
            group.partition(f"at {position}", len(group.read().consumers), position=position)
        found = {name: (each.lag_events, each.is_lag_exact) for name, each in partitions(group.read()).items()}
        assert found == {
            "at 0/0": (7, True),
            "at 2/1": (5, True),
            "at 3/2": (4, True),
            "at 3/3": (4, True),
            "at 7/3": (0, True),
        }
        for limit in range(1, 9):
            for name, each in partitions(group.read(lag_limit=limit)).items():
                exact = found[name][0]
                assert each.is_lag_exact == (exact <= limit), (limit, name)
                assert each.lag_events == min(exact, limit + 1), (limit, name)

    def test_holes_are_not_events(self, group: Group):
        group.append(1)
        with Session(group.engine) as session:
            group.store.append(session, AnyVersion(), [make_event("u1")])
            session.rollback()
        group.append(1)
        group.partition("a", position=1)
        status = group.read()
        assert status.last_position == 3
        assert partitions(status)["a/0"].lag_events == 1

    def test_seconds_are_those_of_the_first_event_above_the_checkpoint(self, group: Group):
        group.append(1, created_at=LONG_AGO)
        group.append(1)
        group.append(1, created_at=datetime.now(UTC) + timedelta(hours=5))  # the writer's clock is ahead
        for position in range(4):
            group.partition("a", position, position=position)
        seconds = [part.lag_seconds for part in partitions(group.read()).values()]
        assert seconds[0] == pytest.approx((datetime.now(UTC) - LONG_AGO).total_seconds(), abs=60)
        assert 0 < seconds[1] < 60
        assert seconds[2:] == [0, 0]

    def test_it_is_measured_against_the_head_and_not_the_stable_position(self, group: Group):
        group.partition("a")
        with Session(group.engine) as session:
            group.store.append(session, AnyVersion(), [make_event("slow")])
            group.append(2)
            status = group.read()
        assert (status.last_position, status.stable_position) == (3, 0)
        assert partitions(status)["a/0"].lag_events == 2


class TestLastIssued:
    """A checkpoint never exceeds it, unless it belongs to another log."""

    def test_an_empty_log(self, group: Group):
        assert group.read().last_issued == 0

    def test_what_was_rolled_back_or_deleted_or_is_not_committed_was_issued(self, group: Group):
        group.append(3)
        with Session(group.engine) as session:
            group.store.append(session, AnyVersion(), [make_event("u9")])
            assert (group.read().last_position, group.read().last_issued) == (3, 4)
            session.rollback()
        assert (group.read().last_position, group.read().last_issued) == (3, 4)
        for condition in ("global_position = 3", "true"):
            group.execute(text(f"DELETE FROM events WHERE {condition}"))
            assert group.read().last_issued == 4
        group.execute(text("TRUNCATE events"))
        assert group.read().last_issued == 4

    def test_a_log_that_begins_anew(self, group: Group):
        group.append(3)
        group.execute(text("TRUNCATE events RESTART IDENTITY"))
        assert group.read().last_issued == 0
        group.append(1)
        assert group.read().last_issued == 1
        group.execute(text("SELECT setval(pg_get_serial_sequence('events', 'global_position'), 5)"))
        assert group.read().last_issued == 5

    def test_positions_that_the_sequence_has_not_issued(self, group: Group):
        group.append(1)
        with group.engine.begin() as connection:
            values = dict(connection.execute(text("SELECT * FROM events")).one()._mapping)
            values |= {"global_position": 7, "event_id": uuid4(), "aggregate_version": 2, "metadata": None}
            columns = ", ".join(values)
            insert = f"INSERT INTO events ({columns}) OVERRIDING SYSTEM VALUE VALUES (:{', :'.join(values)})"
            connection.execute(text(insert), values)
        assert group.read().last_issued == 7

    def test_the_checkpoints_are_read_before_it(self, group: Group):
        """An append between the two statements must not make a checkpoint look ahead of the log."""
        group.partition("a", position=0)
        checkpoints = group.tables.consumer_checkpoints

        head = select(func.max(group.store.tables.events.c.global_position)).scalar_subquery()
        is_called = False

        def append_and_follow(_: str) -> None:
            nonlocal is_called
            if not is_called:
                is_called = True
                group.append(1)
                group.execute(checkpoints.update().values(last_position=head))
                is_called = False

        with before_statements(group.engine, append_and_follow):
            status = group.read()
        assert 0 < partitions(status)["a/0"].position < status.last_position <= status.last_issued


def holder(age: timedelta | None) -> BlockingAppend:
    return BlockingAppend(mark=1, pid=1, gid=None, user=None, application_name=None, state=None, age=age, query=None)


class TestHeldBack:
    def test_an_open_append_below_events_of_others(self, group: Group):
        group.append(1)
        with Session(group.engine) as session:
            group.store.append(session, AnyVersion(), [make_event("slow")])
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            assert group.read().held_back_seconds == 0, "nothing is above it yet"
            group.append(1, created_at=LONG_AGO)
            status = group.read()
            assert (status.last_position, status.stable_position) == (3, 1)
            assert [each.pid for each in status.blocking] == [pid]
            assert 0 < status.held_back_seconds < 60, "what it says of itself is not for how long it is held back"
        assert group.read().held_back_seconds == 0

    @pytest.mark.parametrize(
        ("age", "waiting", "held_back"),
        [
            (timedelta(hours=1), 2.0, 2.0),  # open for long, but its append is recent
            (timedelta(seconds=3), 99.0, 3.0),  # an import of old events
            (timedelta(hours=1), 0.0, 0.0),  # it holds nothing back
            (timedelta(seconds=-1), 5.0, 0.0),
            (None, 5.0, 5.0),  # invisible to the role
        ],
    )
    def test_the_smaller_of_two_bounds(self, age: timedelta | None, waiting: float, held_back: float):
        assert held_back_seconds((holder(age), holder(None)), waiting) == held_back
        assert held_back_seconds((), waiting) == 0


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"])
def test_times_of_other_programs(group: Group, time: str):
    group.append(2)
    group.partition("orders", position=1)
    group.execute(text(f"UPDATE {group.store.tables.events.fullname} SET created_at = '{time}'"))
    (part,) = group.read().consumers[0].partitions
    assert part.lag_events == 1
    assert 0 <= part.lag_seconds < 10**12
    json.dumps(group.read().to_dict(), allow_nan=False)
