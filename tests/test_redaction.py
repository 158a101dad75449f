"""Reports of exceptions: without values, and with everything else that an operator needs."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import Column, Engine, Enum, Integer, MetaData, Table, Text, Uuid, text
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient_to_detached, mapped_column

from pupsourcing_sa.postgres.redaction import redacted
from tests.fix_store import make_async_engine

EMAIL = "ann@" + "example.org"  # the frames of the reports have the lines of this file


class Base(DeclarativeBase): ...


class User(Base):
    __tablename__ = "users"
    email: Mapped[str] = mapped_column(primary_key=True)


OTHER = Table(
    "other",
    MetaData(),
    Column("colour", Enum("red", native_enum=False, validate_strings=True)),
    Column("id", Uuid),
    Column("n", Integer),
    Column("t", Text),
)
FUNCTION = """
CREATE FUNCTION refuse(value text) RETURNS void LANGUAGE plpgsql AS
$$ BEGIN RAISE query_canceled USING MESSAGE = 'refused ' || value, DETAIL = value, HINT = value; END $$
"""


def _insert(session: Session, email: str = EMAIL) -> None:
    session.add(User(email=email))
    session.flush()
    session.expunge_all()


def _insert_twice(session: Session) -> None:
    _insert(session)
    _insert(session)


def _continue_after_a_failed_flush(session: Session) -> None:
    with suppress(IntegrityError):
        _insert_twice(session)
    session.execute(text("SELECT 1"))


def _attach_twice(session: Session) -> None:
    first, second = User(email=EMAIL), User(email=EMAIL)
    for user in (first, second):
        make_transient_to_detached(user)
        session.add(user)


def _sql(statement: str, value: str = EMAIL) -> Callable[[Session], Any]:
    return lambda session: session.execute(text(statement), {"value": value})


def _column(name: str, value: str = EMAIL) -> Callable[[Session], Any]:
    return lambda session: session.execute(OTHER.insert(), {name: value})


#: Failing statements, and a part of the report for each.
ACCIDENTS: dict[str, tuple[Callable[[Session], Any], str]] = {
    "unique": (_insert_twice, "SQLSTATE 23505, constraint users_pkey, schema "),
    "pending-rollback": (_continue_after_a_failed_flush, "PendingRollbackError: message hidden"),
    "identity-map": (_attach_twice, "InvalidRequestError: message hidden"),
    "input-syntax": (_sql("SELECT CAST(CAST(:value AS text) AS integer)"), "SQLSTATE 22P02"),
    "query-language": (_sql("SELECT to_tsquery(:value)", f"{EMAIL} & ("), "SQLSTATE 42601"),
    "name-of-an-object": (_sql("SELECT CAST(CAST(:value AS text) AS regclass)"), "SQLSTATE 3F000"),
    "setting": (_sql("SELECT now() AT TIME ZONE CAST(:value AS text)"), "SQLSTATE 22023"),
    "function": (_sql("SELECT refuse(:value)"), "SQLSTATE 57014"),
    "argument-of-the-driver": (_column("n"), "[SQL: INSERT INTO other"),
    "nested-cause-of-the-driver": (_column("id"), "[SQL: INSERT INTO other"),
    "refused-by-the-driver": (_column("t", f"{EMAIL}\0"), "[SQL: INSERT INTO other"),
    "refused-by-sqlalchemy": (_column("colour"), "(builtins.LookupError)"),
    # Messages that quote only names are kept.
    "column": (_sql("SELECT x FROM users WHERE email = :value"), 'column "x" does not exist, SQLSTATE 42703'),
    "table": (_sql("SELECT FROM missing WHERE :value = 'x'"), 'relation "missing" does not exist, SQLSTATE 42P01'),
}


@pytest.mark.parametrize(
    "driver", ["psycopg", "asyncpg", pytest.param("psycopg-asyncio", marks=pytest.mark.exhaustive)]
)
def test_a_database_error_has_no_values(engine: Engine, driver: str) -> None:
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        OTHER.create(connection)
        connection.exec_driver_sql(FUNCTION)
    for name, (fail, expected) in ACCIDENTS.items():
        error = _failure(engine, driver, fail)
        report = _report(error)
        assert EMAIL in _text(error), name
        assert EMAIL not in report, (name, report)
        assert expected in report, (name, report)
        assert f"in {fail.__name__}" in report  # the frames
        assert type(redacted(error)).__bases__ == (type(error),)
        assert redacted(error, hide_parameters=False) is error


def _failure(engine: Engine, driver: str, fail: Callable[[Session], Any]) -> Exception:
    async def main() -> None:
        async_engine = make_async_engine(engine, driver.partition("-")[0])
        try:
            async with AsyncSession(async_engine) as session:
                await session.run_sync(fail)
        finally:
            await async_engine.dispose()

    with pytest.raises(Exception) as failure:  # noqa: PT011 - any
        if driver == "psycopg":
            with Session(engine) as session:
                fail(session)
        else:
            asyncio.run(main())
    return failure.value


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _report(error: BaseException) -> str:
    return _text(redacted(error))


def test_errors_of_drivers_that_are_used_directly(engine: Engine) -> None:
    url = engine.url.set(drivername="postgresql")

    async def main() -> None:
        connection = await asyncpg.connect(url.difference_update_query(["options"]).render_as_string(False))
        try:
            await connection.execute("SELECT CAST($1::text AS integer)", EMAIL)
        finally:
            await connection.close()

    with pytest.raises(psycopg.DataError) as of_psycopg, psycopg.connect(url.render_as_string(False)) as connection:
        connection.execute("SELECT CAST(%s::text AS integer)", [EMAIL])
    with pytest.raises(asyncpg.DataError) as of_asyncpg:
        asyncio.run(main())
    for error in (of_psycopg.value, of_asyncpg.value):
        assert EMAIL in _text(error)
        assert _report(error).rstrip().endswith(": SQLSTATE 22P02")


def _raise(error: BaseException) -> None:
    raise error


def _integrity_error() -> IntegrityError:
    return IntegrityError("INSERT", {"email": EMAIL}, psycopg.errors.UniqueViolation(f"Key (email)=({EMAIL})"))


def test_exceptions_of_the_application_that_refer_to_a_hidden_one() -> None:
    """Causes, contexts, members of groups, notes and attributes; a text that quotes the hidden one."""

    class Refused(ValueError):
        def __init__(self, code: int, message: str) -> None:
            super().__init__(message)
            self.code = code

    inner = _integrity_error()
    with pytest.raises(ExceptionGroup) as raised:
        try:
            _raise(inner)
        except IntegrityError as error:
            refused = Refused(7, f"cannot save: {error}")
            refused.add_note(f"it was {error!r}")
            refused.inner = error  # type: ignore[attr-defined]
            raise ExceptionGroup("several", [refused, KeyError("mine")]) from error
    report: Any = redacted(raised.value)
    assert EMAIL not in _text(report)
    assert "cannot save: (psycopg.errors.UniqueViolation) SQLSTATE 23505\n" in _text(report)
    assert isinstance(report, ExceptionGroup)
    assert str(report) == "several (2 sub-exceptions)"
    found, other = report.exceptions
    assert isinstance(found, Refused)
    assert (found.code, found.inner) == (7, report.__cause__)  # type: ignore[attr-defined]
    assert str(other) == "'mine'"
    assert report.__cause__.params is None
    only_context = RuntimeError("raised while an error was handled")
    only_context.__context__ = inner
    assert EMAIL in _text(only_context)
    assert EMAIL not in _report(only_context)
    # The text of an exception with several arguments is that of a tuple, in which line ends are escaped.
    several = RuntimeError("cannot save", str(inner), repr(inner))
    several.__cause__ = inner
    assert EMAIL in str(several)
    assert EMAIL not in _report(several)
    # The originals are unchanged.
    assert raised.value.__cause__ is inner
    assert EMAIL in str(inner)


def test_an_exception_without_values_is_its_own_report() -> None:
    def is_kept(error: BaseException) -> bool:
        with pytest.raises(type(error)) as raised:
            _raise(error)
        return redacted(raised.value) is raised.value

    assert is_kept(ValueError(EMAIL))  # the application's own words
    assert is_kept(NoResultFound("No row was found when one was required"))
    assert is_kept(ConnectionRefusedError(111, "Connection refused"))
    assert not is_kept(_integrity_error())


def test_a_lost_connection_keeps_its_message() -> None:
    refused = OperationalError("SELECT", {}, psycopg.OperationalError("connection refused"))
    assert _report(refused).startswith("sqlalchemy.exc.OperationalError: (psycopg.OperationalError) connection refused")


def test_classes_that_refuse_to_be_copied() -> None:
    class Final(Exception):
        def __init_subclass__(cls) -> None:
            raise TypeError("final")

        def __str__(self) -> str:
            raise ZeroDivisionError

    error = Final()
    error.__context__ = _integrity_error()
    error.__cause__ = error
    assert "Final: <exception str() failed>" in _report(error)
    assert isinstance(redacted(error).__context__, DBAPIError)
