"""The protocol of executions, which run the worker's database work.

The services of the worker are coroutines. Their database work is plain functions over a ``Session``, written once. An
execution opens a session, runs such a function with it, and closes the session, which rolls back uncommitted changes.
There are two: threads for a ``sessionmaker``, and SQLAlchemy's greenlets for an ``async_sessionmaker``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa.postgres.errors import is_read_only
from pupsourcing_sa.worker.execution.session_databases import watch_databases

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_sessionmaker

__all__ = ["BindHandler", "Execution", "SessionFactory", "Work", "in_session"]

_T = TypeVar("_T")

#: Binds a handler to the session of the execution. The result takes the handler's other argument, and waits for the
#: handler if it is a coroutine function.
BindHandler: TypeAlias = Callable[[Callable[[Any, Any], Any]], Callable[[Any], None]]
SessionFactory: TypeAlias = "sessionmaker[Any] | async_sessionmaker[Any]"
Work: TypeAlias = Callable[[Session, BindHandler], _T]


class Execution(Protocol):
    """Runner of database work, each piece in a session of its own."""

    async def __call__(self, name: str, work: Work[_T]) -> _T:
        """Run ``work(session, bind)`` and return its result. A thread that runs it gets the name."""

    async def close(self) -> None:
        """Close the connections that belong to this event loop."""


def in_session(session: Session, work: Work[_T], bind: BindHandler) -> _T:
    """Do the work. If the connection turns out to be read-only, keep it out of the pool.

    The session begins transactions by itself, even if its factory has ``autobegin=False``: the worker needs several of
    them, and a handler works in one that the worker has begun.

    During a failover, the primary's name may lead to a standby. A connection made then stays connected to it, and the
    pool would hand it out again and again.
    """
    session.autobegin = True
    watch_databases(session)
    try:
        return work(session, bind)
    except Exception as error:
        if is_read_only(error):
            session.invalidate()
        raise
