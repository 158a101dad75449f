"""A handler that ends its transaction gets an error, and nothing of its batch is applied.

What it commits past the session is in `test_commits`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.errors import (
    HandlerTransactionError,
)
from tests.fix_postgres import new_schema
from tests.fix_store import tenant
from tests.fix_worker import INSERT, Fleet


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
