"""One connection that LISTENs: opened in a session's execution, then read by the event loop, for each driver.

It is a connection of the engine's pool, with all that the application has set up for those, and detached from it at
once: it never goes back, and the pool may open another one in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

__all__ = ["Notifications", "UnsupportedDriverError", "open_notifications"]


class UnsupportedDriverError(Exception):
    """There is no way to listen with this driver."""

    def __init__(self, driver: str) -> None:
        super().__init__(driver)
        self.driver = driver


class Notifications(Protocol):
    """An open connection that listens."""

    def start(self, notified: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        """Begin to call these, in the running event loop: at each notification or several, and when it is lost.

        Raises:
            Exception: it is lost already.
        """

    def close(self) -> None:
        """Close it, without waiting for the server; nothing is called any more."""


class ConnectionLost(Exception):
    """The server has closed the connection."""


def open_notifications(engine: Engine, channel: str) -> Notifications:
    """Open a connection that listens; from now on no notification is lost.

    Args:
        engine: where to connect to; that of an ``AsyncEngine`` inside its greenlet.
        channel: name of the channel, as it is.

    Raises:
        UnsupportedDriverError: it is neither psycopg nor asyncpg.
        Exception: whatever connecting raises.
    """
    kinds: dict[str, type[_Psycopg | _Asyncpg]] = {"psycopg": _Psycopg, "asyncpg": _Asyncpg}
    kind = kinds.get(engine.dialect.driver)
    if kind is None:
        raise UnsupportedDriverError(engine.dialect.driver)
    connection = engine.connect()
    try:
        driver_connection = connection.connection.driver_connection
        connection.detach()  # before anything else, so that no listening connection ever gets into the pool
        return kind(connection, driver_connection, channel)
    except BaseException:
        connection.close()
        raise


class _Psycopg:
    """libpq itself, the same for psycopg's two kinds of connections, which do no more than wait for it."""

    def __init__(self, connection: Connection, driver_connection: Any, channel: str) -> None:
        # Nothing arrives inside a transaction. A detached Connection has no isolation_level of its own to set.
        dbapi_connection = connection.connection.dbapi_connection
        assert dbapi_connection is not None
        connection.dialect.set_isolation_level(dbapi_connection, "AUTOCOMMIT")
        connection.exec_driver_sql("LISTEN " + connection.dialect.identifier_preparer.quote_identifier(channel))
        self._pgconn = driver_connection.pgconn
        self._owner = driver_connection  # which complains if it is forgotten before it is closed
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, notified: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        self._notified, self._lost = notified, lost
        loop, self._socket = asyncio.get_running_loop(), self._pgconn.socket
        loop.add_reader(self._socket, self._read)
        self._loop = loop

    def _read(self) -> None:
        has_notification = False
        try:
            self._pgconn.consume_input()
            while self._pgconn.notifies() is not None:
                has_notification = True
        except Exception as error:
            self.close()
            self._lost(error)
        else:
            if has_notification:
                self._notified()

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None
        self._pgconn.finish()


class _Asyncpg:
    """asyncpg reads its connections all the time, and calls back."""

    def __init__(self, _: Connection, driver_connection: Any, channel: str) -> None:
        from sqlalchemy.util import await_only  # needs greenlet, which whoever has asyncpg under SQLAlchemy has

        self._connection = driver_connection
        self._notified: Callable[[], None] | None = None
        self._lost: Callable[[Exception], None] | None = None
        await_only(self._connection.add_listener(channel, self._hear))

    def start(self, notified: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        if self._connection.is_closed():
            raise ConnectionLost
        self._notified, self._lost = notified, lost
        self._connection.add_termination_listener(self._end)

    def _hear(self, *_: object) -> None:
        if self._notified is not None:
            self._notified()

    def _end(self, _: object) -> None:
        if self._lost is not None:
            self._lost(ConnectionLost())

    def close(self) -> None:
        self._notified = self._lost = None
        self._connection.terminate()
