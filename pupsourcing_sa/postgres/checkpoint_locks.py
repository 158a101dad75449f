"""The statement that finds locked checkpoints and the transactions that lock them."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, Text, and_, cast, exists, literal_column, or_, select

from pupsourcing_sa.postgres.catalog import ACTIVITY, LOCKS, PREPARED
from pupsourcing_sa.postgres.expressions import age, constant, oid_of, oid_of_database
from pupsourcing_sa.postgres.lock_holders import HOLDER_COLUMNS
from pupsourcing_sa.tables import WorkerTables

__all__ = ["APPLICATION_PREFIX", "checkpoint_locks", "is_of_dead_node", "is_of_node"]

#: Start of the ``application_name`` of a node's transaction while it holds a checkpoint; the node's id follows. Every
#: role can read this name in ``pg_stat_activity``, even without privileges.
APPLICATION_PREFIX: Final = "pupsourcing-sa "

_UUID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def is_of_node(worker_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return a condition: the transaction has the name of this node. NULL if its name is unknown."""
    return ACTIVITY.c.application_name == constant(APPLICATION_PREFIX).concat(cast(worker_id, Text))


def is_of_dead_node(tables: WorkerTables) -> ColumnElement[bool]:
    """Return a condition: the transaction has the name of a node that has no row. NULL if its name is unknown."""
    has_name_of_a_node = ACTIVITY.c.application_name.regexp_match(f"^{APPLICATION_PREFIX}{_UUID}$")
    return and_(has_name_of_a_node, ~exists().where(is_of_node(tables.worker_nodes.c.worker_id)))


def checkpoint_locks(tables: WorkerTables) -> Select[Any]:
    """Return a SELECT of the locked checkpoints with their lock holders. Callers add conditions.

    ``unmoved`` is the time since the checkpoint moved, in seconds: an upper bound of the lock's age.

    The system column ``xmax`` of a row is the id of the transaction that locks the row, or was the last to lock or
    change it. A transaction holds a lock on its own id until it ends, so a join with ``pg_locks`` finds the holder.

    ``xmax`` can match an unrelated transaction: ids are reused, and ``xmax`` can also be a MultiXactId, the id of a
    list of transactions that share the row. The transaction must therefore also hold a row lock on this table.

    Two holders are not found, because PostgreSQL does not expose them: one that locked the row under a savepoint that
    was released, and one that shares the lock with others.

    The server reads locks and backend activity at slightly different instants. Within a transaction it reads the
    activity only once, unless the caller clears that snapshot.
    """
    checkpoints = tables.consumer_checkpoints
    # Read pg_locks once: while it is read, no session can take or release a lock.
    locks = select(LOCKS).where(LOCKS.c.granted).cte("pupsourcing_locks").prefix_with("MATERIALIZED")
    own, touched = locks.alias("own"), locks.alias("touched").c
    has_locked_a_row = exists().where(
        touched.locktype == "relation",
        touched.database == oid_of_database(),
        touched.relation == oid_of(checkpoints),
        touched.mode.in_(["RowShareLock", "RowExclusiveLock"]),
        touched.virtualtransaction == own.c.virtualtransaction,
        touched.pid.is_not_distinct_from(own.c.pid),
    )
    held = checkpoints.alias("held")
    return (
        select(
            held.c.consumer_name,
            held.c.partition,
            age(held.c.updated_at).label("unmoved"),
            own.c.virtualtransaction.label("transaction"),
            own.c.pid,
            *HOLDER_COLUMNS,
        )
        .select_from(held)
        .join(own, own.c.transactionid == literal_column("held.xmax"))
        .outerjoin(ACTIVITY, ACTIVITY.c.pid == own.c.pid)
        .outerjoin(PREPARED, and_(own.c.pid.is_(None), own.c.transactionid == PREPARED.c.transaction))
        .where(
            own.c.locktype == "transactionid",
            # The holder itself. Transactions that wait for its end request ShareLock.
            own.c.mode == "ExclusiveLock",
            has_locked_a_row,
            # A transaction that has no backend and is not prepared ended between the two reads.
            or_(ACTIVITY.c.pid.is_not(None), PREPARED.c.gid.is_not(None)),
        )
    )
