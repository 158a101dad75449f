"""The connection of a caller's session, its transaction, and rows as the driver returns them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import ClauseElement, Connection, CursorResult, Dialect, Executable, func, select, true
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pupsourcing_sa.errors import TransactionRequiredError, UnsupportedDriverError

if TYPE_CHECKING:
    # sqlalchemy.ext.asyncio needs greenlet, an optional dependency.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    AsyncSessionArgument: TypeAlias = AsyncSession | async_scoped_session[Any] | AsyncConnection

__all__ = [
    "UNBUFFERED",
    "SyncSession",
    "async_session_of",
    "connection_of",
    "driver_rows",
    "fetched",
    "limit_transaction",
    "require_supported_driver",
    "require_transaction",
]

#: Both names of psycopg's dialects, sync and async, have this driver.
_DRIVERS: Final = frozenset(("psycopg", "asyncpg"))

#: The first argument of every method of `EventStore`.
SyncSession: TypeAlias = Session | scoped_session[Any] | Connection

#: Overrides options of the engine and the connection: with a server-side cursor, SQLAlchemy would already have fetched
#: rows from the cursor that `fetched` reads.
UNBUFFERED: Final = {"stream_results": False, "yield_per": None}


def connection_of(session: SyncSession, clause: ClauseElement) -> Connection:
    """Return the connection of the session's current transaction. Begin a transaction if there is none.

    Args:
        session: the first argument of the caller's method.
        clause: a table, or an INSERT or UPDATE of it. A session with several binds chooses one by it.

    Pending objects of the session are not flushed, and stay pending even if the statement fails.

    Raises:
        UnsupportedDriverError: the connection's driver is neither psycopg nor asyncpg.
    """
    if isinstance(session, (Session, scoped_session)):
        session = session.connection(bind_arguments={"clause": clause})
    if isinstance(session, Connection):
        # To remember the dialects that were checked would take longer than this check.
        require_supported_driver(session.dialect)
        return session
    hint = ""
    if isinstance(session, (sessionmaker, type)):
        hint = "; call it to get a session"
    elif type(session).__name__.startswith(("Async", "async_")):
        hint = "; AsyncEventStore is the store for it"
    elif type(session).__name__ == "Engine":
        hint = "; use engine.begin() as connection"
    raise TypeError(f"session must be a Session or a Connection, not {type(session).__name__}{hint}")


def async_session_of(session: AsyncSessionArgument, alternative: str) -> AsyncSession | AsyncConnection:
    """Return the object whose ``run_sync`` runs a method with the session or the connection.

    Args:
        session: the first argument of the caller's method.
        alternative: end of the message to a caller with a ``Session`` or a ``Connection``.
    """
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    if isinstance(session, async_scoped_session):
        session = session()
    if not isinstance(session, (AsyncSession, AsyncConnection)):
        raise TypeError(
            f"session must be an AsyncSession or an AsyncConnection, not {type(session).__name__}; {alternative}"
        )
    return session


def require_supported_driver(dialect: Dialect) -> None:
    """Refuse drivers whose errors, bytes or transactions differ from those that this library is tested with."""
    if dialect.driver not in _DRIVERS:
        raise UnsupportedDriverError(f"{dialect.name}+{dialect.driver}")


def require_transaction(connection: Connection) -> None:
    """Refuse a connection that commits each statement on its own."""
    # An isolation level can be set in many places, so ask the driver's connection. Every supported driver has this
    # attribute.
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise TransactionRequiredError(
            "this connection is in AUTOCOMMIT mode, in which events are not rolled back together with other changes. "
            "Use a connection with another isolation level"
        )


def limit_transaction(connection: Connection, seconds: float, *timeouts: str) -> None:
    """Set timeouts of the server for this transaction only. This also works behind PgBouncer.

    Args:
        connection: the connection of the transaction.
        seconds: value of the timeouts. At least one millisecond is set, because 0 means no limit.
        timeouts: names of the settings, such as ``lock_timeout``.
    """
    milliseconds = str(max(1, int(seconds * 1000)))
    connection.execute(select(*(func.set_config(timeout, milliseconds, true()) for timeout in timeouts)))


def driver_rows(connection: Connection, statement: Executable, parameters: dict[str, Any]) -> list[Any]:
    """Execute a statement and return the driver's rows. SQLAlchemy's ``Row`` objects would double the cost."""
    return fetched(connection.execute(statement, parameters, execution_options=UNBUFFERED))


def fetched(result: CursorResult[Any]) -> list[Any]:
    """Return all rows of a result as tuples, and close the cursor."""
    rows = list(result.cursor.fetchall())
    result.close()
    # asyncpg returns records.
    return rows if not rows or type(rows[0]) is tuple else list(map(tuple, rows))
