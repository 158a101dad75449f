"""What errors of the database mean, by SQLSTATE and constraint name, never by the text of a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import Constraint

from pupsourcing_sa.errors import StablePositionError, TablesMissingError, TransactionRequiredError

__all__ = [
    "detail_of",
    "exceeds_a_limit",
    "is_lock_timeout",
    "is_lost_race",
    "is_lost_race_state",
    "is_outage",
    "is_outage_state",
    "is_privilege_missing",
    "is_query_canceled",
    "is_read_only",
    "is_serialization_failure",
    "raise_common",
    "translated",
    "violates",
]

_UNDEFINED: Final = frozenset({"42P01", "3F000"})  # undefined_table, and its schema
_READ_ONLY: Final = "25006"
_UNIQUE_VIOLATION: Final = "23505"
_PROGRAM_LIMIT_EXCEEDED: Final = "54000"
_INSUFFICIENT_PRIVILEGE: Final = "42501"
_LOCK_NOT_AVAILABLE: Final = "55P03"
_QUERY_CANCELED: Final = "57014"
_SERIALIZATION_FAILURE: Final = "40001"
_DEADLOCK_DETECTED: Final = "40P01"
_OUTAGES: Final = frozenset({"57P01", "57P02", "57P03", "53300"})  # shut down, crashed, starting up; no free slot


@contextmanager
def translated(*tables: Table) -> Iterator[None]:
    """Raise our errors for the mistakes that every statement can run into.

    Args:
        tables: what the statement needs.
    """
    try:
        yield
    except DBAPIError as error:
        raise_common(error, *tables)
        raise


def raise_common(error: DBAPIError, *tables: Table) -> None:
    """Raise our error for a mistake that every statement can run into; return if it is none.

    Args:
        error: what the database said.
        tables: what the statement needs.
    """
    state = _sqlstate(error)
    if state in _UNDEFINED and not _is_of_a_function(error):
        names = " or ".join(table.key for table in tables)
        elsewhere = ", or not in this search_path" if any(table.schema is None for table in tables) else ""
        raise TablesMissingError(
            f"there is no table {names} in the database{elsewhere}: run your migrations, as in `alembic upgrade head`; "
            "if yours have other names or another schema, say so"
        ) from error
    if state == _READ_ONLY:
        raise TransactionRequiredError(
            "this transaction is read-only: the server is a standby, or default_transaction_read_only is on; write on "
            "the primary server, in a transaction that may"
        ) from error


def is_lost_race(error: BaseException | None) -> bool:
    """Whether the transaction lost against another one, and is to be tried again as it is."""
    return isinstance(error, DBAPIError) and is_lost_race_state(_sqlstate(error))


def is_lost_race_state(state: str | None) -> bool:
    """Whether a SQLSTATE says so."""
    return state in (_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED)


def is_serialization_failure(error: DBAPIError) -> bool:
    """Whether somebody else committed what this transaction's snapshot does not have."""
    return _sqlstate(error) == _SERIALIZATION_FAILURE


def is_lock_timeout(error: BaseException) -> bool:
    """Whether somebody, such as a migration, has had something locked for longer than we wait."""
    return isinstance(error, DBAPIError) and _sqlstate(error) == _LOCK_NOT_AVAILABLE


def is_privilege_missing(error: BaseException) -> bool:
    """Whether the role may not do what was asked."""
    return isinstance(error, DBAPIError) and _sqlstate(error) == _INSUFFICIENT_PRIVILEGE


def is_read_only(error: BaseException) -> bool:
    """Whether this connection cannot write: its server is a standby, or was one when it was connected to."""
    return isinstance(error, (StablePositionError, TransactionRequiredError)) or (
        isinstance(error, DBAPIError) and _sqlstate(error) == _READ_ONLY
    )


def is_query_canceled(error: BaseException) -> bool:
    """Whether a statement took longer than ``statement_timeout`` allows, or somebody has canceled it."""
    return isinstance(error, DBAPIError) and _sqlstate(error) == _QUERY_CANCELED


def exceeds_a_limit(error: DBAPIError) -> bool:
    """Whether something is larger than PostgreSQL can hold, such as a value than an entry of an index."""
    return _sqlstate(error) == _PROGRAM_LIMIT_EXCEEDED


def is_outage(error: BaseException | None) -> bool:
    """Whether the connection was lost or could not be made, which says nothing about what was being done."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeout)
    state = _sqlstate(error)
    is_unreachable = state is None and isinstance(error, OperationalError | InterfaceError)
    return error.connection_invalidated or is_unreachable or is_outage_state(state)


def is_outage_state(state: str | None) -> bool:
    """Whether a SQLSTATE says that the connection was lost or could not be made."""
    return state is not None and (state in _OUTAGES or state.startswith("08"))


def violates(error: DBAPIError, constraint: Constraint, connection: Connection) -> bool:
    """Whether a statement violated this unique constraint, under the name that SQLAlchemy gives it in the database."""
    if _sqlstate(error) != _UNIQUE_VIOLATION:
        return False
    preparer = connection.dialect.identifier_preparer
    name: str = getattr(_diagnostics(error), "constraint_name", None) or ""
    return preparer.format_constraint(constraint) == preparer.quote(name)


def detail_of(error: DBAPIError) -> str:
    """The server's DETAIL, in the server's language; it has the values that violated a constraint."""
    diagnostics = _diagnostics(error)
    return getattr(diagnostics, "message_detail", None) or getattr(diagnostics, "detail", None) or ""


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)  # the latter is psycopg2's


def _is_of_a_function(error: DBAPIError) -> bool:
    """Whether it happened in a statement of a function, such as a trigger of the application's own."""
    diagnostics = _diagnostics(error)
    # What a function's statement lacks has a place in that statement, or is found when it runs. The language's name is
    # the same in every language of the server; a context by itself may also be that of parameters.
    context = getattr(diagnostics, "context", None) or ""
    return bool(getattr(diagnostics, "internal_query", None)) or "PL/pgSQL" in context


def _diagnostics(error: DBAPIError) -> Any:
    """What has the constraint's name and the detail: psycopg's ``diag``, asyncpg's own exception."""
    return getattr(error.orig, "diag", None) or getattr(error.orig, "__cause__", None)
