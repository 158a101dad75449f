"""The isolation level of a batch, and the fence when its snapshot is older than its lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.errors import TransactionRequiredError
from pupsourcing_sa.worker import Worker
from tests.fix_worker import Fleet, Recorder

LEVEL = text("SELECT current_setting('transaction_isolation')")


class Base(DeclarativeBase):
    pass


class Total(Base):
    __tablename__ = "totals"
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]


def count(session: Session) -> None:
    """Count as the handlers in the documentation do."""
    total = session.get(Total, "all") or Total(name="all", number=0)
    total.number += 1
    session.add(total)


def handler(fleet: Fleet, name: str, handle: Callable[[Session], None], **options: Any) -> Any:
    """Return a consumer of the kind that fits the worker."""
    if not fleet.is_async:
        return consumer(name, **options)(lambda session, _: handle(session))

    @consumer(name, **options)
    async def handle_async(session: AsyncSession, event: PersistedEvent) -> None:
        await session.run_sync(handle)

    return handle_async


def test_the_consumer_chooses_and_nothing_leaks_into_the_pool(drivers: Fleet):
    fleet, found = drivers, {}

    def look(level: str) -> Any:
        def handle(session: Session) -> None:
            found[level] = session.scalar(LEVEL)

        return handler(fleet, level, handle, isolation=level)

    def look_by_default(session: Session) -> None:
        found["default"] = session.scalar(LEVEL)
        session.connection().execution_options(schema_translate_map={})  # a handler may set other options

    levels = "read committed", "Repeatable_Read", "SERIALIZABLE"
    fleet.append()
    fleet.worker(*map(look, levels), handler(fleet, "default", look_by_default), concurrency=1).drain()
    assert found == {level: level.lower().replace("_", " ") for level in levels} | {"default": "repeatable read"}


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_the_stricter_level_of_an_engine_is_kept(sync_fleet: Fleet, level: str):
    """The connection has the level of its engine again afterwards, because others share the pool."""
    fleet, found = sync_fleet, {}
    engine = fleet.engine.execution_options(isolation_level=level)

    def look(name: str, **options: Any) -> Any:
        return consumer(name, **options)(lambda session, _: found.update({name: session.scalar(LEVEL)}))

    fleet.append()
    consumers = look("default"), look("lower", isolation="READ COMMITTED")
    Worker(sessionmaker(engine), fleet.store, consumers, tables=fleet.tables).drain()
    stricter = "serializable" if level == "SERIALIZABLE" else "repeatable read"
    assert found == {"default": stricter, "lower": "read committed"}
    with Session(engine) as session:
        assert session.scalar(LEVEL) == level.lower()
    assert fleet.query("SHOW transaction_isolation")[0][0] == "read committed"


def test_a_transaction_that_the_worker_did_not_begin_is_refused(sync_fleet: Fleet):
    def lower(session: Session, transaction: Any, connection: Any) -> None:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))

    fleet = sync_fleet
    factory = sessionmaker(fleet.engine, class_=type("Lowered", (Session,), {}))
    event.listen(factory, "after_begin", lower)
    fleet.append()
    worker = Worker(factory, fleet.store, [fleet.see("all")], tables=fleet.tables)
    with pytest.raises(TransactionRequiredError, match="is READ COMMITTED, but its consumer requires REPEATABLE READ"):
        worker.drain()
    Worker(factory, fleet.store, [fleet.see("all", isolation="READ COMMITTED")], tables=fleet.tables).drain()
    assert fleet.seen("all") == [1]


@pytest.mark.parametrize("autobegin", [True, False])
def test_a_snapshot_that_is_older_than_the_lock_sees_no_old_checkpoint(sync_fleet: Fleet, autobegin: bool):
    """A hook takes the snapshot; then an operator changes the checkpoint, and after that the batch locks it."""
    fleet, recorder = sync_fleet, Recorder()
    changes: list[str] = []

    def interfere(session: Session, transaction: Any, connection: Any) -> None:
        connection.execute(text("SELECT 1"))
        is_batch = connection.get_execution_options().get("isolation_level") == "REPEATABLE READ"
        if is_batch and changes:
            fleet.query(changes.pop(), commit=True)

    factory = sessionmaker(fleet.engine, class_=type("Hooked", (Session,), {}), autobegin=autobegin)
    event.listen(factory, "after_begin", interfere)
    worker = Worker(factory, fleet.store, [fleet.see("all")], tables=fleet.tables, telemetry=recorder)
    expected: list[int] = []
    for change, seen in [
        ("", [1]),
        ("", [2]),
        ("UPDATE consumer_checkpoints SET last_position = 1", [2, 3]),
        ("DELETE FROM consumer_checkpoints", [1, 2, 3, 4]),
        ("UPDATE consumer_checkpoints SET last_position = last_position", [5]),
    ]:
        changes[:] = [change] if change else []
        fleet.append()
        worker.drain()
        expected += seen
        assert changes == []
        assert fleet.seen("all") == expected
    assert len(recorder.named("worker.batch_retried")) == 3
    assert recorder.named("worker.event_failed") == []


@pytest.mark.parametrize(("isolation", "expected"), [("REPEATABLE READ", 103), ("READ COMMITTED", 3)])
def test_what_another_transaction_writes_in_between_is_kept(drivers: Fleet, isolation: str, expected: int):
    """The control: under READ COMMITTED the write of the application is lost, and nothing reports it."""
    fleet, recorder = drivers, Recorder()
    Base.metadata.drop_all(fleet.engine)
    Base.metadata.create_all(fleet.engine)
    fleet.query("INSERT INTO totals VALUES ('all', 0)", commit=True)
    writes = ["UPDATE totals SET number = number + 100"]

    def handle(session: Session) -> None:
        count(session)
        if writes:
            with session.no_autoflush:
                fleet.query(writes.pop(), commit=True)

    fleet.append(3)
    worker = fleet.worker(handler(fleet, "all", handle, max_attempts=1, isolation=isolation), telemetry=recorder)
    worker.drain()
    assert fleet.query("SELECT number FROM totals")[0][0] == expected
    assert recorder.named("worker.event_failed") == []


def test_partitions_that_share_rows_count_every_event(fleet: Fleet):
    recorder = Recorder()
    Base.metadata.drop_all(fleet.engine)
    Base.metadata.create_all(fleet.engine)
    fleet.append(40)
    worker = fleet.worker(handler(fleet, "all", count, partitions=4, max_attempts=1), telemetry=recorder, batch_size=3)
    fleet.start(worker)
    fleet.wait(lambda: fleet.query("SELECT coalesce(min(last_position), 0) FROM consumer_checkpoints")[0][0] == 40)
    fleet.stop()
    assert fleet.query("SELECT number FROM totals")[0][0] == 40
    assert recorder.named("worker.event_failed") == []
