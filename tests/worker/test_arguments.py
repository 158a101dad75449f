"""What a worker is given, and what is wrong with it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.errors import (
    StablePositionError,
    TablesMissingError,
    TransactionRequiredError,
)
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.fix_store import make_tables
from tests.fix_worker import Fleet


def test_what_is_wrong_is_named(engine: Engine):
    store, factory = EventStore(), sessionmaker(engine)
    good = consumer("good")(lambda session, event: None)
    with pytest.raises(TypeError, match="session_factory must be a sessionmaker"):
        Worker(engine, store, [good])
    with pytest.raises(TypeError, match="store must be an EventStore"):
        Worker(factory, store.tables, [good])
    with pytest.raises(TypeError, match="is not a consumer"):
        Worker(factory, store, [lambda session, event: None])
    with pytest.raises(ValueError, match="consumers must not be empty"):
        Worker(factory, store, [])
    with pytest.raises(ValueError, match="more than one is called 'good'"):
        Worker(factory, store, [good, good])
    with pytest.raises(TypeError, match="tables must be WorkerTables"):
        Worker(factory, store, [good], tables=store.tables)
    with pytest.raises(TypeError, match="config must be a WorkerConfig"):
        Worker(factory, store, [good], config={"batch_size": 3})
    with pytest.raises(TypeError, match="telemetry must have the methods span"):
        Worker(factory, store, [good], telemetry=object())


def test_a_coroutine_handler_needs_an_async_sessionmaker(engine: Engine):
    @consumer("coroutine")
    async def handle(session, event) -> None: ...

    with pytest.raises(TypeError, match="'coroutine' is a coroutine function, which needs an async_sessionmaker"):
        Worker(sessionmaker(engine), EventStore(), [handle])


def test_an_engine_of_another_kind_is_refused_before_it_is_used(engine: Engine):
    good = consumer("good")(lambda session, event: None)
    for driver in ("psycopg_async", "asyncpg"):
        asynchronous = engine.url.set(drivername=f"postgresql+{driver}")
        for made in (create_engine(asynchronous), create_async_engine(asynchronous)):
            with pytest.raises(TypeError, match=r"driver, \w+, is asynchronous: write async_sessionmaker"):
                Worker(sessionmaker(made), EventStore(), [good]).run()
    with pytest.raises(TypeError, match="session_factory is bound to sqlite"):
        Worker(sessionmaker(create_engine("sqlite://")), EventStore(), [good]).run()


@pytest.mark.parametrize("is_drain", [False, True])
def test_sessions_that_share_a_connection_are_refused(sync_fleet: Fleet, is_drain: bool):
    """Their batches would commit, and roll back, one another."""
    store, handler = sync_fleet.store, sync_fleet.see("seen")

    def refused(factory: object, what: str) -> None:
        worker = Worker(factory, store, [handler])
        with pytest.raises(TypeError, match=f"session_factory is bound to {what}, so that all sessions share one"):
            worker.drain() if is_drain else worker.run()

    static = create_engine(sync_fleet.engine.url, poolclass=StaticPool)
    async_static = create_async_engine(sync_fleet.engine.url, poolclass=StaticPool)
    refused(sessionmaker(static), "an engine with a StaticPool")
    refused(async_sessionmaker(async_static), "an engine with a StaticPool")
    with sync_fleet.engine.connect() as connection:
        refused(sessionmaker(connection), "a Connection")
        refused(sessionmaker(sync_fleet.engine, binds={store.tables.events: connection}), "a Connection")
        refused(async_sessionmaker(AsyncConnection(async_static, connection)), "a Connection")
        configured_later = sessionmaker()
        worker = Worker(configured_later, store, [handler])
        configured_later.configure(bind=connection)
        with pytest.raises(TypeError, match="session_factory"):
            worker.drain()
    configured_later.configure(bind=sync_fleet.engine)
    sync_fleet.append()
    worker.drain()
    assert sync_fleet.seen("seen") == [1]


def test_missing_tables(engine: Engine):
    good = consumer("good")(lambda session, event: None)
    with pytest.raises(TablesMissingError, match="events"):
        Worker(sessionmaker(engine), EventStore(), [good]).run()


def test_missing_tables_of_the_worker(engine: Engine):
    good = consumer("good")(lambda session, event: None)
    store = EventStore(make_tables(engine))
    with pytest.raises(TablesMissingError, match="consumer_checkpoints"):
        Worker(sessionmaker(engine), store, [good]).run()


@pytest.mark.parametrize("drain", [True, False])
def test_a_connection_without_transactions(engine: Engine, drain: bool):
    fleet = Fleet(engine, is_async=False)
    fleet.append()
    factory = sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT"))
    worker = Worker(factory, fleet.store, [fleet.see("all")])
    with pytest.raises(TransactionRequiredError, match="AUTOCOMMIT"):
        worker.drain() if drain else worker.run()
    assert fleet.seen("all") == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be between 1"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an int"),
        ({"poll_interval": "1"}, TypeError, "poll_interval must be a number of seconds"),
        ({"shutdown_timeout": float("nan")}, ValueError, "shutdown_timeout"),
        ({"poll_interval": 5}, ValueError, "poll_interval must not be greater than max_poll_interval"),
        ({"concurrency": True}, TypeError, "concurrency must be an int"),
        ({"batch_size": 2**31}, ValueError, "batch_size must be between 1 and 2147483647, not 2147483648"),
        (
            {"shutdown_timeout": 1e7},
            ValueError,
            "shutdown_timeout must be greater than 0 and at most 1,000,000 seconds",
        ),
        ({"stall_warning": float("inf")}, ValueError, "stall_warning must be greater .* not inf"),
    ],
)
def test_settings(settings, error, message):
    with pytest.raises(error, match=message):
        WorkerConfig(**settings)


def test_a_missing_privilege_is_an_error_and_no_guess(engine: Engine):
    """From PostgreSQL 17 on, a sequence that may not be read looks like one that was never used."""
    fleet = Fleet(engine, is_async=False)
    fleet.append()
    role = f"reader_{time.monotonic_ns()}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT SELECT ON events TO {role}"))
        schema = connection.scalar(text("SELECT current_schema()"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA {schema} TO {role}"))
    try:
        with Session(engine) as session:
            session.execute(text(f"SET ROLE {role}"))
            with pytest.raises((StablePositionError, ProgrammingError), match="sequence") as caught:
                fleet.store.stable_position(session)
            assert "may not read" in str(caught.value) or "permission denied" in str(caught.value)
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))


@pytest.mark.parametrize(
    ("options", "partitions", "is_enough"),
    [
        ({"pool_size": 5, "max_overflow": 0}, 8, False),
        ({"pool_size": 5, "max_overflow": 0}, 2, True),
        ({"pool_size": 5, "max_overflow": 2}, 4, True),
        ({"pool_size": 5, "max_overflow": -1}, 8, True),
        ({"pool_size": 0}, 8, True),
        ({"poolclass": NullPool}, 8, True),
        ({}, 8, True),
    ],
)
def test_a_pool_that_is_too_small_is_complained_of(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, options: dict[str, Any], partitions: int, *, is_enough: bool
):
    """Batches would take the connection with which the node says that it is alive."""
    worker = fleet.worker(fleet.see("all", partitions=partitions), concurrency=8)
    if fleet.is_async:
        worker._session_factory = async_sessionmaker(create_async_engine(fleet.engine.url, **options))
    else:
        worker._session_factory = sessionmaker(create_engine(fleet.engine.url, **options))
    worker.stop()
    worker.run()
    complaints = [(record.pool, record.needed) for record in caplog.records if "pool has fewer" in record.message]  # type: ignore[attr-defined]
    assert complaints == ([] if is_enough else [(5, 11)])
