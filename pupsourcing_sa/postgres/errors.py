"""Classification of database errors, by SQLSTATE and constraint name and never by the text of a message.

Only this file decides what an SQLSTATE means. `worker/classification.py` decides if an error counts as a failure of an
event.
"""

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
    "diagnostics_of",
    "exceeds_a_limit",
    "is_in_failed_transaction",
    "is_infrastructure",
    "is_infrastructure_state",
    "is_lock_timeout",
    "is_lost_race",
    "is_lost_race_state",
    "is_outage",
    "is_outage_state",
    "is_privilege_missing",
    "is_query_canceled",
    "is_query_canceled_state",
    "is_read_only",
    "is_refusal_state",
    "is_refused_statement_state",
    "is_serialization_failure",
    "is_unsupported",
    "may_be_lost_race_state",
    "raise_translated",
    "sqlstate_of",
    "translated",
    "violates",
]

#: undefined_table, invalid_schema_name
_UNDEFINED: Final = frozenset({"42P01", "3F000"})
_READ_ONLY: Final = "25006"
_UNIQUE_VIOLATION: Final = "23505"
#: foreign_key_violation, unique_violation, exclusion_violation: rows of other transactions decide
_VIOLATIONS_BY_OTHERS: Final = frozenset({"23503", _UNIQUE_VIOLATION, "23P01"})
_PROGRAM_LIMIT_EXCEEDED: Final = "54000"
_INSUFFICIENT_PRIVILEGE: Final = "42501"
_LOCK_NOT_AVAILABLE: Final = "55P03"
_IN_FAILED_TRANSACTION: Final = "25P02"
_QUERY_CANCELED: Final = "57014"
_SERIALIZATION_FAILURE: Final = "40001"
_DEADLOCK_DETECTED: Final = "40P01"
#: admin_shutdown, crash_shutdown, cannot_connect_now (the server is starting up), too_many_connections
_OUTAGES: Final = frozenset({"57P01", "57P02", "57P03", "53300"})
#: Classes of trouble that no statement is to blame for: connection, authorization, insufficient resources (such as disk
#: and memory), operator intervention (with timeouts of statements), system error (with I/O errors), snapshot failure,
#: configuration file.
_INFRASTRUCTURE_CLASSES: Final = frozenset({"08", "28", "53", "57", "58", "72", "F0"})
#: The same of other classes.
_INFRASTRUCTURE: Final = frozenset({
    "25006",  # read_only_sql_transaction: the server has become a standby, or its disk is almost full
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "26000",  # invalid_sql_statement_name: behind a pooler, the prepared statement is on another connection
    "3D000",  # invalid_catalog_name: the database does not exist
    "40000",  # transaction_rollback
    "40003",  # statement_completion_unknown
    "42P05",  # duplicate_prepared_statement, as 26000
    "55P03",  # lock_not_available: a lock timeout
    "HV001",  # fdw_out_of_memory
    "HV00N",  # fdw_unable_to_establish_connection
    "XX001",  # data_corrupted
    "XX002",  # index_corrupted
})  # fmt: skip
#: Function of the server that raises "cached plan must not change result type". The SQLSTATE, feature_not_supported,
#: has other meanings, too.
_STALE_PLAN: Final = "RevalidateCachedQuery"


@contextmanager
def translated(*tables: Table) -> Iterator[None]:
    """Translate errors that every statement can raise: missing tables, and a read-only transaction.

    Args:
        tables: the tables that the statement needs.

    Raises:
        TablesMissingError, TransactionRequiredError: instead of the database's error.
    """
    try:
        yield
    except DBAPIError as error:
        raise_translated(error, *tables)
        raise


def raise_translated(error: DBAPIError, *tables: Table) -> None:
    """Raise the error that `translated` describes. Return if the database's error has no translation.

    Args:
        error: the error of the database.
        tables: the tables that the statement needs.
    """
    state = _sqlstate(error)
    if state in _UNDEFINED and not _is_of_a_function(error):
        names = " or ".join(table.key for table in tables)
        elsewhere = ", or not in this search_path" if any(table.schema is None for table in tables) else ""
        raise TablesMissingError(
            f"there is no table {names} in the database{elsewhere}: run your migrations, such as `alembic upgrade "
            "head`. If your tables have other names or another schema, pass them to EventTables and WorkerTables"
        ) from error
    if state == _READ_ONLY:
        raise TransactionRequiredError(
            "this transaction is read-only: the server is a standby, or default_transaction_read_only is on. Connect "
            "to the primary, and use a transaction that may write"
        ) from error


def is_lost_race(error: BaseException | None) -> bool:
    """Return True if another transaction won a race against this one, which the caller should retry unchanged."""
    return isinstance(error, DBAPIError) and is_lost_race_state(_sqlstate(error))


def is_lost_race_state(state: str | None) -> bool:
    """Return True if an SQLSTATE means a lost race; see `is_lost_race`."""
    return state in (_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED)


def may_be_lost_race_state(state: str | None) -> bool:
    """Return True if an SQLSTATE may mean a lost race: a constraint was violated, perhaps by a concurrent transaction.

    Two transactions that insert the same missing row do not see each other's row, and the second one violates the
    unique constraint. In a new snapshot it sees the row. A new row that a foreign key refers to is missing likewise.
    """
    return state in _VIOLATIONS_BY_OTHERS


def is_serialization_failure(error: DBAPIError) -> bool:
    """Return True if another transaction committed a change that this transaction's snapshot lacks."""
    return _sqlstate(error) == _SERIALIZATION_FAILURE


def is_lock_timeout(error: BaseException) -> bool:
    """Return True if another session, such as a migration, held a lock for longer than ``lock_timeout``."""
    return isinstance(error, DBAPIError) and _sqlstate(error) == _LOCK_NOT_AVAILABLE


def is_in_failed_transaction(error: BaseException | None) -> bool:
    """Return True if an earlier statement has failed, so that this transaction executes nothing until its end."""
    return isinstance(error, DBAPIError) and _sqlstate(error) == _IN_FAILED_TRANSACTION


def is_privilege_missing(error: BaseException) -> bool:
    """Return True if the role lacks a privilege."""
    return isinstance(error, DBAPIError) and _sqlstate(error) == _INSUFFICIENT_PRIVILEGE


def is_read_only(error: BaseException) -> bool:
    """Return True if this connection cannot write. Its server is a standby, or was one when the connection was made."""
    return isinstance(error, (StablePositionError, TransactionRequiredError)) or (
        isinstance(error, DBAPIError) and _sqlstate(error) == _READ_ONLY
    )


def is_query_canceled(error: BaseException) -> bool:
    """Return True if a statement exceeded ``statement_timeout`` or was canceled."""
    return isinstance(error, DBAPIError) and is_query_canceled_state(_sqlstate(error))


def is_query_canceled_state(state: str | None) -> bool:
    """Return True if an SQLSTATE means that; see `is_query_canceled`."""
    return state == _QUERY_CANCELED


def exceeds_a_limit(error: DBAPIError) -> bool:
    """Return True if a value exceeds a PostgreSQL limit, such as the size of an index entry."""
    return _sqlstate(error) == _PROGRAM_LIMIT_EXCEEDED


def is_outage(error: BaseException | None) -> bool:
    """Return True if the connection was lost or could not be made. The failed operation is not to blame."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeout)
    state = _sqlstate(error)
    is_unreachable = state is None and isinstance(error, OperationalError | InterfaceError)
    return error.connection_invalidated or is_unreachable or is_outage_state(state)


def is_outage_state(state: str | None) -> bool:
    """Return True if an SQLSTATE means an outage; see `is_outage`."""
    return state is not None and (state in _OUTAGES or state.startswith("08"))


def is_infrastructure(error: DBAPIError) -> bool:
    """Return True if the database could not do its work: an outage, a timeout, or a lack of resources.

    The statement is not to blame, or at least the error does not prove it. A prepared statement whose table has been
    migrated belongs here, too.
    """
    return is_outage(error) or is_infrastructure_state(_sqlstate(error)) or _is_stale_plan(error)


def is_infrastructure_state(state: str | None) -> bool:
    """Return True if an SQLSTATE means trouble of the database; see `is_infrastructure`."""
    return state is not None and (state in _INFRASTRUCTURE or state[:2] in _INFRASTRUCTURE_CLASSES)


def is_refused_statement_state(state: str | None) -> bool:
    """Return True if an SQLSTATE means trouble that neither ended the session nor kept the server busy: a full disk."""
    is_session_or_timeout = state is not None and (state[:2] in ("08", "57") or state[:3] == "25P")
    return is_infrastructure_state(state) and not is_session_or_timeout


def is_refusal_state(state: str | None) -> bool:
    """Return True if the server refuses the role or the database, or has become read-only, until someone changes it."""
    return state is not None and (state[:2] == "28" or state in ("3D000", _READ_ONLY))


def is_unsupported(error: DBAPIError) -> bool:
    """Return True if the server does not have what a statement uses, such as a function."""
    state = _sqlstate(error)
    return state is not None and state[:2] in ("0A", "42") and state != _INSUFFICIENT_PRIVILEGE


def violates(error: DBAPIError, constraint: Constraint, connection: Connection) -> bool:
    """Return True if a statement violated this unique constraint.

    Its name in the database may come from a naming convention.
    """
    if _sqlstate(error) != _UNIQUE_VIOLATION:
        return False
    preparer = connection.dialect.identifier_preparer
    name: str = getattr(diagnostics_of(error.orig), "constraint_name", None) or ""
    return preparer.format_constraint(constraint) == preparer.quote(name)


def detail_of(error: DBAPIError) -> str:
    """Return the server's DETAIL, which has the values that violated a constraint. It is in the server's language."""
    diagnostics = diagnostics_of(error.orig)
    return getattr(diagnostics, "message_detail", None) or getattr(diagnostics, "detail", None) or ""


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error; psycopg2 calls it pgcode."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def diagnostics_of(error: BaseException | None) -> Any:
    """Return the object with the fields of a driver's error: psycopg's ``diag``, or asyncpg's exception.

    SQLAlchemy wraps the exceptions of asyncpg.
    """
    found = getattr(error, "diag", None)
    if found is None:
        cause = getattr(error, "__cause__", None)
        found = cause if hasattr(cause, "sqlstate") else error
    return found


def _sqlstate(error: DBAPIError) -> str | None:
    return sqlstate_of(error.orig)


def _is_stale_plan(error: DBAPIError) -> bool:
    diagnostics = diagnostics_of(error.orig)
    names = ("source_function", "server_source_function")  # psycopg's and asyncpg's
    return any(getattr(diagnostics, name, None) == _STALE_PLAN for name in names)


def _is_of_a_function(error: DBAPIError) -> bool:
    """Return True if the failed statement is inside a function, such as a trigger of the application."""
    diagnostics = diagnostics_of(error.orig)
    # An error in a function's statement has a position in that statement, or a context that names PL/pgSQL. The name of
    # the language is never translated. A context alone proves nothing: errors in parameters have one, too.
    context = getattr(diagnostics, "context", None) or ""
    return bool(getattr(diagnostics, "internal_query", None)) or "PL/pgSQL" in context
