"""The connection of a listener, on its way from the thread that opens it."""

from __future__ import annotations

from typing import Any

from pupsourcing_sa.worker.dispatch.listener import _Handover


class Connection:
    def __init__(self) -> None:
        self.is_closed = False

    def start(self, notified: Any, lost: Any) -> None: ...

    def close(self) -> None:
        self.is_closed = True


class TestHandover:
    """Of a connection that a thread has opened, to a receiver that may be gone."""

    def test_it_is_taken(self):
        handover, connection = _Handover(), Connection()
        handover.put(connection)
        assert handover.take() is connection
        assert not connection.is_closed

    def test_it_comes_too_late(self):
        handover, connection = _Handover(), Connection()
        handover.abandon()
        handover.put(connection)
        assert connection.is_closed

    def test_it_is_left_behind(self):
        handover, connection = _Handover(), Connection()
        handover.put(connection)
        handover.abandon()
        assert connection.is_closed
