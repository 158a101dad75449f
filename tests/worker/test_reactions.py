"""Reactions: they begin at the stable position of their first declaration, and what they append carries its cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import (
    AnyVersion,
    AsyncEventStore,
    Event,
    EventRegistry,
    EventStore,
    EventTables,
    PersistedEvent,
    TypedConsumer,
    WorkerTables,
    consumer,
    event_context,
)
from pupsourcing_sa.errors import DuplicateEventError
from pupsourcing_sa.registry import deterministic_id
from pupsourcing_sa.worker import Worker
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from tests.fix_membership import Group
from tests.fix_worker import Fleet


def mailer(fleet: Fleet, check: Callable[[PersistedEvent], None] = lambda event: None, **options: Any) -> Any:
    """Return a reaction that appends an event for each event of a user."""
    options = {"aggregate_types": {"User"}, "reacts": True} | options

    def mail_of(event: PersistedEvent) -> Event:
        check(event)
        return Event(
            aggregate_type="Mail",
            aggregate_id=event.aggregate_id,
            event_type="Sent",
            payload={},
            event_id=deterministic_id(event, "mail"),
        )

    if fleet.is_async:
        store = AsyncEventStore(fleet.store.tables)

        @consumer("mailer", **options)
        async def mail_async(session: AsyncSession, event: PersistedEvent) -> None:
            await store.append(session, AnyVersion(), [mail_of(event)])

        return mail_async

    @consumer("mailer", **options)
    def mail(session: Session, event: PersistedEvent) -> None:
        fleet.store.append(session, AnyVersion(), [mail_of(event)])

    return mail


def causes_of_mails(fleet: Fleet) -> list[Any]:
    columns = "correlation_id, causation_id, trace_id, metadata"
    mails = fleet.query(f"SELECT {columns} FROM events WHERE aggregate_type = 'Mail' ORDER BY global_position")
    return list(map(tuple, mails))


def ids_of_users(fleet: Fleet) -> list[str]:
    users = "SELECT event_id FROM events WHERE aggregate_type = 'User' ORDER BY global_position"
    return [str(row.event_id) for row in fleet.query(users)]


def test_what_a_handler_appends_carries_its_cause(drivers: Fleet):
    fleet = drivers
    fleet.append(3)
    # It begins at the stable position of its first declaration.
    fleet.worker(mailer(fleet)).drain()
    assert not causes_of_mails(fleet)
    fleet.append(correlation_id="c", trace_id="t")
    fleet.append()
    with event_context(correlation_id="ambient", metadata={"user": "ann"}):
        fleet.worker(mailer(fleet)).drain()
    first, second = ids_of_users(fleet)[3:]
    assert causes_of_mails(fleet) == [("c", first, "t", None), (second, second, None, None)]


def test_a_failure_leaves_no_cause_behind(fleet: Fleet):
    attempts = []

    def fail_once(event: PersistedEvent) -> None:
        attempts.append(str(event.event_id))
        if len(attempts) == 2:
            raise ZeroDivisionError

    fleet.append(3)
    fleet.worker(mailer(fleet, fail_once, reacts=False)).drain()
    expected = ids_of_users(fleet)
    assert [cause for _, cause, _, _ in causes_of_mails(fleet)] == expected
    assert len(attempts) > 3


def test_a_batch_has_no_single_cause(sync_fleet: Fleet):
    found: list[str | None] = []

    def note(events: Sequence[PersistedEvent]) -> None:
        def cause() -> str | None:
            return Event(aggregate_type="A", aggregate_id="a", event_type="E", payload={}).causation_id

        found.append(cause())
        for event in events:
            with event.as_cause():
                found.append(cause())

    sync_fleet.append(2)
    with event_context(causation_id="ambient"):
        sync_fleet.worker(sync_fleet.see_batches("batches", check=note)).drain()
    assert found == [None, *ids_of_users(sync_fleet)]


def test_a_repeated_reaction_appends_nothing(sync_fleet: Fleet):
    fleet = sync_fleet
    fleet.worker(mailer(fleet)).drain()
    fleet.append(2)
    fleet.worker(mailer(fleet)).drain()
    fleet.query("UPDATE consumer_checkpoints SET last_position = 0", commit=True)
    with pytest.raises(DuplicateEventError):
        fleet.worker(mailer(fleet, max_attempts=1)).drain()
    assert len(causes_of_mails(fleet)) == 2


def test_a_worker_refuses_another_registry(sync_fleet: Fleet):
    orders = TypedConsumer("orders", EventRegistry())
    for store, problem in (
        (EventStore(EventTables(MetaData())), "the store has none"),
        (EventStore(EventTables(MetaData()), registry=EventRegistry()), "the store has another one"),
    ):
        with pytest.raises(ValueError, match=f"consumer 'orders' has a registry of event classes, but {problem}"):
            Worker(sessionmaker(sync_fleet.engine), store, [orders])


@pytest.fixture
def group(engine: Engine) -> Group:
    return Group(engine, WorkerTables())


class TestStart:
    """The position after which a reaction begins."""

    def rows(self, group: Group) -> list[Any]:
        table = group.tables.consumer_checkpoints
        columns = table.c.consumer_name, table.c.partition, table.c.start_position, table.c.last_position
        with group.engine.connect() as connection:
            return list(map(tuple, connection.execute(table.select().with_only_columns(*columns).order_by(*columns))))

    def declare(self, group: Group, position: int, *, reacts: bool = True) -> None:
        _, membership = group.node(a=2, reacts=reacts)
        membership.begin_reactions_at(position)
        group.do(membership.declare)

    def test_all_partitions_begin_at_the_first_one(self, group: Group):
        self.declare(group, 7)
        self.declare(group, 9)
        assert self.rows(group) == [("a", 0, 7, 7), ("a", 1, 7, 7)]

    def test_a_deleted_checkpoint_begins_there_again(self, group: Group):
        self.declare(group, 7)
        table = group.tables.consumer_checkpoints
        with group.engine.begin() as connection:
            connection.execute(table.update().values(last_position=8))
            connection.execute(table.delete().where(table.c.partition == 1))
        self.declare(group, 9)
        assert self.rows(group) == [("a", 0, 7, 8), ("a", 1, 7, 7)]

    def test_a_running_node_knows_it(self, group: Group):
        _, other = group.node(a=1, reacts=True)
        other.begin_reactions_at(7)
        group.do(other.declare)
        _, membership = group.node(a=1, reacts=True)
        membership.begin_reactions_at(9)
        group.do(membership.join)
        with group.engine.begin() as connection:
            for table in (group.tables.consumer_checkpoints, group.tables.consumer_assignments):
                connection.execute(table.delete())
        group.clock.seconds += 10
        group.do(membership.tick)
        assert self.rows(group) == [("a", 0, 7, 7)]

    def test_a_batch_knows_it(self, group: Group):
        found = group.do(Checkpoint(group.tables, "a", 0, start=7).lock)
        assert found is not None
        assert found.position == 7

    def test_a_consumer_that_exists_keeps_its_position(self, group: Group):
        self.declare(group, 7, reacts=False)
        self.declare(group, 9)
        assert self.rows(group) == [("a", 0, None, 0), ("a", 1, None, 0)]
