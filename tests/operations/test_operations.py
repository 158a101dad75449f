"""Operations on consumers: one transaction, safe against running and suspended nodes, and audited."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.errors import LogMismatchError, OperationRefusedError
from pupsourcing_sa.operations import AsyncConsumerOperations, ConsumerOperations
from pupsourcing_sa.store import EventStore
from pupsourcing_sa.worker.processing.checkpoint_fence import CheckpointFence, KnownLogs
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from tests.fix_membership import Group
from tests.fix_store import make_async_engine
from tests.fix_worker import Fleet


@pytest.fixture(params=[pytest.param({}, id="default", marks=pytest.mark.exhaustive), {"consumer_operations": 'Op"s'}])
def group(request: pytest.FixtureRequest, engine: Engine) -> Group:
    return Group(engine, WorkerTables(MetaData(), **request.param), EventTables(MetaData()))


def operations_of(group: Group) -> ConsumerOperations:
    return ConsumerOperations(group.tables, EventStore(group.events), actor="ann")


def fenced(group: Group, name: str) -> Checkpoint:
    """Return the checkpoint of a consumer with one partition, as a node locks it."""
    fence = CheckpointFence(KnownLogs(group.events, group.tables), name, 1)
    return Checkpoint(group.tables, name, 0, fence=fence)


def commit(group: Group, operation: Any, name: str) -> Any:
    with Session(group.engine) as session:
        result = operation(session, name)
        session.commit()
    return result


def count(group: Group, table: Any) -> int:
    with group.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def audit(group: Group) -> list[Any]:
    c = group.tables.consumer_operations.c
    with group.engine.connect() as connection:
        return list(connection.execute(select(c.actor, c.consumer_name, c.operation, c.detail, c.log).order_by(c.id)))


class TestRemove:
    def test_everything_about_the_consumer_is_deleted(self, group: Group):
        _, membership = group.node(a=2, b=1)
        group.do(membership.join)
        group.do(membership.leave)
        parked = group.tables.consumer_parked_aggregates
        with group.engine.begin() as connection:
            connection.execute(
                parked.insert().values(consumer_name="a", aggregate_type="T", aggregate_id="1", position=7)
            )
            connection.execute(group.tables.consumer_checkpoints.update().values(error="ann@example.org"))
        result = commit(group, operations_of(group).remove, "a")
        assert [row["partition"] for row in result.before["checkpoints"]] == [0, 1]
        assert result.after == {"checkpoints": [], "assignments": []}
        assert (count(group, group.tables.consumer_checkpoints), count(group, parked)) == (1, 0)
        ((actor, name, operation, detail, log),) = audit(group)
        assert (actor, name, operation, log) == ("ann", "a", "remove", result.before["checkpoints"][0]["log"])
        assert detail == {"before": result.before, "after": result.after}
        assert "example.org" not in str(detail)  # an error text may quote an event

    def test_not_while_a_running_node_has_it(self, group: Group):
        worker_id, membership = group.node(a=1)
        group.do(membership.join)
        with pytest.raises(OperationRefusedError, match=r"running nodes have it: .*\(pid "):
            commit(group, operations_of(group).remove, "a")
        assert count(group, group.tables.consumer_checkpoints) == 1
        group.age(worker_id, 60)
        commit(group, operations_of(group).remove, "a")
        assert audit(group)[0].detail["before"]["assignments"][0]["worker_id"] == str(worker_id)

    def test_a_suspended_node_does_not_bring_it_back(self, group: Group, caplog: pytest.LogCaptureFixture):
        worker_id, membership = group.node(a=1, b=1)
        group.do(membership.join)
        group.age(worker_id, 60)
        commit(group, operations_of(group).remove, "a")
        with Session(group.engine) as session:  # a batch in a thread of the node
            assert fenced(group, "a").lock(session, worker_id=worker_id) is None
        group.clock.seconds += 2
        assert group.do(membership.tick) is None
        assert set(group.do(membership.join)) == {("b", 0)}
        for _ in range(2):
            group.clock.seconds += 2
            assert set(group.do(membership.tick) or ()) == {("b", 0)}
        message = "consumer was removed; restart the node to begin it again"
        assert [record.levelno for record in caplog.records if record.message == message] == [logging.ERROR]
        assert count(group, group.tables.consumer_checkpoints) == 1
        _, new = group.node(a=1)
        assert set(group.do(new.join)) == {("a", 0)}

    def test_a_batch_that_creates_the_checkpoint_meanwhile(self, group: Group):
        """The operation waits for it. Without the lock on the assignment, the row would be left behind."""
        worker_id, membership = group.node(a=1)
        group.do(membership.join)
        group.age(worker_id, 60)
        checkpoints = group.tables.consumer_checkpoints
        with group.engine.begin() as connection:
            connection.execute(checkpoints.delete())
        checkpoint = fenced(group, "a")
        with Session(group.engine) as batch, Session(group.engine) as session:
            assert checkpoint._is_created(batch, is_assigned=True)
            session.execute(text("SET LOCAL lock_timeout = '50ms'"))
            with pytest.raises(OperationalError):
                operations_of(group).remove(session, "a")
            batch.commit()
        commit(group, operations_of(group).remove, "a")
        assert count(group, checkpoints) == 0

    def test_an_unknown_name(self, group: Group):
        _, membership = group.node(b=1, c=1)
        group.do(membership.join)
        with pytest.raises(OperationRefusedError, match=r"do not have it. They have: 'b', 'c'$"):
            commit(group, operations_of(group).remove, "a")

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    def test_another_isolation_level(self, group: Group, level: str):
        engine = group.engine.execution_options(isolation_level=level)
        with Session(engine) as session, pytest.raises(OperationRefusedError, match=f"the transaction is {level}"):
            operations_of(group).remove(session, "a")


class TestAdoptLog:
    def test_after_the_log_was_renamed(self, group: Group):
        _, membership = group.node(a=2)
        group.do(membership.join)
        with group.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE events RENAME TO journal")
        renamed = Group(group.engine, group.tables, EventTables(MetaData(), events="journal"))
        _, new = renamed.node(a=2)
        with pytest.raises(LogMismatchError):
            renamed.do(new.join)
        result = commit(renamed, operations_of(renamed).adopt_log, "a")
        assert {row["log"].partition(".")[2] for row in result.before["checkpoints"]} == {"events"}
        assert {row["log"].partition(".")[2] for rows in result.after.values() for row in rows} == {"journal"}
        assert audit(group)[0].log.endswith(".journal")
        renamed.do(new.join)

    def test_not_while_the_former_log_exists(self, group: Group):
        _, membership = group.node(a=1)
        group.do(membership.join)
        other = Group(group.engine, group.tables, EventTables(MetaData(), events="Other's", aggregate_heads="heads"))
        with pytest.raises(OperationRefusedError, match="which still exists and was not renamed"):
            commit(other, operations_of(other).adopt_log, "a")
        before = commit(group, operations_of(group).adopt_log, "a").before
        assert before["checkpoints"][0]["log"].endswith(".events")


def test_a_running_node_follows_a_renamed_log(sync_fleet: Fleet, caplog: pytest.LogCaptureFixture):
    """It has kept the former name in memory."""
    fleet = sync_fleet
    fleet.append(2)
    fleet.start(fleet.worker(fleet.see("all")))
    fleet.wait(lambda: fleet.seen("all") == [1, 2])
    fleet.query("UPDATE consumer_checkpoints SET log = 'public.former'", commit=True)
    operations = ConsumerOperations(fleet.tables, fleet.store, actor="ann")
    with Session(fleet.engine) as session:
        operations.adopt_log(session, "all")
        session.commit()
    fleet.append(1)
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])


def test_asyncio(group: Group):
    _, membership = group.node(a=1)
    group.do(membership.join)
    group.do(membership.leave)
    operations = AsyncConsumerOperations(group.tables, EventStore(group.events), actor="ann")

    async def main() -> Any:
        engine = make_async_engine(group.engine, "asyncpg")
        async with AsyncSession(engine) as session:
            await operations.adopt_log(session, "a")
            result = await operations.remove(session, "a")
            await session.commit()
        await engine.dispose()
        return result

    assert asyncio.run(main()).before["checkpoints"][0]["last_position"] == 0
    assert [row.operation for row in audit(group)] == ["adopt_log", "remove"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actor": ""}, "^actor must not be empty"),
        ({"actor": 5}, "^actor must be a str, not int"),
        ({"actor": "ann", "heartbeat_timeout": 0}, "^heartbeat_timeout must be greater than 0"),
    ],
)
def test_wrong_arguments(arguments: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        ConsumerOperations(WorkerTables(), EventStore(EventTables()), **arguments)
