"""Dead holders: what to do about a checkpoint that is locked by a process that will never let go of it.

A node that is stopped, or whose host has lost its power, in the middle of a batch leaves its transaction open on the
server, and the row locked, until TCP gives up. The others remove the node for its silence, its partitions go to them,
and all they get is a row that is locked::

    holder    lock, as "pupsourcing-sa <its id>" ── handler … stopped
    leader                                             removes the silent node
    owner                                                  no lock: who has it? ── a node that is gone: end its backend
    owner                                                                                                       lock …

A transaction carries its node's name (``application_name``) for as long as it holds a checkpoint. Whoever has no name
of that form is none of our business, such as a drain, which belongs to no node; neither is a node that is alive, which
may take its time. A node that comes back to life finds its connection closed and has applied nothing.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Boolean, Integer, Select, Text, cast, column, exists, func, literal_column, select, table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pupsourcing_sa.store._connection import connection_of
from pupsourcing_sa.store._log import constant
from pupsourcing_sa.worker._checkpoints import APPLICATION_PREFIX, Checkpoint

__all__ = ["Holder", "Holders", "is_privilege_missing"]

_INSUFFICIENT_PRIVILEGE: Final = "42501"
_UUID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

_LOCKS: Final = table(
    "pg_locks",
    column("locktype", Text),
    column("transactionid"),
    column("mode", Text),
    column("granted", Boolean),
    column("pid", Integer),
    schema="pg_catalog",
)
_ACTIVITY: Final = table(
    "pg_stat_activity",
    column("pid", Integer),
    column("application_name", Text),
    schema="pg_catalog",
)


class Holder(NamedTuple):
    """A backend that was told to end.

    Attributes:
        pid: its process id, on the server.
        application_name: what it called itself.
    """

    pid: int
    application_name: str


class Holders:
    """Ends transactions of dead nodes that hold a checkpoint.

    Args:
        checkpoint: the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoints = checkpoint.tables.consumer_checkpoints
        self._nodes = checkpoint.tables.worker_nodes
        self._end_dead = self._ending(checkpoint.consumer_name, checkpoint.partition)

    def _ending(self, consumer_name: str, partition: int) -> Select[Any]:
        """End the backend whose transaction has locked the row, if it is named like a node that there is none of.

        One statement, so that the process is the one that has been looked at. The system column ``xmax`` is the id of
        the transaction that has locked or changed a row, or did so last; each holds a lock on its own id while it
        lasts. The row is found by its primary key, the rest are views on the server's memory.

        What ends a backend is outside of a CTE that is computed first: PostgreSQL evaluates conditions in any order.
        """
        held = self._checkpoints.alias("held")
        name = _ACTIVITY.c.application_name
        is_alive = exists().where(name == constant(APPLICATION_PREFIX).concat(cast(self._nodes.c.worker_id, Text)))
        dead = (
            select(_ACTIVITY.c.pid, name)
            .select_from(held)
            .join(_LOCKS, _LOCKS.c.transactionid == literal_column("held.xmax"))
            .join(_ACTIVITY, _ACTIVITY.c.pid == _LOCKS.c.pid)
            .where(
                held.c.consumer_name == consumer_name,
                held.c.partition == partition,
                _LOCKS.c.locktype == "transactionid",
                _LOCKS.c.mode == "ExclusiveLock",  # its own; who waits for it asks for another mode
                _LOCKS.c.granted,
                name.regexp_match(f"^{APPLICATION_PREFIX}{_UUID}$"),
                ~is_alive,
            )
            .cte("dead")
            .prefix_with("MATERIALIZED")
        )
        return select(dead.c.pid, dead.c.application_name, func.pg_terminate_backend(dead.c.pid))

    def end_dead(self, session: Session) -> list[Holder]:
        """End whoever holds the checkpoint and is dead, and tell who that was; nobody, as a rule.

        Raises:
            DBAPIError: `is_privilege_missing` says whether this role may not end what another role has begun.
        """
        rows = connection_of(session, self._checkpoints.update()).execute(self._end_dead)
        return [Holder(pid, name) for pid, name, is_told in rows if is_told]


def is_privilege_missing(error: Exception) -> bool:
    """Whether the role may not do what was asked."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _INSUFFICIENT_PRIVILEGE
