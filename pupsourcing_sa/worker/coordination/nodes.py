"""The table of nodes, by the clock of the database: the statements, and the methods that execute them."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Text, Uuid, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from pupsourcing_sa.postgres.connections import limit_transaction
from pupsourcing_sa.postgres.expressions import constant, moment, seconds
from pupsourcing_sa.postgres.leadership import lead, try_to_lead
from pupsourcing_sa.status import RunningBatch
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.worker.coordination.processes import ProcessIdentity, has_ended, this_process
from pupsourcing_sa.worker.running import Announcement, merged, read_running, to_text

__all__ = ["Nodes", "RemovedNode"]


@dataclass(frozen=True, slots=True)
class RemovedNode:
    """A node that was presumed dead.

    Attributes:
        worker_id: its id.
        hostname: name of its machine.
        pid: its process id on that machine.
        consumers: names of its consumers; none if it was stopping.
        silence: seconds since its last heartbeat.
        batches: the batches that it ran at that time.
        announced: the event that it handled alone; ``None`` if there was none.
    """

    worker_id: UUID
    hostname: str
    pid: int
    consumers: Collection[str]
    silence: float
    batches: Sequence[RunningBatch]
    announced: Announcement | None


class Nodes:
    """The nodes of a worker group. Every method works in the caller's transaction.

    Args:
        tables: the group's tables. Groups with different tables are independent of each other.
    """

    def __init__(self, tables: WorkerTables) -> None:
        table = self._table = tables.worker_nodes
        self._lead, self._try_to_lead = lead(tables), try_to_lead(tables)
        self._all = select(table.c.worker_id, table.c.consumers).order_by(table.c.worker_id)
        path = (table.c.running, constant("process"))
        host = func.jsonb_extract_path_text(*path, constant("host"), type_=Text)
        self._processes = select(table.c.worker_id, func.jsonb_extract_path_text(*path)).where(
            host == bindparam("host", type_=Text())
        )
        self._removed = (
            table.c.worker_id,
            table.c.hostname,
            table.c.pid,
            table.c.consumers,
            seconds(func.clock_timestamp() - table.c.heartbeat_at),
            cast(table.c.running, Text),
        )

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
        running = to_text(process=this_process())
        node = {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "consumers": list(consumers),
            "heartbeat_at": now,
            "running": cast(bindparam("running", running, type_=Text()), JSONB),
        }
        written: datetime = connection.execute(
            insert(self._table)
            .values(worker_id=worker_id, **node)
            .on_conflict_do_update(index_elements=[self._table.c.worker_id], set_=node)
            .returning(moment(self._table.c.heartbeat_at))
        ).scalar_one()
        return written

    def beat(self, connection: Connection, worker_id: UUID, batches: Iterable[RunningBatch]) -> bool:
        """Write the heartbeat of a node and its batches. Return False if the node was presumed dead and removed."""
        c = self._table.c
        update = self._table.update().where(c.worker_id == worker_id)
        beat = update.values(heartbeat_at=func.clock_timestamp(), running=merged(c.running))
        return connection.execute(beat, {"running": to_text(batches=list(batches))}).rowcount == 1

    def remove(self, connection: Connection, worker_id: UUID) -> None:
        """Delete the row of a node. The foreign key sets the node of its assignments to NULL."""
        connection.execute(self._table.delete().where(self._table.c.worker_id == worker_id))

    def remove_ended(self, connection: Connection) -> list[RemovedNode]:
        """Delete the nodes whose process ran on this host and has certainly ended."""
        this = this_process()
        if this is None:
            return []
        rows = connection.execute(self._processes, {"host": this.host}).all()
        processes = [(worker_id, ProcessIdentity.from_text(found)) for worker_id, found in rows]
        ended = [worker_id for worker_id, process in processes if process is not None and has_ended(process, this)]
        if not ended:
            return []
        is_ended = self._table.c.worker_id == func.any(bindparam("ended", ended, type_=ARRAY(Uuid)))
        return self._deleted(connection, self._table.delete().where(is_ended).returning(*self._removed))

    def remove_silent(self, connection: Connection, timeout: float) -> list[RemovedNode]:
        """Delete the nodes without a heartbeat for ``timeout`` seconds.

        A heartbeat in the future is set to the current time. It is in the future if the clock was set back, or if a
        server with another clock has taken over. A node that died just before would otherwise seem alive until the
        clock has caught up.
        """
        c, now = self._table.c, func.clock_timestamp()
        future = self._table.update().where(c.heartbeat_at > now).values(heartbeat_at=now).cte("pupsourcing_future")
        silent = self._table.delete().where(c.heartbeat_at < now - timedelta(seconds=timeout))
        return self._deleted(connection, silent.returning(*self._removed).add_cte(future))

    def all(self, connection: Connection) -> dict[UUID, list[str]]:
        """Return the consumers that each node can run."""
        return dict(map(tuple, connection.execute(self._all)))

    @staticmethod
    def _deleted(connection: Connection, delete: Any) -> list[RemovedNode]:
        removed = []
        for worker_id, hostname, pid, consumers, silence, running in connection.execute(delete):
            batches, announced = read_running(running)
            removed.append(RemovedNode(worker_id, hostname, pid, consumers, silence, batches, announced))
        return removed
