"""Where a worker's database work happens: in threads with a ``sessionmaker``, else in SQLAlchemy's greenlets.

The loops of the worker are coroutines; what they do to the database is plain functions over a ``Session``, written
once. An execution opens a session, runs such a function with it, and closes it, which rolls back what is not committed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa.postgres.errors import is_read_only

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_sessionmaker

__all__ = ["BindHandler", "Execution", "SessionFactory", "Work", "in_session"]

_T = TypeVar("_T")

#: Binds a handler to the session that it is made for; what it gives takes the other argument, and waits for the handler
#: if that is a coroutine function.
BindHandler: TypeAlias = Callable[[Callable[[Any, Any], Any]], Callable[[Any], None]]
SessionFactory: TypeAlias = "sessionmaker[Any] | async_sessionmaker[Any]"
Work: TypeAlias = Callable[[Session, BindHandler], _T]


class Execution(Protocol):
    """Runs database work in a session of its own."""

    async def __call__(self, name: str, work: Work[_T]) -> _T:
        """Run ``work(session, bind)``; the name is the thread's or task's, for those who look at a process."""

    async def close(self) -> None:
        """Close connections that cannot be used outside this event loop."""


def in_session(session: Session, work: Work[_T], bind: BindHandler) -> _T:
    """Do the work, after which a connection that cannot write does not go back to the pool.

    While a failover lasts, the primary's name may lead to a standby; a connection made then would stay what it is, and
    be used again and again.
    """
    try:
        return work(session, bind)
    except Exception as error:
        if is_read_only(error):
            session.invalidate()
        raise
