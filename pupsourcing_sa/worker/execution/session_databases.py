"""The databases of the worker's sessions, and the errors that come from them.

A handler may use other databases, with engines of its own, and their errors have the same types and SQLSTATEs. An
outage of such a database is the handler's business. SQLAlchemy reports each error to the listeners of the engine's
dialect, also those of an attempt to connect. The dialects of the worker's sessions have one that remembers the error.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakSet

from sqlalchemy import Connection, ExceptionContext
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

__all__ = ["is_from_session_database", "watch_databases"]

#: Errors that are still referenced, for example by the exception that a handler raises from one.
_errors: Final[WeakSet[BaseException]] = WeakSet()


def watch_databases(session: Session) -> None:
    """Remember the errors of every database to which the session connects from now on."""
    sqlalchemy_event.listen(session, "after_begin", _watch)


def is_from_session_database(error: DBAPIError) -> bool:
    """Return True if the error comes from a database of the worker's sessions."""
    return error in _errors


def _watch(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    # Each engine has a dialect of its own.
    if not sqlalchemy_event.contains(connection.dialect, "handle_error", _remember):
        sqlalchemy_event.listen(connection.dialect, "handle_error", _remember)


def _remember(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None:
        _errors.add(context.sqlalchemy_exception)
