"""The evidence that a dead node leaves in the checkpoints."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from pupsourcing_sa import EventStore, WorkerTables
from pupsourcing_sa.status import RunningBatch, read_status
from pupsourcing_sa.worker.coordination.deaths import attempt_after_death, partitions_of
from pupsourcing_sa.worker.coordination.membership import Membership
from pupsourcing_sa.worker.coordination.nodes import RemovedNode
from pupsourcing_sa.worker.coordination.processes import this_process
from pupsourcing_sa.worker.partition import Partition
from pupsourcing_sa.worker.running import Announcement
from tests.fix_membership import Group

ANNOUNCED = Announcement("a", 0, position=5, event_id="1-2", event_type="Opened", max_attempts=3)
A0, A1, B0 = Partition("a", 0), Partition("a", 1), Partition("b", 0)


class TestDecisions:
    node = RemovedNode(UUID(int=1), "host", 4711, ["a", "b"], 9.0, (), None)
    assigned = {A0: UUID(int=1), A1: UUID(int=2), B0: None}

    def test_suspected_are_its_partitions_its_batches_and_its_announcement(self):
        assert partitions_of(self.node, self.assigned) == {A0}
        at_work = replace(self.node, batches=[RunningBatch("b", 0, 7, 1.5)])
        assert partitions_of(at_work, self.assigned) == {A0, B0}
        announced = replace(self.node, worker_id=UUID(int=3), announced=ANNOUNCED)
        assert partitions_of(announced, self.assigned) == {A0}

    def test_a_node_that_was_stopping_is_not_evidence(self):
        stopping = replace(self.node, consumers=[], announced=ANNOUNCED, batches=[RunningBatch("b", 0, 7, 1.5)])
        assert partitions_of(stopping, self.assigned) == set()

    @pytest.mark.parametrize(
        ("position", "failed_position", "attempts", "max_attempts", "expected"),
        [
            (4, None, 0, 3, (1, False)),
            (4, 5, 1, 3, (2, False)),
            (4, 5, 2, 3, (3, True)),
            (4, 5, 2, None, (3, False)),
            (0, 2, 2, 3, (1, False)),  # the row is about another event
            (5, None, 0, 3, None),  # the batch was committed before the process died
            (9, None, 0, 3, None),
            (4, None, 0, 1, (1, False)),  # a deployment may have killed the process: never after a single death
            (4, 5, 1, 1, (2, True)),
        ],
    )
    def test_an_announcement_counts_as_an_attempt(
        self, position: int, failed_position: int | None, attempts: int, max_attempts: int | None, expected: Any
    ):
        announced = replace(ANNOUNCED, max_attempts=max_attempts)
        found = attempt_after_death(announced, position=position, failed_position=failed_position, attempts=attempts)
        assert found == expected


@pytest.fixture(params=[pytest.param("default", marks=pytest.mark.exhaustive), "custom"])
def group(request: pytest.FixtureRequest, engine: Engine) -> Group:
    names = {} if request.param == "default" else {"worker_nodes": 'No"des', "consumer_checkpoints": "Stände ä"}
    return Group(engine, WorkerTables(**names))


def checkpoints(group: Group) -> dict[tuple[str, int], Any]:
    with group.engine.connect() as connection:
        rows = connection.execute(select(group.tables.consumer_checkpoints))
        return {(row.consumer_name, row.partition): row for row in rows}


def deaths(group: Group) -> dict[tuple[str, int], int]:
    return {key: row.deaths for key, row in checkpoints(group).items() if row.deaths}


def change(group: Group, node: UUID, **running: Any) -> None:
    """Write what a node is at, as it does itself."""
    change_to(group, node, running)


def change_to(group: Group, node: UUID, running: Any) -> None:
    table = group.tables.worker_nodes
    with group.engine.begin() as connection:
        connection.execute(table.update().where(table.c.worker_id == node).values(running=running))


def two_nodes(group: Group) -> tuple[UUID, Membership, Membership]:
    """Return a node that has every partition, its membership, and another node without consumers."""
    node, membership = group.node(a=2, b=1)
    group.do(membership.join)
    _, other = group.node(unrelated=1)
    group.do(other.join)
    return node, membership, other


def die(group: Group, node: UUID, other: Membership) -> None:
    """Let another node find that a node is silent."""
    group.age(node, 9)
    group.clock.seconds += 1
    group.do(other.tick)
    assert node not in group.nodes()


def test_deaths_are_counted_in_every_partition_of_the_node(group: Group):
    node, membership, other = two_nodes(group)
    die(group, node, other)
    assert deaths(group) == {A0: 1, A1: 1, B0: 1}
    group.do(membership.join)
    die(group, node, other)
    assert deaths(group) == {A0: 2, A1: 2, B0: 2}


def test_batches_of_the_last_heartbeat_are_evidence(group: Group):
    node, membership, other = two_nodes(group)
    group.clock.seconds += 2
    group.do(lambda session: membership.tick(session, [RunningBatch("unrelated", 0, 7, 0.5)]))
    with group.engine.connect() as connection:
        nodes = group.tables.worker_nodes
        running = connection.scalar(select(nodes.c.running).where(nodes.c.worker_id == node))
    assert running["batches"] == [{"consumer": "unrelated", "partition": 0, "position": 7, "seconds": 0.5}]
    assert running.keys() - {"process"} == {"batches"}
    die(group, node, other)
    assert deaths(group) == {A0: 1, A1: 1, B0: 1, ("unrelated", 0): 1}


BATCH: dict[str, Any] = {"consumer": "unrelated", "partition": 0, "position": 7, "seconds": 0.5}
ENDED: dict[str, Any] = {"host": getattr(this_process(), "host", ""), "pid": 2**22 + 1, "started": 1}


@pytest.mark.parametrize(
    ("running", "is_evidence"),
    [
        ({"batches": [BATCH | {"added": 1}], "process": ENDED | {"added": 1}, "added": 1}, True),
        ({"batches": [{"renamed": 1}, BATCH], "announced": {"renamed": 1}, "process": {"host": ENDED["host"]}}, True),
        ({"batches": {}, "announced": []}, False),
        ([], False),
    ],
)
def test_a_node_of_another_version_keeps_nobody_from_working(group: Group, running: Any, is_evidence: bool):
    """Its row may have other keys: after a deployment was undone, for example."""
    node, _, other = two_nodes(group)
    change_to(group, node, running)
    with Session(group.engine) as session:
        status = read_status(session, EventStore(group.events), group.tables)
    assert [len(found.batches) for found in status.nodes if found.worker_id == node] == [is_evidence]
    _, joining = group.node(another=1)
    group.do(joining.join)
    if node in group.nodes():  # it has not been found ended
        die(group, node, other)
    assert (("unrelated", 0) in deaths(group)) is is_evidence
    assert deaths(group).items() >= {A0: 1, A1: 1, B0: 1}.items()


def test_an_orderly_end_is_no_death(group: Group):
    node, membership, other = two_nodes(group)
    group.do(membership.hand_over)
    die(group, node, other)
    group.do(membership.join)
    group.do(membership.leave)
    assert deaths(group) == {}


def test_parked_and_locked_partitions_are_left_alone(group: Group):
    """A leader never waits for a batch, and the batch of a frozen node still has its lock."""
    node, _, other = two_nodes(group)
    change(group, node, announced=asdict(ANNOUNCED))
    table = group.tables.consumer_checkpoints
    with group.engine.begin() as connection:
        connection.execute(table.update().where(table.c.consumer_name == "b").values(parked_at=table.c.updated_at))
    with group.engine.connect() as batch:
        batch.execute(select(table).where(table.c.consumer_name == "a", table.c.partition == 0).with_for_update())
        die(group, node, other)
    assert deaths(group) == {A1: 1}
    assert checkpoints(group)[A0].attempts == 0


def test_an_announced_event_is_counted_retried_later_and_parked(group: Group, caplog: pytest.LogCaptureFixture):
    node, membership, other = two_nodes(group)
    for attempts in (1, 2, 3):
        group.do(membership.join)
        change(group, node, announced=asdict(ANNOUNCED))
        die(group, node, other)
        row = checkpoints(group)[A0]
        assert (row.failed_position, row.attempts, row.deaths) == (5, attempts, attempts)
        assert "worker process died" in row.error
        assert str(node) in row.error
        assert (row.retry_at is None, row.parked_at is None) == ((False, True) if attempts < 3 else (True, False))
    assert row.last_position == 0
    records = [record for record in caplog.records if record.message.startswith("event killed its process")]
    assert [record.message for record in records] == [
        "event killed its process; will retry",
        "event killed its process; will retry",
        "event killed its process; partition is parked",
    ]
    event = {"consumer": "a", "partition": 0, "event_id": "1-2", "event_type": "Opened", "global_position": 5}
    assert all(vars(record).items() >= event.items() for record in records)
    events = [(name, data) for name, data in group.recorder.events if name != "worker.node_removed"]
    assert [name for name, _ in events] == ["worker.event_failed", "worker.event_failed", "worker.parked"]
    assert events[-1][1].items() >= (event | {"attempts": 3}).items()
    assert deaths(group)[B0] == 3, "it is suspected as well, but nothing is counted against its events"
    assert checkpoints(group)[B0].attempts == 0


def test_an_announcement_of_a_committed_batch_counts_nothing(group: Group):
    node, _, other = two_nodes(group)
    change(group, node, announced=asdict(ANNOUNCED))
    table = group.tables.consumer_checkpoints
    with group.engine.begin() as connection:
        connection.execute(table.update().values(last_position=5))
    die(group, node, other)
    row = checkpoints(group)[A0]
    assert (row.failed_position, row.attempts, row.error, row.retry_at) == (None, 0, None, None)


def test_a_node_that_joins_removes_its_predecessor_at_once(group: Group, caplog: pytest.LogCaptureFixture):
    """It does so even after an outage, in which the silence of a node means nothing."""
    process = this_process()
    assert process is not None
    node, _, _ = two_nodes(group)
    change(group, node, process=asdict(process) | {"started": 1}, announced=asdict(ANNOUNCED))
    elsewhere, beside = group.node(a=2)
    group.do(beside.join)
    assert node not in group.nodes(), "another process has its id"
    change(group, elsewhere, process=asdict(process) | {"host": "another container", "started": 1})
    successor, joining = group.node(a=2, b=1)
    joining.note_outage()
    group.do(joining.join)
    assert group.nodes() >= {elsewhere, successor}
    assert checkpoints(group)[A0].attempts == 1
    messages = [record.message for record in caplog.records if record.message.startswith("removed node")]
    assert messages == ["removed node: its process has ended"]


def test_nodes_without_an_identity_are_removed_for_silence_only(group: Group):
    node, _, _ = two_nodes(group)
    with group.engine.begin() as connection:
        connection.execute(group.tables.worker_nodes.update().values(running=None, pid=2**30))
    _, joining = group.node(a=2)
    group.do(joining.join)
    assert node in group.nodes()
    assert deaths(group) == {}
