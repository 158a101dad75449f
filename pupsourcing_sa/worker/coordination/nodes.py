"""The table of nodes, by the clock of the database: the statements, and the methods that execute them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, Integer, cast, func, select
from sqlalchemy.dialects.postgresql import insert

from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.postgres.expressions import oid_of, seconds
from pupsourcing_sa.tables import WorkerTables

__all__ = ["Nodes"]


class Nodes:
    """The nodes of a worker group. Every method works in the caller's transaction.

    Args:
        tables: the group's tables. Groups with different tables are independent of each other.
    """

    def __init__(self, tables: WorkerTables) -> None:
        table = self._table = tables.worker_nodes
        key = (cast(oid_of(table), Integer), 0)
        self._lead = select(func.pg_advisory_xact_lock(*key).is_not(None))
        self._try_to_lead = select(func.pg_try_advisory_xact_lock(*key))
        self._all = select(table.c.worker_id, table.c.consumers).order_by(table.c.worker_id)

    def limit_idleness(self, connection: Connection, seconds: float) -> None:
        """Limit how long this transaction may be idle, and wait for a lock.

        Otherwise a process that was suspended, for example by SIGSTOP, would remain the leader.
        """
        limit_transaction(connection, seconds, "idle_in_transaction_session_timeout", "lock_timeout")

    def lead(self, connection: Connection) -> None:
        """Become the leader until the end of the transaction. Wait for another leader, which takes milliseconds."""
        connection.execute(self._lead)

    def try_to_lead(self, connection: Connection) -> bool:
        """Become the leader until the end of the transaction. Return False if there is another leader."""
        return bool(connection.scalar(self._try_to_lead))

    def write(self, connection: Connection, worker_id: UUID, consumers: Sequence[str]) -> datetime:
        """Insert or update the row of a node, with the consumers that it can run. Return the time of the database."""
        now = func.clock_timestamp()
        node = {"hostname": socket.gethostname(), "pid": os.getpid(), "consumers": list(consumers), "heartbeat_at": now}
        written: datetime = connection.execute(
            insert(self._table)
            .values(worker_id=worker_id, **node)
            .on_conflict_do_update(index_elements=[self._table.c.worker_id], set_=node)
            .returning(self._table.c.heartbeat_at)
        ).scalar_one()
        return written

    def beat(self, connection: Connection, worker_id: UUID) -> bool:
        """Write the heartbeat of a node. Return False if the node was presumed dead and removed."""
        update = self._table.update().where(self._table.c.worker_id == worker_id)
        return connection.execute(update.values(heartbeat_at=func.clock_timestamp())).rowcount == 1

    def remove(self, connection: Connection, worker_id: UUID) -> None:
        """Delete the row of a node. The foreign key sets the node of its assignments to NULL."""
        connection.execute(self._table.delete().where(self._table.c.worker_id == worker_id))

    def remove_silent(self, connection: Connection, timeout: float) -> dict[UUID, float]:
        """Delete the nodes without a heartbeat for ``timeout`` seconds. Return the age of each last heartbeat.

        A heartbeat in the future is set to the current time. It is in the future if the clock was set back, or if a
        server with another clock has taken over. A node that died just before would otherwise seem alive until the
        clock has caught up.
        """
        c, now = self._table.c, func.clock_timestamp()
        future = self._table.update().where(c.heartbeat_at > now).values(heartbeat_at=now).cte("pupsourcing_future")
        silent = self._table.delete().where(c.heartbeat_at < now - timedelta(seconds=timeout))
        removed = silent.returning(c.worker_id, seconds(now - c.heartbeat_at)).add_cte(future)
        return dict(map(tuple, connection.execute(removed)))

    def all(self, connection: Connection) -> dict[UUID, list[str]]:
        """Return the consumers that each node can run."""
        return dict(map(tuple, connection.execute(self._all)))
