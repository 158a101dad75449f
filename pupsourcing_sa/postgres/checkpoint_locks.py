"""The statement that asks who has locked checkpoints."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, Text, and_, cast, exists, literal_column, or_, select

from pupsourcing_sa.postgres.catalog import ACTIVITY, LOCKS, PREPARED
from pupsourcing_sa.postgres.expressions import constant, oid_of, oid_of_database
from pupsourcing_sa.postgres.lock_holders import HOLDER_COLUMNS
from pupsourcing_sa.tables import WorkerTables

__all__ = ["APPLICATION_PREFIX", "holders", "is_dead", "is_named_like"]

#: How a node's transaction calls itself while it holds a checkpoint, followed by the node's id; for all to see in
#: ``pg_stat_activity``, to roles without any privilege as well.
APPLICATION_PREFIX: Final = "pupsourcing-sa "

_UUID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def is_named_like(worker_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the transaction bears the name of this node; NULL, like what follows, if nothing is known of its name."""
    return ACTIVITY.c.application_name == constant(APPLICATION_PREFIX).concat(cast(worker_id, Text))


def is_dead(tables: WorkerTables) -> ColumnElement[bool]:
    """Whether the transaction bears the name of a node that there is none of."""
    is_named_like_a_node = ACTIVITY.c.application_name.regexp_match(f"^{APPLICATION_PREFIX}{_UUID}$")
    return and_(is_named_like_a_node, ~exists().where(is_named_like(tables.worker_nodes.c.worker_id)))


def holders(tables: WorkerTables) -> Select[Any]:
    """The checkpoints that are locked, with the transactions that have them; to be completed by conditions.

    The system column ``xmax`` is the id of the transaction that has locked or changed a row, or did so last, and each
    holds a lock on its own id while it lasts. The number may be another transaction's by accident, as ids come again
    and ``xmax`` can also be that of a list of several who share a row; so the transaction must have locked rows of this
    table. Who has it under a savepoint that was released, or shares it with others, is not found, as nothing tells.

    What the server says of a transaction's locks and what of its backend is not of the same instant, and the latter is
    as of its first use in the caller's transaction.
    """
    checkpoints = tables.consumer_checkpoints
    # Read once: whoever locks or unlocks something has to wait for that.
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
            held.c.updated_at,
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
            own.c.mode == "ExclusiveLock",  # its own; who waits for it asks for another mode
            has_locked_a_row,
            or_(ACTIVITY.c.pid.is_not(None), PREPARED.c.gid.is_not(None)),  # otherwise it has ended by now
        )
    )
