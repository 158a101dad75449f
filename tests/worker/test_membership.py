"""Nodes and their assignments, one transaction after the other."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Engine, Table, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pupsourcing_sa import WorkerTables
from pupsourcing_sa.errors import PartitionsError, TablesMissingError, TransactionRequiredError
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.coordination.membership import Membership
from tests.fix_membership import Group


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.exhaustive), "custom"])
def group(request: pytest.FixtureRequest, engine: Engine) -> Group:
    names = {} if request.param == "default" else {"worker_nodes": 'No"des', "consumer_assignments": "Zuweisungen ä"}
    return Group(engine, WorkerTables(**names))


def test_a_single_node_gets_every_partition_at_once(group: Group):
    node, membership = group.node(a=2, b=1)
    assert set(group.do(membership.join)) == {("a", 0), ("a", 1), ("b", 0)}
    assert set(group.assigned().values()) == {node}


def test_a_joining_node_gets_a_share_and_the_others_learn_of_it(group: Group):
    first, membership = group.node(a=4)
    group.do(membership.join)
    second, other = group.node(a=4)
    taken = set(group.do(other.join))
    assert len(taken) == 2
    assert set(group.do(membership.tick)) == {("a", number) for number in range(4)} - taken
    assert sorted(map(str, group.assigned().values())) == sorted([str(first), str(second)] * 2)


def test_a_consumer_goes_to_nodes_that_know_it(group: Group):
    old, membership = group.node(a=2)
    group.do(membership.join)
    _, other = group.node(a=2, b=2)
    assert {name for name, _ in group.do(other.join)} == {"b"}
    group.do(other.leave)
    assert group.assigned() == {("a", 0): old, ("a", 1): old}
    assert set(group.do(membership.tick)) == {("a", 0), ("a", 1)}


def test_a_node_without_a_partition_reports_it_once_until_it_has_one(group: Group, caplog: pytest.LogCaptureFixture):
    def reports(membership: Membership) -> list[tuple[int, int]]:
        for _ in range(2):
            group.clock.seconds += 1
            group.do(membership.tick)
        found = [(record.nodes, record.partitions) for record in caplog.records if "this node waits" in record.message]
        caplog.clear()
        return found

    caplog.set_level(logging.INFO)
    first, membership = group.node(a=1)
    _, other = group.node(b=1)
    for each in (membership, other):
        group.do(each.join)
    waiting, idle = group.node(a=1)
    group.do(idle.join)
    assert reports(idle) == [(2, 1)]  # the node of the other consumer does not matter
    assert reports(membership) == []
    assignments = group.tables.consumer_assignments
    for owner, expected in ((waiting, []), (first, [(2, 1)])):
        with group.engine.begin() as connection:
            connection.execute(assignments.update().where(assignments.c.consumer_name == "a").values(worker_id=owner))
        assert reports(idle) == expected


def test_a_silent_node_is_removed_and_joins_again(group: Group, caplog: pytest.LogCaptureFixture):
    silent, membership = group.node(a=2)
    group.do(membership.join)
    alive, other = group.node(a=2)
    group.do(other.join)
    group.age(silent, 3)  # of 8 that are allowed; the machine may be slow
    group.clock.seconds += 1
    assert len(group.do(other.tick)) == 1
    group.age(silent, 9)
    group.clock.seconds += 1
    assert len(group.do(other.tick)) == 2
    assert group.nodes() == {alive}
    assert group.recorder.events == [("worker.node_removed", {"worker": str(alive), "node": str(silent)})]
    (record,) = (record for record in caplog.records if record.message == "removed node: no heartbeat")
    assert record.node == str(silent)
    assert 9 <= record.seconds < 60
    group.clock.seconds += 1  # a heartbeat is due
    assert group.do(membership.tick) is None
    assert len(group.do(membership.join)) == 1
    assert group.nodes() == {silent, alive}


def test_a_heartbeat_in_the_future_counts_as_now(group: Group):
    """The database has failed over to a server whose clock is behind, and a node has died together with the former."""
    dead, membership = group.node(a=2)
    group.do(membership.join)
    alive, other = group.node(a=2)
    group.do(other.join)
    group.age(dead, -300)
    group.clock.seconds += 1
    group.do(other.tick)
    assert group.nodes() == {dead, alive}
    age = func.clock_timestamp() - group.tables.worker_nodes.c.heartbeat_at
    with group.engine.connect() as connection:
        (found,) = connection.scalars(select(age).where(group.tables.worker_nodes.c.worker_id == dead))
    assert timedelta(0) <= found < timedelta(seconds=30)


def test_heartbeats_keep_a_node_alive(group: Group):
    node, membership = group.node(a=1)
    group.do(membership.join)
    group.age(node, 5)
    group.clock.seconds += 1
    group.do(membership.tick)  # not due yet
    group.clock.seconds += 1
    group.do(membership.tick)
    age = select(func.clock_timestamp() - group.tables.worker_nodes.c.heartbeat_at)
    with group.engine.connect() as connection:
        assert connection.scalar(age) < timedelta(seconds=5)


def test_no_node_is_presumed_dead_right_after_an_outage(group: Group):
    other, _ = group.node(a=2)
    node, membership = group.node(a=2)
    group.do(_.join)
    group.do(membership.join)
    for each in (node, other):
        group.age(each, 60)
    group.clock.seconds += 60  # no node could write for a minute
    group.do(membership.tick)
    assert group.nodes() == {node, other}
    for _ in range(4):
        group.clock.seconds += 2
        group.do(membership.tick)
    assert group.nodes() == {node}  # it could have, for eight seconds


@pytest.mark.parametrize(
    "config",
    [
        WorkerConfig(heartbeat_interval=15, heartbeat_timeout=30, rebalance_interval=3),
        WorkerConfig(heartbeat_interval=6, heartbeat_timeout=30, rebalance_interval=18),
        WorkerConfig(heartbeat_interval=6, heartbeat_timeout=12, rebalance_interval=150),
    ],
)
def test_a_dead_node_is_removed_and_no_other_whatever_the_settings(group: Group, config: WorkerConfig):
    """Some settings allow a heartbeat to be almost as late as the timeout."""
    dead, membership = group.node(config, a=1)
    alive, other = group.node(config, a=1)
    group.do(membership.join)
    group.do(other.join)
    group.age(dead, 100)
    for _ in range(round(180 / other.tick_interval)):
        group.clock.seconds += other.tick_interval * 1.05
        group.age(alive, 0)
        assert group.do(other.tick) is not None
    assert group.nodes() == {alive}


def test_a_node_that_is_leaving_does_not_join(group: Group):
    """A start that was given up may continue in its thread."""
    _, membership = group.node(a=1)
    membership.abandon_join()
    group.do(membership.leave)
    assert group.do(membership.join) == {}
    assert group.nodes() == set()


def test_a_node_that_meets_an_outage_presumes_no_node_dead_at_once(group: Group):
    other, others = group.node(a=1)
    group.do(others.join)
    group.age(other, 60)
    node, membership = group.node(a=1)
    membership.note_outage()
    group.do(membership.join)
    assert group.nodes() == {node, other}


def test_a_retired_node_stays_alive_and_has_nothing(group: Group):
    leaving, membership = group.node(a=2)
    staying, other = group.node(a=2)
    group.do(membership.join)
    group.do(other.join)
    group.do(membership.hand_over)
    assert set(group.assigned().values()) == {staying}
    assert group.do(membership.tick) == {}
    assert group.nodes() == {leaving, staying}
    group.do(membership.leave)
    assert group.nodes() == {staying}


def test_a_node_that_leaves_hands_over_at_once(group: Group):
    _, membership = group.node(a=3)
    staying, other = group.node(a=3)
    group.do(membership.join)
    group.do(other.join)
    group.do(membership.leave)
    assert set(group.assigned().values()) == {staying}


def test_a_parked_partition_is_assigned_and_not_run(group: Group):
    node, membership = group.node(a=2)
    group.do(membership.join)
    table = group.tables.consumer_checkpoints
    park = table.update().where(table.c.partition == 1)
    with group.engine.begin() as connection:
        connection.execute(park.values(parked_at=func.now()))
    assert set(group.do(membership.tick)) == {("a", 0)}
    assert group.assigned()["a", 1] == node
    with group.engine.begin() as connection:
        connection.execute(park.values(parked_at=None))
    assert set(group.do(membership.tick)) == {("a", 0), ("a", 1)}


def test_a_tick_returns_the_state_of_the_partitions(group: Group):
    _, membership = group.node(a=3)
    assert set(group.do(membership.join).values()) == {(0, False)}
    table = group.tables.consumer_checkpoints
    with group.engine.begin() as connection:
        connection.execute(table.update().values(last_position=2**40))
        connection.execute(table.update().where(table.c.partition == 1).values(last_position=7, retry_at=func.now()))
        connection.execute(table.delete().where(table.c.partition == 2))
    assert group.do(membership.tick) == {("a", 0): (2**40, False), ("a", 1): (7, True), ("a", 2): (0, False)}


def test_a_consumer_that_starts_again_may_have_another_number_of_partitions(group: Group):
    _, membership = group.node(a=3)
    group.do(membership.join)
    group.do(membership.leave)
    with group.engine.begin() as connection:
        for table in (group.tables.consumer_checkpoints, group.tables.consumer_assignments):
            connection.execute(table.delete().where(table.c.consumer_name == "a"))
    _, other = group.node(a=2)
    assert set(group.do(other.join)) == {("a", 0), ("a", 1)}


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (1, 2)])
def test_another_number_of_partitions_is_refused(group: Group, before: int, after: int):
    _, membership = group.node(a=before, b=1)
    group.do(membership.join)
    found = group.assigned()
    _, other = group.node(a=after, c=1)
    for refused in (other.join, other.declare):
        with pytest.raises(PartitionsError, match=f"Set partitions = {before}") as caught:
            group.do(refused)
        assert (caught.value.consumer, caught.value.declared, caught.value.existing) == ("a", after, before)
        assert group.assigned() == found  # nothing of c either


def test_a_deleted_checkpoint_does_not_change_the_number_of_partitions(group: Group):
    _, membership = group.node(a=3)
    group.do(membership.join)
    with group.engine.begin() as connection:
        connection.execute(group.tables.consumer_checkpoints.delete())
    assert len(group.do(membership.join)) == 3


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of the worker, without those about hooks that fail."""
    return [record.getMessage() for record in caplog.records if record.name == "pupsourcing_sa.worker"]


class TestDeletedRows:
    """An operator deletes rows while nodes run. The nodes make them again."""

    def delete(self, group: Group, *tables: Table, numbers: Collection[int] = (0, 1, 2)) -> None:
        with group.engine.begin() as connection:
            for table in tables:
                connection.execute(table.delete().where(table.c.consumer_name == "a", table.c.partition.in_(numbers)))
        group.clock.seconds += 2  # planning is due

    @pytest.mark.parametrize("numbers", [(0, 1, 2), (0,), (2,)])
    @pytest.mark.parametrize("is_checkpoint_deleted", [False, True])
    def test_assignments(
        self, group: Group, caplog: pytest.LogCaptureFixture, numbers: Collection[int], is_checkpoint_deleted: bool
    ):
        node, membership = group.node(a=3, b=1)
        before = group.do(membership.join)
        tables = [group.tables.consumer_assignments]
        if is_checkpoint_deleted and numbers != (2,):
            tables.append(group.tables.consumer_checkpoints)
        self.delete(group, *tables, numbers=numbers)
        assert group.do(membership.tick) == before
        assert set(group.assigned().values()) == {node}
        with group.engine.connect() as connection:
            checkpoints = group.tables.consumer_checkpoints
            assert connection.scalar(select(func.count()).select_from(checkpoints)) == 4
        group.clock.seconds += 2
        group.do(membership.tick)
        assert logged(caplog) == ["assignments were deleted; declared the partitions again"]

    def test_the_leader_need_not_have_the_consumer(self, group: Group):
        _, membership = group.node(a=3)
        _, other = group.node(b=1)
        group.do(membership.join)
        group.do(other.join)
        self.delete(group, group.tables.consumer_assignments)
        group.do(other.tick)
        assert set(group.do(membership.tick)) == {("a", 0), ("a", 1), ("a", 2)}

    def test_another_number_is_not_overwritten(self, group: Group, caplog: pytest.LogCaptureFixture):
        """A consumer that was removed may have started again with fewer partitions, while an old node still runs."""
        _, membership = group.node(a=3, b=1)
        group.do(membership.join)
        self.delete(group, group.tables.consumer_assignments, group.tables.consumer_checkpoints)
        _, other = group.node(a=2)
        group.do(other.join)
        caplog.clear()
        for _ in range(2):
            assert group.do(membership.tick) is not None
            group.clock.seconds += 2
        assert {number for name, number in group.assigned() if name == "a"} == {0, 1}
        assert logged(caplog) == ["the tables have another number of partitions; restart the node"]

    def test_a_node_that_hands_over_restores_nothing(self, group: Group):
        _, membership = group.node(a=3)
        group.do(membership.join)
        group.do(membership.hand_over)
        self.delete(group, group.tables.consumer_assignments)
        group.do(membership.tick)
        assert group.assigned() == {}


def test_nodes_with_different_numbers_of_partitions_cannot_both_join(group: Group):
    """Without the leader's lock, each adds its rows to the other's."""
    outcomes: list[Any] = []

    def join(count: int) -> None:
        _, membership = group.node(a=count)
        try:
            outcomes.append(len(group.do(membership.join)))
        except PartitionsError as error:
            outcomes.append(error)

    threads = [Thread(target=join, args=(count,)) for count in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, PartitionsError) for outcome in outcomes) == 3
    assert [len(group.assigned())] == [outcome for outcome in outcomes if isinstance(outcome, int)]


def test_other_nodes_continue_while_one_is_the_leader(group: Group):
    _, membership = group.node(a=2)
    group.do(membership.join)
    with Session(group.engine) as leader:
        membership._nodes.lead(leader.connection())
        group.clock.seconds += 2
        assert len(group.do(membership.tick)) == 2


def test_the_server_terminates_an_idle_leader(group: Group):
    _, membership = group.node(a=1)
    group.do(membership.join)
    with Session(group.engine) as leader:
        membership._nodes.limit_idleness(leader.connection(), 0.05)
        membership._nodes.lead(leader.connection())
        group.do(membership.hand_over)  # waits for the lock, until the server has ended its holder
        with pytest.raises(DBAPIError):
            leader.connection().execute(select(1))


def test_groups_with_different_tables_are_independent(engine: Engine):
    for number in (1, 2):
        names = ("worker_nodes", "consumer_assignments", "consumer_checkpoints")
        group = Group(engine, WorkerTables(**{name: f"{name}_{number}" for name in names}))
        node, membership = group.node(a=2)
        assert len(group.do(membership.join)) == 2
        assert group.nodes() == {node}


def test_missing_tables(engine: Engine):
    group = Group(engine, WorkerTables())
    group.tables.metadata.drop_all(engine)
    _, membership = group.node(a=1)
    with pytest.raises(TablesMissingError, match="worker_nodes"):
        group.do(membership.join)


def test_autocommit_is_refused(group: Group):
    _, membership = group.node(a=1)
    with (
        Session(group.engine.execution_options(isolation_level="AUTOCOMMIT")) as session,
        pytest.raises(TransactionRequiredError),
    ):
        membership.join(session)
