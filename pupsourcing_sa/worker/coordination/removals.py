"""Removals of consumers by an operator, which nodes that still run must not undo.

A node makes deleted rows again. A consumer that an operator has removed with `ConsumerOperations.remove` stays removed:
a node that was suspended meanwhile would begin it at the start of the log. A node that starts afterwards may have the
consumer on purpose, and begins it.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, Text, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from pupsourcing_sa.tables import WorkerTables

__all__ = ["Removals"]


class Removals:
    """The removals that a node knows of. Every method expects the leader's transaction.

    Args:
        tables: the group's tables.
    """

    def __init__(self, tables: WorkerTables) -> None:
        c = tables.consumer_operations.c
        self._last = (
            select(c.consumer_name, func.max(c.id))
            .where(c.operation == "remove", c.consumer_name == func.any(bindparam("names", type_=ARRAY(Text))))
            .group_by(c.consumer_name)
        )
        self._known: dict[str, int] = {}

    def note(self, connection: Connection, consumers: Collection[str]) -> None:
        """Note the removals up to now, which happened before the node began."""
        self._known = self._last_of(connection, consumers)

    def since(self, connection: Connection, consumers: Collection[str]) -> set[str]:
        """Return the consumers that were removed since `note`."""
        last = self._last_of(connection, consumers)
        return {name for name, number in last.items() if number > self._known.get(name, 0)}

    def _last_of(self, connection: Connection, consumers: Collection[str]) -> dict[str, int]:
        return dict(map(tuple, connection.execute(self._last, {"names": list(consumers)})))
