"""A connection that LISTENs, for each driver: an execution opens it, then the event loop reads it.

The connection comes from the engine's pool, with everything that the application has set up for its connections. It is
detached from the pool at once: it never goes back, and the pool may open another one in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Engine

__all__ = ["Notifications", "open_notifications"]

#: asyncpg reports the loss of a connection without a reason.
_CLOSED: Final = "the server closed the connection"


class Notifications(Protocol):
    """An open connection that listens."""

    def start(self, notified: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        """Start reading in the running event loop.

        Args:
            notified: called after one or more notifications.
            lost: called once if the connection is lost, with a `ConnectionError` that has the driver's message.

        Raises:
            ConnectionError: the connection is lost already.
        """

    def close(self) -> None:
        """Close the connection without waiting for the server. No callback is called afterwards."""


def open_notifications(engine: Engine, channel: str) -> Notifications:
    """Open a connection that listens. No notification after that is lost.

    Args:
        engine: the engine that connects. The engine of an ``AsyncEngine`` needs its greenlet.
        channel: name of the channel, not quoted.

    Raises:
        Exception: any error of the attempt to connect.
    """
    kinds: dict[str, type[_Psycopg | _Asyncpg]] = {"psycopg": _Psycopg, "asyncpg": _Asyncpg}
    kind = kinds[engine.dialect.driver]
    connection = engine.connect()
    notifications = kind(connection.connection.driver_connection)
    try:
        # Detach first, so that a listening connection never returns to the pool.
        connection.detach()
        notifications.listen(connection, channel)
    except BaseException:
        # Connection.close() would roll back first. When that is cancelled, it leaves a detached connection open.
        notifications.close()
        raise
    return notifications


class _Psycopg:
    """Reader of libpq itself, which psycopg's sync and async connections have in common."""

    def __init__(self, driver_connection: Any) -> None:
        self._pgconn = driver_connection.pgconn
        # Keep the connection: psycopg warns if it is garbage-collected while open.
        self._owner = driver_connection
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self, connection: Connection, channel: str) -> None:
        # Notifications do not arrive inside a transaction. A detached Connection has no isolation_level to set.
        dbapi_connection = connection.connection.dbapi_connection
        assert dbapi_connection is not None
        connection.dialect.set_isolation_level(dbapi_connection, "AUTOCOMMIT")
        connection.exec_driver_sql("LISTEN " + connection.dialect.identifier_preparer.quote_identifier(channel))

    def start(self, notified: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        self._notified, self._lost = notified, lost
        try:
            self._socket = self._pgconn.socket
        except Exception as error:
            raise ConnectionError(str(error)) from error
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._read)
        self._loop = loop

    def _read(self) -> None:
        has_notification = False
        try:
            self._pgconn.consume_input()
            while self._pgconn.notifies() is not None:
                has_notification = True
        except Exception as error:
            # libpq may notice the end of the connection before it reads the reason. The error then has no SQLSTATE, and
            # only this code knows that the connection is lost.
            lost = ConnectionError(str(error))
            lost.__cause__ = error
            self.close()
            self._lost(lost)
        else:
            if has_notification:
                self._notified()

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None
        self._pgconn.finish()


class _Asyncpg:
    """Callbacks of asyncpg, which reads its connections all the time."""

    def __init__(self, driver_connection: Any) -> None:
        self._connection = driver_connection
        self._notified: Callable[[], None] | None = None
        self._lost: Callable[[Exception], None] | None = None

    def listen(self, _: Connection, channel: str) -> None:
        from sqlalchemy.util import await_only  # needs greenlet, as asyncpg under SQLAlchemy does

        await_only(self._connection.add_listener(channel, self._on_notification))

    def start(self, notified: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        if self._connection.is_closed():
            raise ConnectionError(_CLOSED)
        self._notified, self._lost = notified, lost
        self._connection.add_termination_listener(self._on_termination)

    def _on_notification(self, *_: object) -> None:
        if self._notified is not None:
            self._notified()

    def _on_termination(self, _: object) -> None:
        if self._lost is not None:
            self._lost(ConnectionError(_CLOSED))

    def close(self) -> None:
        self._notified = self._lost = None
        self._connection.terminate()
