"""From what a caller hands in to the connection of its transaction, and from there to the driver's rows."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from sqlalchemy import ClauseElement, Connection, CursorResult, Executable, func, select, true
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pupsourcing_sa.errors import TransactionRequiredError

__all__ = [
    "UNBUFFERED",
    "SyncSession",
    "connection_of",
    "driver_rows",
    "fetched",
    "limit_transaction",
    "require_transaction",
]

#: What every method of `EventStore` takes.
SyncSession: TypeAlias = Session | scoped_session[Any] | Connection

#: Whatever the engine or the connection says: with a server-side cursor SQLAlchemy has taken rows before we look.
UNBUFFERED: Final = {"stream_results": False, "yield_per": None}


def connection_of(session: SyncSession, clause: ClauseElement) -> Connection:
    """The connection of the session's current transaction, which is begun if there is none.

    Args:
        session: what the caller handed in.
        clause: a table, or an INSERT or UPDATE of it, by which a session that has several binds chooses one.

    Nothing is flushed: what is pending in the session stays pending, whatever becomes of the statement.
    """
    if isinstance(session, (Session, scoped_session)):
        return session.connection(bind_arguments={"clause": clause})
    if isinstance(session, Connection):
        return session
    hint = ""
    if isinstance(session, (sessionmaker, type)):
        hint = "; call it to get a session"
    elif type(session).__name__.startswith(("Async", "async_")):
        hint = "; AsyncEventStore is the store for it"
    elif type(session).__name__ == "Engine":
        hint = "; use engine.begin() as connection"
    raise TypeError(f"session must be a Session or a Connection, not {type(session).__name__}{hint}")


def require_transaction(connection: Connection) -> None:
    """Refuse a connection that commits each statement on its own."""
    # Of the driver's connection, because isolation levels are set in many places; each of the drivers has it.
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise TransactionRequiredError(
            "this connection is in AUTOCOMMIT mode, in which the events could not be rolled back together with "
            "anything else; use one with another isolation level"
        )


def limit_transaction(connection: Connection, seconds: float, *timeouts: str) -> None:
    """Set timeouts of the server for this transaction only, so that it is the same behind PgBouncer.

    Args:
        connection: in the transaction.
        seconds: what they are set to; less than a millisecond is one, as 0 would be no limit.
        timeouts: the settings, such as ``lock_timeout``.
    """
    milliseconds = str(max(1, int(seconds * 1000)))
    connection.execute(select(*(func.set_config(timeout, milliseconds, true()) for timeout in timeouts)))


def driver_rows(connection: Connection, statement: Executable, parameters: dict[str, Any]) -> list[Any]:
    """The rows as tuples of the driver; SQLAlchemy's ``Row`` objects would cost as much again as fetching."""
    return fetched(connection.execute(statement, parameters, execution_options=UNBUFFERED))


def fetched(result: CursorResult[Any]) -> list[Any]:
    """All rows of a result as the driver has them, and the cursor closed."""
    rows = list(result.cursor.fetchall())
    result.close()
    return rows if not rows or type(rows[0]) is tuple else list(map(tuple, rows))  # asyncpg has records
