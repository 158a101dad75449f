"""Failure classification: the only module that decides if a failure counts as a failure of an event.

Only what the handler did may count, so two questions decide: what does the error mean, and where does it come from?

::

    kind       recognized by                                             consequence
    LOST_RACE  SQLSTATE 40001 (serialization failure), 40P01 (deadlock)  does not count; retried soon with fewer events
    OUTAGE     an SQLSTATE or a class of SQLSTATEs that means trouble    does not count; retried with back-off; shown if
               of the database, from a database of the batch's session;  it is always the same event
               an operational error of it without SQLSTATE: no server
               answers; a connection that SQLAlchemy has invalidated;
               a timeout of a pool; the lost connection of the batch;
               `StablePositionError`: the log is not as it must be
    HANDLER    anything else that a handler, or the commit of its        counts; retried with back-off; may park the
               writes, raises; also errors of other databases and        partition
               servers, which the handler uses on its own

`docs/howto/handle-failures.md` has the SQLSTATEs; a test compares them. To move one to another kind, edit the sets in
`pupsourcing_sa.postgres.errors`. To add a kind, add a member to `FailureKind` and a rule to `_kind_of`; `classify`
decides which kind wins.

- **Violations** of unique constraints, exclusion constraints and foreign keys count from the second one in a row at the
  same event. The first one may be a lost race: a concurrent transaction has inserted the same row.
- **Timeouts** of locks and statements do not count, because load and other transactions cause them. An event that
  always exceeds ``statement_timeout`` is shown in ``status``.
- **Internal errors** (XX000) count. Extensions raise them for wrong input, as PostGIS does for invalid geometries.
  Corrupted data and indexes (XX001, XX002) do not.
- **Program limits** (class 54), missing tables and privileges (class 42) count: the statement is the handler's.

A handler may wrap a database error in an error of its own. Therefore every cause, context and member of an exception
group is examined. A handler may also use the driver directly. Of the driver's own errors, only those with an SQLSTATE
are recognized. For the others, the caller checks if the connection of the batch is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from enum import Enum

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pupsourcing_sa.errors import StablePositionError
from pupsourcing_sa.postgres import errors

__all__ = [
    "FailureKind",
    "classify",
    "is_cancellation",
    "is_cheap_to_retry",
    "is_connection_error",
    "is_lost_race",
    "is_temporary",
    "is_timeout",
    "may_be_lost_race",
]


class FailureKind(Enum):
    """Kinds of failures; the module's documentation has the table."""

    LOST_RACE = "lost race"
    OUTAGE = "outage"
    HANDLER = "handler"


def classify(
    error: BaseException,
    *,
    is_connection_lost: bool = False,
    is_of_batch: Callable[[BaseException], bool] = lambda _: True,
) -> FailureKind:
    """Return the kind of a failure. When several kinds apply, a lost race wins over an outage.

    Args:
        error: the exception that ended the batch.
        is_connection_lost: the connection of the batch was found to be lost.
        is_of_batch: returns True if a database error, which may be a cause of ``error``, comes from a database of the
            batch's session.
    """
    kinds = {_kind_of(cause, is_of_batch) for cause in _causes(error)}
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


def may_be_lost_race(error: BaseException) -> bool:
    """Return True if a constraint was violated, perhaps because another transaction has inserted or deleted a row."""
    return any(map(errors.may_be_lost_race_state, _sqlstates(error)))


def is_connection_error(error: BaseException) -> bool:
    """Return True if the connection was lost or could not be made."""
    return any(map(errors.is_outage, _causes(error))) or any(map(errors.is_outage_state, _sqlstates(error)))


def is_timeout(error: BaseException) -> bool:
    """Return True if a statement exceeded ``statement_timeout`` or was canceled."""
    return any(errors.is_query_canceled_state(state) for state in _sqlstates(error))


def is_cheap_to_retry(error: BaseException) -> bool:
    """Return True if the server only refuses the statement, such as when its disk is full."""
    return any(map(errors.is_refused_statement_state, _sqlstates(error)))


def is_temporary(error: BaseException) -> bool:
    """Return True if a start that failed with this error may succeed later.

    These are all failures that do not count, and errors of the operating system, which asyncpg raises when it cannot
    connect. A refused role or database, and a standby, need someone who corrects the configuration.
    """
    if isinstance(error, StablePositionError) or any(map(errors.is_refusal_state, _sqlstates(error))):
        return False
    return classify(error) is not FailureKind.HANDLER or isinstance(error, OSError)


def is_cancellation(error: BaseException) -> bool:
    """Return True if the error is, or was caused by, the cancellation of a coroutine."""
    return any(isinstance(cause, asyncio.CancelledError) for cause in _causes(error))


def _kind_of(error: BaseException, is_of_batch: Callable[[BaseException], bool]) -> FailureKind:
    """Return the kind of a single exception, without its causes."""
    # Neither of them names a database: a timeout of a pool, and a log to which a handler cannot append now.
    if isinstance(error, (PoolTimeout, StablePositionError)):
        return FailureKind.OUTAGE
    if isinstance(error, DBAPIError):
        if not _has_sqlstate(error.orig):
            return FailureKind.HANDLER  # from a database other than PostgreSQL, which the handler also uses
        is_race, is_outage = errors.is_lost_race(error), errors.is_infrastructure(error)
    else:
        state = _sqlstate(error)
        is_race, is_outage = errors.is_lost_race_state(state), errors.is_infrastructure_state(state)
    if is_race:
        return FailureKind.LOST_RACE
    return FailureKind.OUTAGE if is_outage and is_of_batch(error) else FailureKind.HANDLER


def _sqlstates(error: BaseException) -> Iterator[str | None]:
    """Yield the SQLSTATEs of the error and its causes. That of an error of SQLAlchemy is the driver's."""
    for cause in _causes(error):
        yield _sqlstate(cause.orig if isinstance(cause, DBAPIError) and cause.orig is not None else cause)


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
