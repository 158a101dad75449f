"""Failure classification: the only module that decides if a failure counts as a failure of an event.

::

    kind       recognized by                                             consequence
    LOST_RACE  SQLSTATE 40001 (serialization failure), 40P01 (deadlock)  does not count; retried soon with fewer events
    OUTAGE     SQLSTATE class 08 (connection), 53300 (too many           does not count; retried with back-off
               connections), 57P01 to 57P03 (shutdown, crash, start);
               an operational error without SQLSTATE: no server answers;
               a connection that SQLAlchemy has invalidated;
               a timeout of the pool; the lost connection of the batch
    HANDLER    anything else that a handler, or the commit of its        counts; retried with back-off; may park the
               writes, raises                                            partition

To move an SQLSTATE to another kind, edit the sets in `pupsourcing_sa.postgres.errors`. To add a kind, add a member to
`FailureKind` and a rule to `_kind_of`; `classify` decides which kind wins.

A handler may wrap a database error in an error of its own. Therefore every cause, context and member of an exception
group is examined. A handler may also use the driver directly. Of the driver's own errors, only those with an SQLSTATE
are recognized. For the others, the caller checks if the connection of the batch is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import Enum

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pupsourcing_sa.postgres import errors

__all__ = ["FailureKind", "classify", "is_cancellation", "is_lost_race", "is_outage", "is_temporary"]


class FailureKind(Enum):
    """Kinds of failures; the module's documentation has the table."""

    LOST_RACE = "lost race"
    OUTAGE = "outage"
    HANDLER = "handler"


def classify(error: BaseException, *, is_connection_lost: bool = False) -> FailureKind:
    """Return the kind of a failure. When several kinds apply, a lost race wins over an outage.

    Args:
        error: the exception that ended the batch.
        is_connection_lost: the connection of the batch was found to be lost.
    """
    kinds = {_kind_of(cause) for cause in _causes(error)}
    for kind in (FailureKind.LOST_RACE, FailureKind.OUTAGE):
        if kind in kinds:
            return kind
    # A handler's own time limit cancels its statement, and SQLAlchemy then invalidates the connection. This is not an
    # outage.
    if is_connection_lost and not is_cancellation(error):
        return FailureKind.OUTAGE
    return FailureKind.HANDLER


def is_lost_race(error: BaseException) -> bool:
    """Return True if the transaction lost against another one and can be retried unchanged."""
    return classify(error) is FailureKind.LOST_RACE


def is_outage(error: BaseException) -> bool:
    """Return True if the connection was lost or could not be made."""
    return classify(error) is FailureKind.OUTAGE


def is_temporary(error: BaseException) -> bool:
    """Return True if a start that failed with this error may succeed later.

    These are outages, lost races, lock timeouts, as during a migration, and errors of the operating system, which
    asyncpg raises when it cannot connect.
    """
    if classify(error) is not FailureKind.HANDLER:
        return True
    return errors.is_lock_timeout(error) or isinstance(error, OSError)


def is_cancellation(error: BaseException) -> bool:
    """Return True if the error is, or was caused by, the cancellation of a coroutine."""
    return any(isinstance(cause, asyncio.CancelledError) for cause in _causes(error))


def _kind_of(error: BaseException) -> FailureKind:
    """Return the kind of a single exception, without its causes."""
    if isinstance(error, DBAPIError):
        if not _has_sqlstate(error.orig):
            return FailureKind.HANDLER  # from a database other than PostgreSQL, which the handler also uses
        is_race, is_outage = errors.is_lost_race(error), errors.is_outage(error)
    else:
        state = _sqlstate(error)
        is_race = errors.is_lost_race_state(state)
        is_outage = errors.is_outage_state(state) or isinstance(error, PoolTimeout)
    if is_race:
        return FailureKind.LOST_RACE
    return FailureKind.OUTAGE if is_outage else FailureKind.HANDLER


def _sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error that is not SQLAlchemy's. psycopg and asyncpg agree on the attribute."""
    # An exception of the application may have an attribute of this name and any type.
    state = getattr(error, "sqlstate", None)
    return str(state) if state else None


def _has_sqlstate(error: BaseException | None) -> bool:
    """Return True if the driver's error belongs to PostgreSQL: ``pgcode`` is psycopg2's name for the SQLSTATE."""
    return error is None or hasattr(error, "sqlstate") or hasattr(error, "pgcode")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its causes and contexts, and the members of exception groups, each once."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        cause = pending.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            pending += (cause.__cause__, cause.__context__)
            if isinstance(cause, BaseExceptionGroup):
                pending += cause.exceptions
