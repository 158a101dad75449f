"""What befalls a batch through no fault of its events: lost connections, restarting servers, deadlocks.

It arrives in many shapes. A handler may wrap it in an error of its own, so its causes are looked at as well; it may
come past SQLAlchemy, as an error of the driver or of the operating system, so the connection is looked at as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from pupsourcing_sa.postgres import errors

__all__ = ["is_cancellation", "is_connection_lost", "is_lost_race", "is_outage"]

_DRIVERS: Final = frozenset({"psycopg", "psycopg2", "asyncpg"})


def is_lost_race(error: BaseException) -> bool:
    """Whether, or because, the transaction lost against another one, and is to be tried again as it is."""
    return any(errors.is_lost_race(each) or errors.is_lost_race_state(_bare_state(each)) for each in _causes(error))


def is_outage(error: BaseException) -> bool:
    """Whether, or because, a connection was lost or could not be made."""
    return any((errors.is_outage(each) and _is_ours(each)) or _is_bare_outage(each) for each in _causes(error))


def is_cancellation(error: BaseException) -> bool:
    """Whether, or because, a coroutine was cancelled."""
    return any(isinstance(each, asyncio.CancelledError) for each in _causes(error))


def is_connection_lost(connection: Connection) -> bool:
    """Whether the connection of a batch that failed is lost: asked of the server, as the driver may not know yet."""
    if connection.invalidated:
        return True
    if connection.closed:
        return False  # the handler ended the session's transaction; there is nothing left to ask
    try:
        connection.scalar(select(1))
    except DBAPIError as error:
        return error.connection_invalidated  # otherwise it is the transaction that has failed
    except OSError:  # as asyncpg raises them
        return True
    except Exception:
        return connection.invalidated
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that led to it: what it was raised from or while handling, and the members of a group."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += (each.__cause__, each.__context__)
            if isinstance(each, BaseExceptionGroup):
                pending += each.exceptions


def _is_ours(error: BaseException) -> bool:
    """Whether an error of SQLAlchemy comes from a driver of PostgreSQL: a handler may use other databases as well."""
    orig = getattr(error, "orig", None)
    return orig is None or type(orig).__module__.partition(".")[0] in _DRIVERS or "postgresql" in type(orig).__module__


def _bare_state(error: BaseException) -> str | None:
    """The SQLSTATE of a driver's own error, ``None`` if it has none; psycopg and asyncpg agree on the attribute."""
    state = None if isinstance(error, DBAPIError) else getattr(error, "sqlstate", None)
    return str(state) if state else None


def _is_bare_outage(error: BaseException) -> bool:
    state = _bare_state(error)
    if state is not None:
        return errors.is_outage_state(state)
    # psycopg's, which has the attribute, and no value in it where not the server but the connection has failed
    is_operational = any(each.__name__ == "OperationalError" for each in type(error).__mro__)
    return is_operational and not isinstance(error, DBAPIError) and hasattr(error, "sqlstate")
