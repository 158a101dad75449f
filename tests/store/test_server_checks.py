"""The self-check finds servers that accept what they do not do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, NullPool, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa import AsyncEventStore, EventStore, EventTables, NoStream, WorkerTables, consumer
from pupsourcing_sa.errors import (
    PupsourcingError,
    SequenceBehindLogError,
    StablePositionError,
    TablesMissingError,
    UnsupportedServerError,
)
from pupsourcing_sa.store.server_checks import check_server
from pupsourcing_sa.worker import Worker
from tests.fix_store import Log, make_async_engine, make_event

NAMES = [
    "server version",
    "primary server",
    "tables",
    "replication",
    "sequence",
    "advisory locks",
    "transaction settings",
]

#: Functions that hide those of PostgreSQL, with the step that finds them.
STUBS = {
    "a lock that is not taken": (
        "advisory locks",
        "pg_advisory_xact_lock_shared(integer, integer) RETURNS void LANGUAGE sql AS ''",
    ),
    "a lock that survives a rollback to a savepoint": (
        "advisory locks",
        "pg_advisory_xact_lock_shared(integer, integer) RETURNS void LANGUAGE sql"
        " AS 'SELECT pg_catalog.pg_advisory_lock_shared($1, $2)'",
    ),
    "a shared lock that is refused": (
        "advisory locks",
        "pg_try_advisory_xact_lock_shared(integer, integer) RETURNS boolean LANGUAGE sql AS 'SELECT false'",
    ),
    "an exclusive lock beside a shared one": (
        "advisory locks",
        "pg_try_advisory_xact_lock(integer, integer) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
    ),
    "a setting that outlives the transaction": (
        "transaction settings",
        "set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT pg_catalog.set_config($1, $2, false)'",
    ),
    "a sequence without a last value": (
        "sequence",
        "pg_sequence_last_value(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT NULL::bigint'",
    ),
    "a sequence with another last value": (
        "sequence",
        "pg_sequence_last_value(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT 4711::bigint'",
    ),
    "a standby": ("primary server", "pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'"),
}

#: Parts of statements that are replaced, with the step that finds it.
REPLACED = {
    "no locks are shown": (
        "advisory locks",
        "pg_catalog.pg_locks",
        "(TABLE pg_catalog.pg_locks LIMIT 0) pg_locks",
    ),
    "an old version": ("server version", "current_setting('server_version_num')", "'110022'"),
    "a function is missing": ("advisory locks", "pg_advisory_xact_lock_shared", "pg_lock_of_another_program"),
    "savepoints are missing": ("advisory locks", "SAVEPOINT ", "MARK "),
}


@contextmanager
def replacing(engine: Engine, old: str, new: str) -> Iterator[None]:
    def replace(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        return statement.replace("pg_catalog.pg_locks.", "pg_locks.").replace(old, new), parameters

    event.listen(engine, "before_cursor_execute", replace, retval=True)
    yield
    event.remove(engine, "before_cursor_execute", replace)


def failed(engine: Engine, tables: EventTables) -> list[str]:
    with engine.connect() as connection:
        return [result.name for result in check_server(connection, EventStore(tables).reader) if result.problem]


def test_a_postgres_server_passes(log: Log):
    for _ in range(2):
        if isinstance(log.store, AsyncEventStore):
            asyncio_engine = log._async_engine
            log._await(log.store.check(asyncio_engine))
        else:
            log.store.check(log.engine)
        transaction = log.begin()
        transaction.append(NoStream(), [make_event(str(uuid4()))])
        transaction.commit()
    with log.engine.connect() as connection:
        assert [
            (result.name, result.problem) for result in check_server(connection, EventStore(log.tables).reader)
        ] == [(name, None) for name in NAMES]


@pytest.mark.parametrize("stub", STUBS)
def test_functions_that_do_nothing(plain_log: Log, make_engine: Callable[..., Engine], stub: str):
    name, function = STUBS[stub]
    transaction = plain_log.begin()
    transaction.append(NoStream(), [make_event()])
    transaction.commit()
    with plain_log.engine.begin() as connection:
        schema = connection.scalar(text("SELECT current_schema()"))
        connection.exec_driver_sql(f"CREATE FUNCTION {function}")
    # Functions of this schema come first.
    stubbed = make_engine(f"search_path={schema},pg_catalog", poolclass=NullPool)
    assert failed(stubbed, plain_log.tables)[:1] == [name]
    with pytest.raises((UnsupportedServerError, StablePositionError)) as raised:
        EventStore(plain_log.tables).check(stubbed)
    if isinstance(raised.value, UnsupportedServerError):
        assert raised.value.check == name
        assert raised.value.found in str(raised.value)


@pytest.mark.parametrize("case", REPLACED)
def test_a_server_that_lacks_something(plain_log: Log, make_engine: Callable[..., Engine], case: str):
    name, old, new = REPLACED[case]
    engine = make_engine(poolclass=NullPool)
    with (
        replacing(engine, old, new),
        pytest.raises(UnsupportedServerError, match="Use PostgreSQL 12 or") as raised,
    ):
        EventStore(plain_log.tables).check(engine)
    assert raised.value.check == name
    EventStore(plain_log.tables).check(engine)


def test_problems_of_the_log_are_reported_as_they_are(plain_log: Log):
    def problem(engine: Engine) -> PupsourcingError:
        with pytest.raises(PupsourcingError) as raised:
            plain_log.store.check(engine)
        return raised.value

    transaction, engine = plain_log.begin(), plain_log.engine
    transaction.append(NoStream(), [make_event()])
    transaction.commit()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE events ALTER global_position RESTART WITH 1"))
    assert isinstance(problem(engine), SequenceBehindLogError)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE events ALTER global_position SET CACHE 5"))
    assert "does not issue positions in ascending order" in str(problem(engine))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE events DROP COLUMN trace_id"))
    assert "table events has no column trace_id: run your migrations" in str(problem(engine))
    with engine.connect() as connection:
        results = check_server(connection, plain_log.store.reader)
    assert {result.name for result in results if result.is_skipped} == {"sequence", "replication"}
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE aggregate_heads"))
    assert isinstance(problem(engine), TablesMissingError)


def test_one_connection_in_the_pool_is_enough(plain_log: Log, make_engine: Callable[..., Engine], engine: Engine):
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    plain_log.store.check(small := make_engine(**options))
    assert small.pool.checkedout() == 0

    async def main(driver: str) -> None:
        url = make_async_engine(engine, driver).url
        asynchronous = create_async_engine(url, **options) if driver == "psycopg" else make_async_engine(engine, driver)
        await AsyncEventStore(plain_log.tables).check(asynchronous)
        assert asynchronous.pool.checkedout() == 0
        await asynchronous.dispose()

    for driver in ("psycopg", "asyncpg"):
        asyncio.run(main(driver))


def test_nothing_is_written(plain_log: Log, make_engine: Callable[..., Engine]):
    """Not even in a connection that commits by itself."""
    plain_log.store.check(make_engine("default_transaction_read_only=on"))
    plain_log.store.check(make_engine(isolation_level="AUTOCOMMIT"))
    with plain_log.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0
    assert plain_log.begin().append(NoStream(), [make_event()]).global_positions == (1,)


def test_a_lost_connection_is_not_a_failed_check(plain_log: Log, make_engine: Callable[..., Engine]):
    engine = make_engine(poolclass=NullPool)
    with (
        replacing(engine, "pg_backend_pid()", "pg_terminate_backend(pg_backend_pid())::int"),
        pytest.raises(OperationalError),
    ):
        plain_log.store.check(engine)


@pytest.mark.parametrize("run", [Worker.run, Worker.drain])
def test_a_worker_refuses_such_a_server(plain_log: Log, make_engine: Callable[..., Engine], run: Callable[..., None]):
    tables = WorkerTables(plain_log.tables.metadata)
    tables.metadata.create_all(plain_log.engine)

    @consumer("all")
    def see(session: object, event: object) -> None:
        pass

    engine = make_engine(poolclass=NullPool)
    worker = Worker(sessionmaker(engine), plain_log.store, [see], tables=tables)
    _, old, new = REPLACED["no locks are shown"]
    with replacing(engine, old, new), pytest.raises(UnsupportedServerError, match="advisory locks"):
        run(worker)
    assert [result.name for result in worker.check()] == [*NAMES, "worker tables"]
    # A drain does not check again until the server is restarted.
    worker.drain()
    with replacing(engine, old, new):
        worker.drain()
