"""The network between a worker and its server, which fails in its own ways."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any

from sqlalchemy import URL, Engine

from pupsourcing_sa.worker import Worker
from tests.fix_worker import Fleet

__all__ = ["Proxy", "deaf_server", "refusing_server", "worker_with"]

#: A client's first requests, before it sends its name: encryption by TLS, and by GSSAPI.
_ENCRYPTION = {80877103, 80877104}


class Proxy(AbstractContextManager["Proxy"]):
    """A proxy for an engine's server that can forget connections: the client gets no error and no answer.

    A firewall does this to connections that it has lost track of, and so does a host that has lost its power.

    Args:
        engine: an engine on the server.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with engine.connect() as connection:
            info = connection.connection.driver_connection.info  # type: ignore[union-attr]
            self._host, self._server_port = info.host, info.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        self._servers: list[socket.socket] = []
        self._is_dark = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def url(self) -> URL:
        """URL of the engine's database through the proxy."""
        url = self._engine.url.difference_update_query(["host", "port"])
        return url.set(host="127.0.0.1", port=self._listener.getsockname()[1])

    def forget(self) -> int:
        """Forget the current connections and return their number. New connections are passed on.

        The server closes its end, as it does when a client does not answer its keepalives.
        """
        with self._lock:
            servers, self._servers = self._servers, []
        for each in servers:
            _close(each)
        return len(servers)

    def go_dark(self) -> None:
        """Forget all connections. Accept new ones, but pass none on and send nothing."""
        with self._lock:
            self._is_dark = True
        self.forget()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _close(self._listener)
        self.forget()
        for each in self._clients:  # for clients that wait for an answer
            _close(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                try:
                    self._take(client)
                except OSError:  # the server is down
                    _close(client)

    def _take(self, client: socket.socket) -> None:
        """Pass a connection on.

        Raises:
            OSError: the server cannot be reached.
        """
        server = self._connect()
        with self._lock:
            if self._is_dark:
                _close(server)
                return
            self._servers.append(server)
        threading.Thread(target=self._pass_on, args=(client, server), name="proxy", daemon=True).start()
        threading.Thread(target=self._answer, args=(server, client), name="proxy", daemon=True).start()

    def _connect(self) -> socket.socket:
        if not self._host.startswith("/"):
            return socket.create_connection((self._host, self._server_port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._host}/.s.PGSQL.{self._server_port}")
        return server

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on the client's data. A network accepts data on a forgotten connection; so does this."""
        with suppress(OSError):
            while data := client.recv(65536):
                with suppress(OSError):
                    server.sendall(data)
        _close(server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        with self._lock:
            is_forgotten = server not in self._servers
        if not is_forgotten:
            _close(client)


@contextmanager
def deaf_server() -> Iterator[tuple[URL, threading.Event]]:
    """Yield a server that never sends anything, and an event that is set when a client has connected."""
    is_reached = threading.Event()
    with _server(lambda connection: is_reached.set()) as url:
        yield url, is_reached


@contextmanager
def refusing_server(sqlstate: str) -> Iterator[URL]:
    """Yield a server that answers every connection with this error of two lines."""

    def refuse(connection: socket.socket) -> None:
        while _wants_encryption(connection):
            connection.sendall(b"N")
        fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": "no entry\nask somebody else"}
        body = b"".join(f"{name}{value}\0".encode() for name, value in fields.items()) + b"\0"
        connection.sendall(b"E" + struct.pack("!i", len(body) + 4) + body)
        _close(connection)

    with _server(refuse) as url:
        yield url


def worker_with(fleet: Fleet, engine: Engine, *consumers: Any, **config: Any) -> Worker:
    """Return a worker of the fleet's kind that connects to another URL."""
    here, fleet.engine = fleet.engine, engine
    try:
        return fleet.worker(*consumers, **config)
    finally:
        fleet.engine = here


def _wants_encryption(connection: socket.socket) -> bool:
    """Read the client's first message: its length, including itself, and a number for its kind."""
    length, code = struct.unpack("!ii", connection.recv(8, socket.MSG_WAITALL))
    connection.recv(length - 8, socket.MSG_WAITALL)
    return code in _ENCRYPTION


@contextmanager
def _server(greet: Callable[[socket.socket], None]) -> Iterator[URL]:
    """Yield a server that handles each connection in turn. Connections stay open until the end of the block."""
    connections: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                with suppress(OSError, struct.error):  # a client that was stopped has closed the connection
                    greet(connections[-1])

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=accept, name="server")
    thread.start()
    try:
        yield URL.create("postgresql+psycopg", "nobody", "wrong", "127.0.0.1", listener.getsockname()[1], "nowhere")
    finally:
        _close(listener)
        thread.join()
        for each in connections:
            _close(each)


def _close(end: socket.socket) -> None:
    """Shut down and close a socket, which also wakes a thread that waits for it."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
