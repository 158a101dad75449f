"""The stable position: read, checked, and explained to operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, select

from pupsourcing_sa.errors import StablePositionError
from pupsourcing_sa.postgres.expressions import origin
from pupsourcing_sa.postgres.lock_holders import LockHolder
from pupsourcing_sa.store._position_statements import PositionStatements
from pupsourcing_sa.tables import EventTables

__all__ = ["BlockingAppend", "Look", "Positions"]


@dataclass(frozen=True, slots=True)
class BlockingAppend(LockHolder):
    """A transaction that has appended and is not finished: the stable position is not above its mark.

    Attributes:
        mark: the last position issued before its first append; the others are those of `LockHolder`.
    """

    mark: int


class Look(NamedTuple):
    """What a look at the log has found.

    Attributes:
        stable: the stable position.
        head: the last position in the log.
        origin: which server that was, and which database. Another one may have fewer events, and other appends in
            flight, so that there the stable position is another one, too.
    """

    stable: int
    head: int
    origin: str


class Positions:
    """Executes what is asked about the stable position of one log.

    Args:
        tables: the log.
    """

    def __init__(self, tables: EventTables) -> None:
        self._events = tables.events
        self._statements = PositionStatements(tables)

    def stable(self, connection: Connection, *, is_bounded: bool) -> int:
        """The stable position; see `look`."""
        return self.look(connection, is_bounded=is_bounded).stable

    def look(self, connection: Connection, *, is_bounded: bool) -> Look:
        """The stable position, and what comes with it.

        Args:
            connection: a connection.
            is_bounded: whether the caller answers for its snapshot; otherwise it has to be one for each statement.
        """
        row = connection.execute(self._statements.stable).one()
        if row.is_in_recovery:
            raise StablePositionError("a standby does not see the locks of appends in flight; ask the primary server")
        if not row.is_readable:
            raise StablePositionError(
                f"this role may not read the sequence of {self._events.key}.global_position, or there is none; GRANT "
                f"USAGE on the one that pg_get_serial_sequence('{self._events.key}', 'global_position') names"
            )
        if not row.is_in_order:
            raise StablePositionError(
                f"the sequence of {self._events.key}.global_position does not issue positions in order; ALTER SEQUENCE "
                "it to CACHE 1, INCREMENT BY 1 and NO CYCLE, while nobody appends"
            )
        if not is_bounded and row.isolation not in ("read committed", "read uncommitted"):
            raise StablePositionError(
                f"under {row.isolation.upper()} this transaction's snapshot may be older than the events that have "
                "become stable since; read under READ COMMITTED, or give up_to=, a stable_position() from before it"
            )
        return Look(row.stable, row.head, row.origin)

    def origin(self, connection: Connection) -> str:
        """As `Look.origin`, without a look."""
        found: str = connection.execute(select(origin())).scalar_one()
        return found

    def blocking(self, connection: Connection) -> list[BlockingAppend]:
        return [BlockingAppend(**row) for row in connection.execute(self._statements.blocking).mappings()]
