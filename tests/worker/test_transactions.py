"""A handler that ends its transaction gets an error, and nothing of its batch is applied.

What it commits past the session is in `test_commits`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.errors import (
    HandlerTransactionError,
)
from tests.fix_postgres import new_schema
from tests.fix_store import tenant
from tests.fix_worker import INSERT, Fleet, Recorder


def drain(fleet: Fleet, misbehave: Callable[[Session], None]) -> None:
    @consumer("misbehaving")
    def handle(session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": "misbehaving", "position": event.global_position})
        misbehave(session)

    fleet.append(2)
    with pytest.raises(HandlerTransactionError, match="'misbehaving'"):
        fleet.worker(handle).drain()
    assert fleet.seen("misbehaving") == []
    assert fleet.checkpoint("misbehaving").last_position == 0


def test_a_commit_is_refused(sync_fleet: Fleet):
    drain(sync_fleet, lambda session: session.commit())


def test_a_commit_whose_error_is_swallowed_is_refused(sync_fleet: Fleet):
    def misbehave(session: Session) -> None:
        with contextlib.suppress(HandlerTransactionError):
            session.commit()

    drain(sync_fleet, misbehave)


def test_a_commit_inside_a_savepoint_is_refused(sync_fleet: Fleet):
    def misbehave(session: Session) -> None:
        session.begin_nested()
        session.commit()

    drain(sync_fleet, misbehave)


def test_a_rollback_is_noticed(sync_fleet: Fleet):
    drain(sync_fleet, lambda session: session.rollback())


def test_a_rollback_that_goes_on_is_noticed(sync_fleet: Fleet):
    def misbehave(session: Session) -> None:
        session.rollback()
        session.execute(INSERT, {"consumer": "misbehaving", "position": 0})

    drain(sync_fleet, misbehave)


def test_a_commit_after_a_rollback_is_refused(sync_fleet: Fleet):
    def misbehave(session: Session) -> None:
        session.rollback()
        session.execute(INSERT, {"consumer": "misbehaving", "position": 0})
        session.commit()

    drain(sync_fleet, misbehave)


def test_a_rollback_by_sql_is_noticed(sync_fleet: Fleet):
    drain(sync_fleet, lambda session: session.execute(text("ROLLBACK")))


def test_a_checkpoint_that_the_handler_deletes_is_noticed(sync_fleet: Fleet):
    drain(sync_fleet, lambda session: session.execute(text("DELETE FROM consumer_checkpoints")))


def test_a_coroutine_that_would_not_be_awaited_is_refused(fleet: Fleet):
    async def work() -> None: ...

    fleet.append()
    with pytest.raises(TypeError, match="Declare it with async def"):
        fleet.worker(consumer("lost")(lambda session, event: work())).drain()
    assert fleet.checkpoint("lost").last_position == 0


def test_a_handler_with_a_yield_is_refused(fleet: Fleet):
    """Calling it would do nothing."""

    class Generator:
        name = "generator"

        def handle(self, session: Session, event: PersistedEvent) -> Any:
            yield

    class BatchGenerator:
        name = "generator"

        def handle_batch(self, session: Session, events: list[PersistedEvent]) -> Any:
            yield

    fleet.append()
    for handler in (Generator(), BatchGenerator()):
        with pytest.raises(TypeError, match="must not be a generator"):
            fleet.worker(handler).drain()
        assert fleet.checkpoint("generator").last_position == 0


def test_an_asynchronous_handler_with_a_yield_is_refused(async_fleet: Fleet):
    class Generator:
        name = "generator"

        async def handle(self, session: AsyncSession, event: PersistedEvent) -> Any:
            yield

    class BatchGenerator:
        name = "generator"

        async def handle_batch(self, session: AsyncSession, events: list[PersistedEvent]) -> Any:
            yield

    async_fleet.append()
    for handler in (Generator(), BatchGenerator()):
        with pytest.raises(TypeError, match="must not be a generator"):
            async_fleet.worker(handler).drain()
        assert async_fleet.checkpoint("generator").last_position == 0


def test_an_asynchronous_commit_is_refused(async_fleet: Fleet):
    @consumer("misbehaving")
    async def handle(session: AsyncSession, event: PersistedEvent) -> None:
        await session.commit()

    async_fleet.append()
    with pytest.raises(HandlerTransactionError):
        async_fleet.worker(handle).drain()
    assert async_fleet.checkpoint("misbehaving").last_position == 0


def test_savepoints_are_welcome(sync_fleet: Fleet):
    @consumer("careful")
    def handle(session: Session, event: PersistedEvent) -> None:
        with session.begin_nested():
            session.execute(INSERT, {"consumer": "careful", "position": event.global_position})
        savepoint = session.begin_nested()
        session.execute(INSERT, {"consumer": "careful", "position": -1})
        savepoint.rollback()

    sync_fleet.append(2)
    sync_fleet.worker(handle).drain()
    assert sync_fleet.seen("careful") == [1, 2]


DIVISION = text("SELECT 1 / 0")


def swallow(session: Session) -> None:
    with contextlib.suppress(DBAPIError):
        session.execute(DIVISION)


def swallow_and_continue(session: Session) -> None:
    swallow(session)
    session.execute(INSERT, {"consumer": "all", "position": 0})


def swallow_in_an_open_savepoint(session: Session) -> None:
    session.begin_nested()
    swallow(session)


class TestSwallowedErrors:
    """A handler catches a database error, and PostgreSQL has aborted the transaction."""

    @pytest.mark.parametrize("misbehave", [swallow, swallow_and_continue, swallow_in_an_open_savepoint])
    def test_the_handler_gets_the_error(self, drivers: Fleet, misbehave: Callable[[Session], None]):
        @consumer("all")
        def handle(session: Session, event: PersistedEvent) -> None:
            if event.global_position == 2:
                misbehave(session)
            else:
                session.execute(INSERT, {"consumer": "all", "position": event.global_position})

        drivers.append(4)
        with pytest.raises(HandlerTransactionError, match=r"handler of consumer 'all'.*begin_nested") as caught:
            drivers.worker(handle).drain()
        assert "division by zero" in str(caught.value.__cause__)
        assert "global_position=2" in caught.value.__notes__[0]
        assert drivers.seen("all") == [1]

    def test_it_counts(self, fleet: Fleet):
        fleet.append(2)
        fleet.start(fleet.worker(consumer("all", max_attempts=2)(lambda session, event: swallow(session))))
        fleet.wait(lambda: fleet.checkpoint("all") is not None and fleet.checkpoint("all").parked_at is not None)
        found = fleet.checkpoint("all")
        assert (found.failed_position, found.attempts) == (1, 2)
        assert "SQLSTATE 22012" in found.error

    def test_a_batch(self, sync_fleet: Fleet):
        class Batches:
            name = "all"

            def handle_batch(self, session: Session, events: list[PersistedEvent]) -> None:
                swallow(session)

        sync_fleet.append(2)
        with pytest.raises(HandlerTransactionError, match="begin_nested") as caught:
            sync_fleet.worker(Batches()).drain()
        assert "division by zero" in str(caught.value.__cause__)

    def test_one_of_a_flush(self, sync_fleet: Fleet):
        """SQLAlchemy has rolled back by itself; the handler has not called ``rollback()``."""

        class Base(DeclarativeBase): ...

        class Missing(Base):
            __tablename__ = "missing"
            id: Mapped[int] = mapped_column(primary_key=True)

        @consumer("all")
        def handle(session: Session, event: PersistedEvent) -> None:
            session.add(Missing(id=1))
            with contextlib.suppress(DBAPIError):
                session.flush()

        sync_fleet.append(2)
        with pytest.raises(HandlerTransactionError, match="caught a database error") as caught:
            sync_fleet.worker(handle).drain()
        assert "missing" in str(caught.value.__cause__)

    def test_one_that_sqlalchemy_does_not_see(self, sync_fleet: Fleet):
        @consumer("all")
        def handle(session: Session, event: PersistedEvent) -> None:
            cursor = session.connection().connection.cursor()
            with contextlib.suppress(Exception):
                cursor.execute("SELECT 1 / 0")

        sync_fleet.append(2)
        with pytest.raises(HandlerTransactionError, match=r"consumer 'all'.*caught a database error.*begin_nested"):
            sync_fleet.worker(handle).drain()

    def test_a_lost_race_is_retried(self, fleet: Fleet):
        """The same happens to an error that the handler does not catch."""
        failing = iter([True, True])
        race = text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$")

        def handle(session: Session, event: PersistedEvent) -> None:
            if next(failing, False):
                with contextlib.suppress(DBAPIError):
                    session.execute(race)

        recorder = Recorder()
        fleet.append()
        fleet.start(fleet.worker(consumer("all")(handle), telemetry=recorder))
        fleet.wait(lambda: fleet.checkpoint("all") is not None and fleet.checkpoint("all").last_position == 1)
        assert recorder.named("worker.event_failed") == []

    def test_a_savepoint_keeps_the_transaction(self, both_fleets: Fleet):
        def handle(session: Session, event: PersistedEvent) -> None:
            with contextlib.suppress(DBAPIError), session.begin_nested():
                session.execute(DIVISION)
            session.execute(INSERT, {"consumer": "all", "position": event.global_position})

        both_fleets.append(3)
        both_fleets.worker(consumer("all")(handle)).drain()
        assert both_fleets.seen("all") == [1, 2, 3]


def by_search_path(session: Session, schema: str) -> None:
    session.execute(select(func.set_config("search_path", quoted(schema), True)))


def by_translate_map(session: Session, schema: str) -> None:
    session.connection().execution_options(schema_translate_map={None: schema})


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


SWITCHES = pytest.mark.parametrize("switch", [by_search_path, by_translate_map])


@SWITCHES
def test_a_checkpoint_of_the_same_name_in_another_schema_stays_where_it_is(
    sync_fleet: Fleet, switch: Callable[[Session, str], None]
):
    """An application with a schema for each tenant may well switch to one in a handler, and stay there."""
    fleet = sync_fleet
    with tenant(fleet.engine, fleet.store.tables) as schema:
        there = f"{quoted(schema)}.consumer_checkpoints"
        fleet.query(f"INSERT INTO {there} (consumer_name, partition) VALUES ('misbehaving', 0)", commit=True)

        def misbehave(session: Session) -> None:
            position = fleet.query(f"SELECT last_position FROM {there}")
            assert position == [(0,)], "a batch has moved it"
            switch(session, schema)

        drain(fleet, misbehave)
        assert fleet.query(f"SELECT last_position FROM {there}") == [(0,)]


@SWITCHES
def test_a_switch_to_a_schema_without_checkpoints_is_an_error(
    sync_fleet: Fleet, switch: Callable[[Session, str], None]
):
    with new_schema(sync_fleet.engine, "without"):
        drain(sync_fleet, lambda session: switch(session, "without"))


def test_a_handler_that_switches_back_continues(sync_fleet: Fleet):
    @consumer("switching")
    def handle(session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": "switching", "position": event.global_position})
        before = session.scalar(select(func.current_setting("search_path")))
        by_search_path(session, "pg_catalog")
        session.execute(select(func.set_config("search_path", before, True)))

    sync_fleet.append(2)
    sync_fleet.worker(handle).drain()
    assert sync_fleet.seen("switching") == [1, 2]
