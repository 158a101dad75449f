"""Instances that a batch keeps: a handler that gets a row for each event costs one SELECT per row and batch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.worker.processing import kept_instances
from pupsourcing_sa.worker.processing.kept_instances import KeptInstances
from tests.fix_worker import Fleet


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[str] = mapped_column(primary_key=True)
    events: Mapped[int]


class Unrelated(Base):
    __tablename__ = "unrelated"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session with 30 rows in the database, and none of them loaded."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(insert(Row), [{"id": str(number), "events": 0} for number in range(30)])
        session.commit()
        yield session


def is_alive(*references: weakref.ref[Any]) -> int:
    """Return the number of instances that are still in memory. They are in no reference cycles."""
    return sum(reference() is not None for reference in references)


# -- a handler -----------------------------------------------------------------------------------------------------


@contextmanager
def statements_on_rows() -> Iterator[list[str]]:
    """Yield the statements on the read model, of any engine."""
    found: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if " rows " in statement:
            found.append(statement.split(maxsplit=1)[0])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def count_events(fleet: Fleet, **options: Any) -> Any:
    """Return a consumer that counts the events of each aggregate, in the style of the README."""

    def changed(row: Row | None, name: str) -> Row:
        row = row or Row(id=name, events=0)
        row.events += 1
        return row

    if fleet.is_async:

        @consumer("rows", **options)
        async def count_async(session: AsyncSession, event: PersistedEvent) -> None:
            session.add(changed(await session.get(Row, event.aggregate_id), event.aggregate_id))

        return count_async

    @consumer("rows", **options)
    def count(session: Session, event: PersistedEvent) -> None:
        session.add(changed(session.get(Row, event.aggregate_id), event.aggregate_id))

    return count


def test_a_handler_costs_one_select_per_row_and_batch(both_fleets: Fleet):
    fleet = both_fleets
    Base.metadata.create_all(fleet.engine)
    fleet.append(60)  # to five aggregates in turn
    with statements_on_rows() as statements:
        fleet.worker(count_events(fleet, batch_size=30)).drain()
    assert fleet.query("SELECT events FROM rows") == [(12,)] * 5
    # A session finds a new row only after it has flushed it. The last one is therefore read once more.
    assert statements.count("SELECT") == 2 * 5 + 1
    # get() flushes before each SELECT, so a row may be written when the next one is read, and again at the end.
    assert statements.count("INSERT") == 5
    assert statements.count("UPDATE") <= 2 + 5


def test_a_batch_keeps_nothing_for_the_next_one(sync_fleet: Fleet):
    Base.metadata.create_all(sync_fleet.engine)
    references: list[weakref.ref[Any]] = []
    alive: list[int] = []

    @consumer("rows", batch_size=5)
    def handle(session: Session, event: PersistedEvent) -> None:
        row = Row(id=str(event.global_position), events=0)
        session.add(row)
        session.flush()
        alive.append(is_alive(*references))
        references.append(weakref.ref(row))

    sync_fleet.append(10)
    sync_fleet.worker(handle, batch_time=60).drain()
    assert alive == [0, 1, 2, 3, 4] * 2
    assert not is_alive(*references)
    assert kept_instances._kept == {}


def test_info_of_the_session_is_that_of_the_factory_in_each_batch(fleet: Fleet):
    """A handler that fails after it has written to it, too, leaves nothing to the next attempt."""
    found: list[dict[Any, Any]] = []

    def look(session: Session, event: PersistedEvent) -> None:
        found.append(dict(session.info))
        session.info["event"] = event.global_position
        session.info["tenant"] = "changed"
        if event.global_position == 3 and len(found) == 3:
            raise ValueError("the first attempt")

    if fleet.is_async:

        @consumer("all", batch_size=1)
        async def handle(session: AsyncSession, event: PersistedEvent) -> None:
            look(session.sync_session, event)
    else:
        handle = consumer("all", batch_size=1)(look)

    fleet.append(4)
    worker = fleet.worker(handle)
    worker._session_factory.configure(info={"tenant": "t1"})
    fleet.start(worker)
    fleet.wait(lambda: len(found) == 5)
    assert found == [{"tenant": "t1"}] * 5


def test_a_row_that_is_written_past_the_session_is_read_again(sync_fleet: Fleet):
    """The handler adds one with an upsert for every other event, and with the instance for the others."""
    Base.metadata.create_all(sync_fleet.engine)
    upsert = postgresql.insert(Row).values(id="all", events=1)
    upsert = upsert.on_conflict_do_update(index_elements=[Row.id], set_={"events": Row.events + 1})

    @consumer("rows")
    def handle(session: Session, event: PersistedEvent) -> None:
        row = session.get(Row, "all")
        if row is None or event.global_position % 2:
            session.execute(upsert)
        else:
            row.events += 1

    sync_fleet.append(20)
    sync_fleet.worker(handle).drain()
    assert sync_fleet.query("SELECT events FROM rows") == [(20,)]


# -- a session -----------------------------------------------------------------------------------------------------


UNSYNCHRONISED = {"synchronize_session": False}


def roll_back_a_change(session: Session, row: Row) -> None:
    with pytest.raises(ValueError, match="handled"), session.begin_nested():
        row.events = 7
        session.flush()
        raise ValueError("handled")


def delete_it(session: Session, row: Row) -> None:
    session.delete(row)
    session.flush()


def write_after_a_failed_flush(session: Session, row: Row) -> None:
    session.execute(insert(Unrelated).values(id=1))
    with suppress(IntegrityError), session.begin_nested():
        session.add(Unrelated(id=1))
        session.flush()
    session.connection().execute(update(Row.__table__).values(events=7))
    gc.collect()  # the error has a reference to the row


@pytest.mark.parametrize(
    "release",
    [
        lambda session, row: session.expire(row),
        lambda session, row: session.expire_all(),
        lambda session, row: session.expunge(row),
        lambda session, row: session.expunge_all(),
        lambda session, row: session.reset(),
        lambda session, row: session.rollback(),
        lambda session, row: session.commit(),
        delete_it,
        roll_back_a_change,
        lambda session, row: session.execute(delete(Row)),
        lambda session, row: session.execute(text("UPDATE rows SET events = 7")),
        lambda session, row: session.execute(update(Row.__table__).values(events=7)),
        lambda session, row: session.execute(update(Row).values(events=7), execution_options=UNSYNCHRONISED),
        lambda session, row: session.execute(postgresql.insert(Row).values(id="new", events=0)),
        lambda session, row: session.connection().execute(update(Row.__table__).values(events=7)),
        lambda session, row: session.connection().execute(text("UPDATE rows SET events = 7")),
        lambda session, row: session.bulk_update_mappings(Row, [{"id": "1", "events": 7}]),
        write_after_a_failed_flush,
    ],
)
def test_instances_are_released(session: Session, release: Callable[[Session, Row], object]):
    with KeptInstances(session):
        row = session.get_one(Row, "1")
        reference = weakref.ref(row)
        release(session, row)
        del row
        assert not is_alive(reference)


def flush_and_update(session: Session, row: Row) -> None:
    """The UPDATE flushes between its announcement and its execution."""
    row.events = 5
    session.add(Row(id="new", events=0))
    session.execute(update(Row).values(events=0))


@pytest.mark.parametrize(
    "leave",
    [
        lambda session, row: session.expire(row, ["events"]),
        lambda session, row: session.begin_nested().commit(),
        lambda session, row: session.flush(),
        lambda session, row: session.scalars(select(Row)).all(),
        lambda session, row: session.get(Row, "1", populate_existing=True),
        lambda session, row: session.merge(Row(id="1")),
        lambda session, row: session.execute(update(Row).values(events=0)),
        lambda session, row: session.execute(insert(Row).values(id="new", events=0)),
        lambda session, row: session.connection().execute(select(Row.__table__)),
        flush_and_update,
    ],
)
def test_instances_are_kept(session: Session, leave: Callable[[Session, Row], object]):
    with KeptInstances(session):
        reference = weakref.ref(session.get_one(Row, "1"))
        leave(session, reference())
        assert is_alive(reference)
        session.flush()  # of what is changed, which the session itself refers to
    assert not is_alive(reference)


def test_a_new_instance_is_kept_until_its_savepoint_is_rolled_back(session: Session):
    with KeptInstances(session):
        row = Row(id="new", events=0)
        savepoint = session.begin_nested()
        session.add(row)
        session.flush()
        reference = weakref.ref(row)
        del row
        assert is_alive(reference)
        savepoint.rollback()
        assert not is_alive(reference)


def test_the_session_applies_an_update_to_instances_that_it_keeps(session: Session):
    with KeptInstances(session):
        session.get_one(Row, "1").events = 5
        session.execute(update(Row).values(events=Row.events + 1))
        assert session.get_one(Row, "1").events == 6


def test_the_oldest_of_many_instances_are_released(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_instances, "_MAX_INSTANCES", 10)
    with KeptInstances(session):
        references = [
            weakref.ref(row) for row in session.scalars(select(Row).order_by(Row.id).execution_options(yield_per=5))
        ]
        assert [is_alive(reference) for reference in references] == [False] * 20 + [True] * 10


def test_sessions_of_the_application_keep_nothing(engine: Engine, session: Session):
    with KeptInstances(session), Session(engine) as other:
        reference = weakref.ref(other.get_one(Row, "1"))
        assert not is_alive(reference)
        row = session.get_one(Row, "1")
        reference = weakref.ref(row)
        del row
        other.expire_all()
        assert is_alive(reference)
