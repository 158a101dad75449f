"""The isolation level of a batch: set for its transaction, before the first statement.

::

    isolation of the consumer    level of the engine    level of the batch
    REPEATABLE READ (default)    SERIALIZABLE           SERIALIZABLE: an engine's stricter level is kept
                                 any other              REPEATABLE READ
    any other                    any                    the consumer's
    any                          AUTOCOMMIT             none: the batch is refused

Under READ COMMITTED, two transactions can read the same row, change it in Python, and write it one after the other. The
second one overwrites the first, and PostgreSQL reports nothing. Under REPEATABLE READ the second one fails with a
serialization failure instead, and the worker retries its batch.

The driver sends the level with BEGIN, so it costs no round trip. SQLAlchemy resets it when the connection returns to
the pool. The log may be in another database than the checkpoint; the level applies to both. A handler's transaction in
a third database has the level of its own engine.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.orm import Session

from pupsourcing_sa.consumer import ISOLATION_LEVELS
from pupsourcing_sa.errors import TransactionRequiredError
from pupsourcing_sa.postgres.connections import connection_of

__all__ = ["begin", "require_isolation"]


def begin(session: Session, clause: ClauseElement, isolation: str) -> Connection:
    """Begin a transaction with an isolation level, and return its connection.

    Args:
        session: a session without a transaction on the bind of ``clause``.
        clause: a table, or an INSERT or UPDATE of it, by which a session with several binds chooses one.
        isolation: a level of `ISOLATION_LEVELS`.
    """
    bind = session.get_bind(clause=clause)
    configured = _configured(session, bind)
    is_kept = configured == "AUTOCOMMIT" or (configured == "SERIALIZABLE" and isolation == "REPEATABLE READ")
    if not is_kept and configured != isolation:
        session.connection(bind_arguments={"bind": bind}, execution_options={"isolation_level": isolation})
    return connection_of(session, clause)


def require_isolation(isolation: str, level: str) -> None:
    """Refuse a transaction whose level is lower than the required one.

    Args:
        isolation: the level that the consumer requires.
        level: the level that the server reports, in lower case.

    Raises:
        TransactionRequiredError: the transaction has a lower level.
    """
    level = level.upper()
    if level not in ISOLATION_LEVELS or ISOLATION_LEVELS.index(level) < ISOLATION_LEVELS.index(isolation):
        raise TransactionRequiredError(
            f"the transaction of a batch is {level}, but its consumer requires {isolation}. The session factory or an "
            "event of the session began the transaction, or changed its level. Let the worker begin it, or set "
            "isolation of the consumer"
        )


def _configured(session: Session, bind: Any) -> str | None:
    """Return the isolation level that the session's next transaction would have."""
    # Since SQLAlchemy 2.1 a session has execution options, too.
    of_session: Any = getattr(session, "execution_options", None) or {}
    options = {**bind.get_execution_options(), **of_session}
    level: str | None = options.get("isolation_level")
    if level is None:
        if not hasattr(bind.dialect, "default_isolation_level"):
            with bind.connect():  # the first connection asks the server for its default
                pass
        level = bind.dialect.default_isolation_level
    return level and level.replace("_", " ").upper()
