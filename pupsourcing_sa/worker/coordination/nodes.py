"""The table of nodes: who is alive, by the clock of the database. Statements, and the few lines that execute them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, Integer, cast, func, select
from sqlalchemy.dialects.postgresql import insert

from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.postgres.expressions import oid_of
from pupsourcing_sa.tables import WorkerTables

__all__ = ["Nodes"]


class Nodes:
    """The nodes of a worker group. Every method works in the transaction it is given.

    Args:
        tables: the group's tables; groups with other tables know nothing of each other.
    """

    def __init__(self, tables: WorkerTables) -> None:
        table = self._table = tables.worker_nodes
        key = (cast(oid_of(table), Integer), 0)
        self._lead = select(func.pg_advisory_xact_lock(*key).is_not(None))
        self._try_to_lead = select(func.pg_try_advisory_xact_lock(*key))
        self._all = select(table.c.worker_id, table.c.consumers).order_by(table.c.worker_id)

    def limit_idleness(self, connection: Connection, seconds: float) -> None:
        """Have the server end this transaction if it stands still: a process that was stopped must not stay leader."""
        limit_transaction(connection, seconds, "idle_in_transaction_session_timeout", "lock_timeout")

    def lead(self, connection: Connection) -> None:
        """Become the leader, until the end of the transaction; wait for another, which takes a moment."""
        connection.execute(self._lead)

    def try_to_lead(self, connection: Connection) -> bool:
        """Become the leader, until the end of the transaction, if there is no other."""
        return bool(connection.scalar(self._try_to_lead))

    def write(self, connection: Connection, worker_id: UUID, consumers: Sequence[str]) -> None:
        """Write down that a node is there, and which consumers it runs."""
        now = func.clock_timestamp()
        node = {"hostname": socket.gethostname(), "pid": os.getpid(), "consumers": list(consumers), "heartbeat_at": now}
        connection.execute(
            insert(self._table)
            .values(worker_id=worker_id, **node)
            .on_conflict_do_update(index_elements=[self._table.c.worker_id], set_=node)
        )

    def beat(self, connection: Connection, worker_id: UUID) -> bool:
        """Say that a node is alive; false if it was taken for dead."""
        update = self._table.update().where(self._table.c.worker_id == worker_id)
        return connection.execute(update.values(heartbeat_at=func.clock_timestamp())).rowcount == 1

    def remove(self, connection: Connection, worker_id: UUID) -> None:
        """Take a node out; its assignments lose it."""
        connection.execute(self._table.delete().where(self._table.c.worker_id == worker_id))

    def remove_silent(self, connection: Connection, seconds: float) -> list[UUID]:
        """Take out the nodes that have not been heard of for so long.

        A heartbeat that is still to come counts as one of now: the clock was set back, or is another server's after a
        failover, and whoever has died just before would be taken for alive until it has caught up.
        """
        c, now = self._table.c, func.clock_timestamp()
        to_come = self._table.update().where(c.heartbeat_at > now).values(heartbeat_at=now).cte("pupsourcing_to_come")
        silent = self._table.delete().where(c.heartbeat_at < now - timedelta(seconds=seconds))
        return list(connection.scalars(silent.returning(c.worker_id).add_cte(to_come)))

    def all(self, connection: Connection) -> dict[UUID, list[str]]:
        """The consumers that each node knows."""
        return dict(map(tuple, connection.execute(self._all)))
