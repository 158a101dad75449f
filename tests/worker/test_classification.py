"""Lost races and outages: a table of exceptions, in every shape in which a handler can raise them."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.errors import AdminShutdown, DeadlockDetected, InvalidPassword, LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.util import await_only

from pupsourcing_sa.errors import SequenceBehindLogError, StablePositionError
from pupsourcing_sa.worker.classification import (
    FailureKind,
    classify,
    is_cancellation,
    is_cheap_to_retry,
    is_temporary,
)
from pupsourcing_sa.worker.processing.diagnosis import is_connection_lost
from tests.fix_store import make_async_engine
from tests.fix_worker import KINDS

_T = TypeVar("_T")

LOST_RACES = {"40001": "serialization failure", "40P01": "deadlock"}
OUTAGES = {
    "08006": "connection failure",
    "53300": "too many connections",
    "55P03": "lock timeout",
    "57014": "statement timeout",
    "58030": "I/O error",
    "57P01": "shutdown",
    "57P02": "crash",
    "57P03": "starting up",
}
MISTAKES = {
    "0A000": "not supported",
    "22012": "division by zero",
    "23505": "unique violation",
    "40002": "constraint violation at the commit",
    "42P01": "no such table",
    "P0001": "raised by a function",
}


class ApplicationError(Exception):
    pass


def as_it_is(error: BaseException) -> None:
    raise error


def as_a_cause(error: BaseException) -> None:
    raise ApplicationError from error


def while_handling(error: BaseException) -> None:
    try:
        raise error
    except type(error):
        raise ApplicationError from None  # the context stays, only tracebacks do not show it


def in_a_group(error: BaseException) -> None:
    raise BaseExceptionGroup("several", [ApplicationError(), error])


def as_an_exit(error: BaseException) -> None:
    raise SystemExit(1) from error


SHAPES = (as_it_is, as_a_cause, while_handling, in_a_group, as_an_exit)


def shaped(shape: Callable[[BaseException], None], error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        shape(error)
    return caught.value


def classes(error: BaseException) -> set[str]:
    """Return the names of the classes that apply."""
    kinds = {FailureKind.LOST_RACE: {"race"}, FailureKind.OUTAGE: {"outage"}, FailureKind.HANDLER: set[str]()}
    return kinds[classify(error)] | ({"cancellation"} if is_cancellation(error) else set())


def with_connection(server: Engine, kind: str, work: Callable[[Connection], _T]) -> _T:
    """Run this with a connection of one kind of driver."""
    driver, is_async = KINDS[kind]
    if not is_async:
        engine = create_engine(server.url)
        try:
            with engine.connect() as connection:
                return work(connection)
        finally:
            engine.dispose()

    async def main() -> _T:
        async_engine = make_async_engine(server, driver)
        try:
            async with async_engine.connect() as connection:
                return await connection.run_sync(work)
        finally:
            await async_engine.dispose()

    return asyncio.run(main())


def bare(error: DBAPIError) -> BaseException:
    """Return the driver's own exception, as a handler gets it that goes past SQLAlchemy."""
    assert error.orig is not None
    return error.orig.__cause__ or error.orig  # SQLAlchemy translates those of asyncpg before it wraps them


@pytest.mark.parametrize("kind", KINDS)
def test_by_sqlstate_in_every_shape(server: Engine, kind: str):
    def fail(connection: Connection, sqlstate: str) -> DBAPIError:
        with pytest.raises(DBAPIError) as caught:
            connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{sqlstate}'; END $$"))
        connection.rollback()
        return caught.value

    def work(connection: Connection) -> dict[str, DBAPIError]:
        return {sqlstate: fail(connection, sqlstate) for sqlstate in [*LOST_RACES, *OUTAGES, *MISTAKES]}

    for sqlstate, error in with_connection(server, kind, work).items():
        expected = {"race"} if sqlstate in LOST_RACES else {"outage"} if sqlstate in OUTAGES else set()
        for shape in SHAPES:
            assert classes(shaped(shape, error)) == expected, (sqlstate, shape)
            assert classes(shaped(shape, bare(error))) == expected, (sqlstate, shape, "past SQLAlchemy")


@pytest.mark.parametrize("kind", KINDS)
def test_the_connection_is_asked(server: Engine, kind: str):
    """It knows even when nothing of the exception is left, or when the driver's exception contains nothing."""
    backend = "SELECT pg_terminate_backend(pg_backend_pid())"

    def fail(connection: Connection) -> None:
        assert not is_connection_lost(connection)
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1 / 0"))
        assert not is_connection_lost(connection), "only the transaction has failed"
        connection.rollback()
        assert not is_connection_lost(connection)
        connection.close()
        assert not is_connection_lost(connection), "the handler has closed it"

    def lose(connection: Connection) -> None:
        with pytest.raises(DBAPIError) as caught:
            connection.execute(text(backend))
        assert classes(caught.value) == {"outage"}
        assert is_connection_lost(connection)

    def lose_bare(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await_if_needed(driver.execute(backend))
        assert not isinstance(caught.value, DBAPIError)
        assert is_connection_lost(connection)

    for work in (fail, lose, lose_bare):
        with_connection(server, kind, work)


def await_if_needed(result: Any) -> Any:
    return await_only(result) if hasattr(result, "__await__") else result


def test_without_a_sqlstate():
    assert classes(PoolTimeout()) == classes(shaped(as_a_cause, SequenceBehindLogError("events"))) == {"outage"}
    assert classes(psycopg.OperationalError("the connection is closed")) == set(), "the batch asks its connection"
    assert classes(OperationalError("SELECT", {}, psycopg.OperationalError("connection refused"))) == {"outage"}
    assert classes(psycopg.ProgrammingError("no such cursor")) == set()
    for elsewhere in (ConnectionRefusedError(), TimeoutError(), FileNotFoundError(), SystemExit(1)):
        assert classes(elsewhere) == set()
    assert classes(ExceptionGroup("several", [ApplicationError()])) == set()


@pytest.mark.parametrize("state", [40001, 8006, ["57P01"], "", None], ids=repr)
def test_an_attribute_of_the_application_that_is_called_sqlstate(state: object):
    error = ApplicationError()
    error.sqlstate = state  # type: ignore[attr-defined]
    assert classes(error) == ({"race"} if state == 40001 else set())


def test_another_database_of_the_handler_is_none_of_ours():
    error = sqlite3.OperationalError("database is locked")
    assert classes(error) == set()
    assert classes(OperationalError("SELECT", {}, error)) == set()


def test_a_cancellation():
    cancelled = asyncio.CancelledError()
    for shape in SHAPES:
        assert classes(shaped(shape, cancelled)) == {"cancellation"}


def test_a_circular_cause_ends():
    circular = ApplicationError()
    circular.__cause__ = circular
    assert classes(circular) == set()


def test_the_documentation_has_every_sqlstate_that_does_not_count():
    page = (Path(__file__).parents[2] / "docs/howto/handle-failures.md").read_text()
    cells = re.findall(r"^\| ((?:(?:class [0-9A-Z]{2}|[0-9A-Z]{5})(?:, )?)+) \|", page, re.MULTILINE)
    documented = {code.removeprefix("class ") for cell in cells for code in cell.split(", ")}
    states = (getattr(error, "sqlstate", None) for error in vars(psycopg.errors).values())
    known = {state for state in states if isinstance(state, str)}
    assert documented <= known | {state[:2] for state in known}
    for state in known:
        error = ApplicationError()
        error.sqlstate = state  # type: ignore[attr-defined]
        is_documented = state in documented or state[:2] in documented
        assert (classify(error) is not FailureKind.HANDLER) is is_documented, state


def test_an_error_of_another_database_counts():
    down = OperationalError("", {}, AdminShutdown())
    for error in (down, bare(down), shaped(as_a_cause, down)):
        assert classify(error, is_of_batch=lambda cause: False) is FailureKind.HANDLER
    mixed = BaseExceptionGroup("both", [OperationalError("", {}, psycopg.errors.DiskFull()), down])
    assert classify(mixed, is_of_batch=lambda cause: cause is down) is FailureKind.OUTAGE


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_statement_whose_table_was_migrated(server: Engine, kind: str):
    """PostgreSQL raises feature_not_supported, which a handler's statement can also deserve."""

    def stale(connection: Connection) -> None:
        connection.execute(text("CREATE TEMPORARY TABLE migrated (a int)"))
        connection.execute(text("PREPARE reading AS SELECT * FROM migrated"))
        connection.execute(text("EXECUTE reading"))
        connection.execute(text("ALTER TABLE migrated ADD b int"))
        with pytest.raises(DBAPIError) as caught:
            connection.execute(text("EXECUTE reading"))
        assert classes(caught.value) == {"outage"}

    with_connection(server, kind, stale)


def test_an_attempt_is_cheap_if_the_server_only_refuses_the_statement():
    for error in (psycopg.errors.DiskFull(), LockNotAvailable(), psycopg.errors.ReadOnlySqlTransaction()):
        assert is_cheap_to_retry(shaped(as_a_cause, OperationalError("", {}, error)))
    expensive = (AdminShutdown, psycopg.errors.QueryCanceled, psycopg.errors.IdleInTransactionSessionTimeout)
    for error in (ApplicationError(), *(OperationalError("", {}, kind()) for kind in expensive)):
        assert not is_cheap_to_retry(error)


def test_a_lost_race_wins_over_an_outage():
    lost_race, outage = OperationalError("", {}, DeadlockDetected()), OperationalError("", {}, AdminShutdown())
    assert classes(BaseExceptionGroup("both", [outage, lost_race])) == {"race"}


def test_a_lost_connection_is_an_outage_unless_the_handler_cancelled_its_statement():
    assert classify(ApplicationError(), is_connection_lost=True) is FailureKind.OUTAGE
    assert classify(DeadlockDetected(), is_connection_lost=True) is FailureKind.LOST_RACE
    cancelled = shaped(as_a_cause, asyncio.CancelledError())
    assert classify(cancelled, is_connection_lost=True) is FailureKind.HANDLER


def test_a_start_is_retried_unless_someone_has_to_correct_the_configuration():
    locked, full = OperationalError("", {}, LockNotAvailable()), OperationalError("", {}, psycopg.errors.DiskFull())
    for error in (locked, full, ConnectionRefusedError(), AdminShutdown(), DeadlockDetected()):
        assert is_temporary(error)
    refusals = InvalidPassword(), psycopg.errors.InvalidCatalogName(), psycopg.errors.ReadOnlySqlTransaction()
    for error in (
        ApplicationError(),
        StablePositionError(),
        *(OperationalError("", {}, refusal) for refusal in refusals),
    ):
        assert not is_temporary(error)
