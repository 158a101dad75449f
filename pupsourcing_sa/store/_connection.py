"""From what a caller hands in to a connection, and from database errors to ours."""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pupsourcing_sa.errors import TablesMissingError

__all__ = [
    "SyncSession",
    "connection_of",
    "detail_of",
    "is_lost_race",
    "is_outage",
    "raise_if_table_missing",
    "sqlstate_of",
    "violated_constraint",
]

#: What every method of `EventStore` takes.
SyncSession: TypeAlias = Session | scoped_session[Any] | Connection

_UNDEFINED_TABLE = "42P01"
_UNIQUE_VIOLATION = "23505"
_LOST_RACES = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
_OUTAGES = frozenset({"57P01", "57P02", "57P03", "53300"})  # shut down, crashed, starting up; too many connections


def connection_of(session: SyncSession, table: Table) -> Connection:
    """The connection of the session's current transaction, which is begun if there is none.

    Nothing is flushed: what is pending in the session stays pending, whatever becomes of the statement.
    """
    if isinstance(session, Connection):
        return session
    if isinstance(session, (Session, scoped_session)):
        return session.connection(bind_arguments={"clause": table})
    hint = ""
    if isinstance(session, (sessionmaker, type)):
        hint = "; call it to get a session"
    elif type(session).__name__.startswith(("Async", "async_")):
        hint = "; AsyncEventStore is the store for it"
    elif type(session).__name__ == "Engine":
        hint = "; use engine.begin() as connection"
    raise TypeError(f"session must be a Session or a Connection, not {type(session).__name__}{hint}")


def sqlstate_of(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _diagnostics(error: DBAPIError) -> Any:
    """What has ``constraint_name`` and the detail: psycopg's ``diag``, asyncpg's own exception."""
    return getattr(error.orig, "diag", None) or getattr(error.orig, "__cause__", None)


def violated_constraint(error: DBAPIError) -> str | None:
    """Name of the unique constraint that the statement violated, if that is what went wrong."""
    if sqlstate_of(error) != _UNIQUE_VIOLATION:
        return None
    name: str | None = getattr(_diagnostics(error), "constraint_name", None)
    return name


def detail_of(error: DBAPIError) -> str:
    """The server's DETAIL, in the server's language; it holds the values that violated a constraint."""
    diagnostics = _diagnostics(error)
    return getattr(diagnostics, "message_detail", None) or getattr(diagnostics, "detail", None) or ""


def is_lost_race(error: BaseException | None) -> bool:
    """Whether the transaction lost against another one, and is to be tried again as it is."""
    return isinstance(error, DBAPIError) and sqlstate_of(error) in _LOST_RACES


def is_outage(error: BaseException | None) -> bool:
    """Whether the connection was lost or could not be made; which says nothing about what was being done."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeout)
    state = sqlstate_of(error)
    is_unreachable = state is None and isinstance(error, OperationalError | InterfaceError)
    return error.connection_invalidated or is_unreachable or state in _OUTAGES or str(state).startswith("08")


def raise_if_table_missing(error: DBAPIError, *tables: Table) -> None:
    """Raise `TablesMissingError` if that is what the database complains about."""
    if sqlstate_of(error) == _UNDEFINED_TABLE:
        names = " or ".join(table.key for table in tables)
        raise TablesMissingError(
            f"there is no table {names} in the database, or not in this search_path: run your migrations, as in "
            "`alembic upgrade head`"
        ) from error
