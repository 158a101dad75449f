"""Arguments of a worker, and the mistakes in them."""

from __future__ import annotations

import time
from contextlib import nullcontext
from enum import IntEnum
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import EventStore, EventTables, WorkerTables, consumer
from pupsourcing_sa.errors import (
    StablePositionError,
    TablesMissingError,
    TransactionRequiredError,
    UnsupportedDriverError,
)
from pupsourcing_sa.worker import Worker, WorkerConfig
from pupsourcing_sa.worker.execution.engines import check_engines
from tests.fix_store import make_tables
from tests.fix_worker import Fleet

#: A mistake is named before anything is sent to a database.
NOWHERE = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")


def test_mistakes_are_named():
    store, factory = EventStore(), sessionmaker(NOWHERE)
    good = consumer("good")(lambda session, event: None)
    with pytest.raises(TypeError, match="session_factory must be a sessionmaker"):
        Worker(NOWHERE, store, [good])
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


def test_a_coroutine_handler_needs_an_async_sessionmaker():
    @consumer("coroutine")
    async def handle(session, event) -> None: ...

    with pytest.raises(TypeError, match="'coroutine' is a coroutine function, which needs an async_sessionmaker"):
        Worker(sessionmaker(NOWHERE), EventStore(), [handle])


def test_an_engine_of_another_kind_is_refused_before_it_is_used():
    good = consumer("good")(lambda session, event: None)
    for driver in ("psycopg_async", "asyncpg"):
        asynchronous = NOWHERE.url.set(drivername=f"postgresql+{driver}")
        for made in (create_engine(asynchronous), create_async_engine(asynchronous)):
            with pytest.raises(TypeError, match=r"its engine, \w+, is asynchronous; write async_sessionmaker"):
                Worker(sessionmaker(made), EventStore(), [good]).run()
    for driver in ("psycopg2", "pg8000"):
        other = create_engine(NOWHERE.url)
        other.dialect.driver = driver
        for act in (Worker.run, Worker.drain):
            with pytest.raises(UnsupportedDriverError, match=f"the driver postgresql.{driver} is not supported"):
                act(Worker(sessionmaker(other), EventStore(), [good]))
    with pytest.raises(TypeError, match="session_factory is bound to sqlite"):
        Worker(sessionmaker(create_engine("sqlite://")), EventStore(), [good]).run()


@pytest.mark.parametrize(("level", "proper"), [("read committed", "READ COMMITTED"), ("SERIALIZABLE", None)])
def test_an_isolation_level_that_cannot_be_restored_is_refused(sync_fleet: Fleet, level: str, proper: str | None):
    """SQLAlchemy accepts any spelling, and fails with an empty AssertionError when it resets the connection."""
    engine = create_engine(sync_fleet.engine.url, isolation_level=level)
    worker = Worker(sessionmaker(engine), sync_fleet.store, [sync_fleet.see("seen")])
    expected = pytest.raises(ValueError, match=f"write isolation_level='{proper}'") if proper else nullcontext()
    with expected:
        worker.drain()
    engine.dispose()


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


def test_settings_of_subclasses_become_plain_values():
    class Number(IntEnum):
        TWO = 2

    config = WorkerConfig(batch_size=Number.TWO, poll_interval=Number.TWO, max_poll_interval=2)
    assert config == WorkerConfig(batch_size=2, poll_interval=2, max_poll_interval=2)
    assert {type(config.batch_size), type(config.poll_interval)} == {int}


def test_a_missing_privilege_is_an_error(engine: Engine):
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


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_warning_of_a_pool_that_is_too_small(caplog: pytest.LogCaptureFixture, kind: str):
    """Batches would take the connection with which the node sends its heartbeats."""
    for options, wanted, is_enough in [
        ({"pool_size": 5, "max_overflow": 0}, 11, False),
        ({"pool_size": 5, "max_overflow": 0}, 5, True),
        ({"pool_size": 5, "max_overflow": 2}, 7, True),
        ({"pool_size": 5, "max_overflow": 2}, 8, False),
        ({"pool_size": 5, "max_overflow": -1}, 11, True),
        ({"pool_size": 0}, 11, True),
        ({"poolclass": NullPool}, 11, True),
        ({}, 11, True),
    ]:
        caplog.clear()
        if kind == "async":
            factory: Any = async_sessionmaker(create_async_engine(NOWHERE.url, **options))
        else:
            factory = sessionmaker(create_engine(NOWHERE.url, **options))
        check_engines(factory, EventTables().events, WorkerTables().consumer_checkpoints, wanted=wanted)
        assert len(caplog.records) == (not is_enough), (options, wanted)


def test_a_worker_needs_connections_besides_those_of_its_batches(sync_fleet: Fleet, caplog: pytest.LogCaptureFixture):
    small = create_engine(sync_fleet.engine.url, pool_size=5, max_overflow=0)
    for partitions, warnings in ((2, []), (8, [(5, 11)])):
        worker = sync_fleet.worker(sync_fleet.see("all", partitions=partitions), concurrency=8)
        worker._session_factory = sessionmaker(small)
        worker.stop()
        worker.run()
        found = [(record.pool, record.needed) for record in caplog.records if hasattr(record, "pool")]  # type: ignore[attr-defined]
        assert found == warnings
