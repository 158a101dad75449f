"""Errors about the driver, the server and the tables."""

from __future__ import annotations

from pupsourcing_sa.errors._texts import UNSUPPORTED, sequence_statement
from pupsourcing_sa.errors.append import AppendError
from pupsourcing_sa.errors.base import PupsourcingError

__all__ = [
    "ReplicatedLogError",
    "SequenceBehindLogError",
    "StablePositionError",
    "TableNameError",
    "TablesMissingError",
    "UnsupportedDriverError",
    "UnsupportedServerError",
]


class UnsupportedDriverError(PupsourcingError, TypeError):
    """The engine has a driver that this library does not support.

    Attributes:
        driver: the engine's dialect and driver, such as ``postgresql+psycopg2``.
    """

    def __init__(self, driver: str) -> None:
        self.driver = driver
        super().__init__(
            f"the driver {driver} is not supported; use psycopg or asyncpg, with a URL that begins with "
            "postgresql+psycopg:// or postgresql+asyncpg://"
        )


class UnsupportedServerError(PupsourcingError):
    """The server does not do what the stable position relies on, so events would be skipped.

    Attributes:
        check: the step of the self-check that has failed.
        found: what the server did.
    """

    def __init__(self, check: str, found: str) -> None:
        self.check = check
        self.found = found
        super().__init__(f"this server is not like PostgreSQL ({check}): {found}. {UNSUPPORTED}")


class StablePositionError(PupsourcingError):
    """The stable position cannot be determined in this session."""


class SequenceBehindLogError(AppendError, StablePositionError):
    """The log has events above the last position that its sequence has issued.

    Attributes:
        table: the log's quoted name in SQL.
        statement: the SQL that moves the sequence to the last position in the log.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        self.statement = sequence_statement(table)
        super().__init__(
            f"the sequence of {table}.global_position is behind the log, as after logical replication or a restore of "
            f"data only. New events would get positions that consumers have already passed. Run: {self.statement};"
        )


class ReplicatedLogError(StablePositionError):
    """The log is filled by logical replication, which commits events in another order than that of their positions.

    Attributes:
        table: the log's quoted name in SQL.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            f"{table} is filled by logical replication, in the order of commits and not of positions. Run workers and "
            "follow the log on the publisher. If this server has taken over, drop the subscription and then move the "
            f"sequence to the last position: {sequence_statement(table)};"
        )


class TablesMissingError(PupsourcingError):
    """The tables do not exist in the database. Run the migrations."""


class TableNameError(PupsourcingError, ValueError):
    """The metadata has another table of this name."""
