"""The statement that asks who has locked checkpoints."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Text,
    and_,
    case,
    cast,
    exists,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)

from pupsourcing_sa.store._log import constant, oid_of
from pupsourcing_sa.tables import WorkerTables
from pupsourcing_sa.tables._catalog import ACTIVITY, DATABASES, LOCKS, PREPARED
from pupsourcing_sa.worker._checkpoints import APPLICATION_PREFIX

__all__ = ["HolderStatements", "is_dead", "is_named_like"]

_UUID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def is_named_like(worker_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the transaction bears the name of this node; NULL, like what follows, if nothing is known of its name."""
    return ACTIVITY.c.application_name == constant(APPLICATION_PREFIX).concat(cast(worker_id, Text))


def _is_named_like_a_node() -> ColumnElement[bool]:
    return ACTIVITY.c.application_name.regexp_match(f"^{APPLICATION_PREFIX}{_UUID}$")


def is_dead(tables: WorkerTables) -> ColumnElement[bool]:
    """Whether the transaction bears the name of a node that there is none of."""
    return and_(_is_named_like_a_node(), ~exists().where(is_named_like(tables.worker_nodes.c.worker_id)))


class HolderStatements:
    """The statement that asks who has locked checkpoints; to be completed by conditions.

    Args:
        tables: where the checkpoints are.

    Attributes:
        held: the checkpoints in it.

    The system column ``xmax`` is the id of the transaction that has locked or changed a row, or did so last, and each
    holds a lock on its own id while it lasts. There are two complications. Where several have locked a row, ``xmax`` is
    the id of a list of them, a multixact; nothing tells which of the two it is, and they are counted apart, so that it
    is looked up as both. And a subtransaction, as of a savepoint, has an id of its own, which when it was released is
    still that of an unfinished transaction, and nobody's lock any more. Nothing tells whose it was; the one who has
    locked it is then among those who have locked any row of the table and are not nodes, which lock without savepoints.

    That the transaction has locked a row of the table is asked for in any case, should two numbers happen to agree.
    """

    def __init__(self, tables: WorkerTables) -> None:
        self._checkpoints = tables.consumer_checkpoints
        self.held = self._checkpoints.alias("held")
        # Read once: whoever locks or unlocks something has to wait for that.
        self._locks = select(LOCKS).where(LOCKS.c.granted).cte("locks").prefix_with("MATERIALIZED")

    def holders(self, *wanted: ColumnElement[bool]) -> Select[Any]:
        """The locked ones of those checkpoints, with the transactions that have them, the oldest first.

        The checkpoints are found as the condition says, the rest are views on the server's memory. What they say of a
        transaction's locks and what of its backend is not of the same instant, and the latter is as of its first use
        in the caller's transaction.

        Args:
            wanted: which of `held`.
        """
        lockers, own = self._lockers(*wanted), self._locks.alias("own")
        activity, prepared = ACTIVITY.c, PREPARED.c
        is_prepared = and_(own.c.pid.is_(None), own.c.transactionid == prepared.transaction)
        began = func.coalesce(activity.xact_start, prepared.prepared)
        return (
            select(
                lockers.c.consumer_name,
                lockers.c.partition,
                lockers.c.updated_at,
                cast(lockers.c.xid, Text).label("locker"),
                own.c.virtualtransaction.label("transaction"),
                own.c.pid,
                prepared.gid,
                func.coalesce(activity.usename, prepared.owner).label("user"),
                activity.application_name,
                func.coalesce(activity.state, case((prepared.gid.is_not(None), constant("prepared")))).label("state"),
                (func.clock_timestamp() - began).label("age"),
                # Of what may not be seen it says so, in English.
                case((activity.state.is_not(None), activity.query)).label("query"),
            )
            .select_from(lockers)
            .join(own, or_(own.c.transactionid == lockers.c.xid, lockers.c.is_released))
            .outerjoin(ACTIVITY, activity.pid == own.c.pid)
            .outerjoin(PREPARED, is_prepared)
            .where(
                own.c.locktype == "transactionid",
                own.c.mode == "ExclusiveLock",  # its own; who waits for it asks for another mode
                self._has_locked_a_row(own),
                or_(own.c.transactionid == lockers.c.xid, func.coalesce(~_is_named_like_a_node(), true())),
                or_(activity.pid.is_not(None), prepared.gid.is_not(None)),  # otherwise it has ended by now
            )
            .order_by(began.asc().nulls_last())
        )

    def _lockers(self, *wanted: ColumnElement[bool]) -> CTE:
        """The ids of those who have locked a row, or did so last; a row for each."""
        xmax: ColumnElement[Any] = literal_column("held.xmax")
        multixact = case((_is_multixact(xmax), xmax))
        members = func.pg_get_multixact_members(multixact).table_valued("xid", name="members")
        locker = union_all(select(xmax.label("xid")), select(members.c.xid)).lateral("locker")
        is_unlocked = ~exists().where(self._locks.c.transactionid == locker.c.xid)
        c = self.held.c
        return (
            select(
                c.consumer_name,
                c.partition,
                c.updated_at,
                locker.c.xid,
                case((is_unlocked, _is_in_progress(locker.c.xid)), else_=false()).label("is_released"),
            )
            .select_from(self.held.join(locker, true()))
            .where(*wanted)
            .cte("lockers")
            .prefix_with("MATERIALIZED")
        )

    def _has_locked_a_row(self, own: FromClause) -> ColumnElement[bool]:
        touched = self._locks.alias("touched").c
        return exists().where(
            touched.locktype == "relation",
            touched.relation == oid_of(self._checkpoints),
            touched.mode.in_(["RowShareLock", "RowExclusiveLock"]),
            touched.virtualtransaction == own.c.virtualtransaction,
            touched.pid.is_not_distinct_from(own.c.pid),
        )


def _is_multixact(xmax: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether there is a multixact of this number: asking for another one is an error."""
    oldest = select(func.max(func.mxid_age(DATABASES.c.datminmxid))).scalar_subquery()
    return func.mxid_age(xmax).between(constant(1), oldest)


def _is_in_progress(xid: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether an id is that of an unfinished transaction or subtransaction, begun before this transaction looked."""
    # It is the low half of what is asked for; the other is that of the number nearest to one of now. Asking for one
    # that has not been given to anybody is an error; those have no age, and what is no id at all has the greatest.
    is_known = func.age(xid).between(constant(1), constant(2**31 - 2))
    now = func.txid_snapshot_xmax(func.txid_current_snapshot(), type_=BigInteger)
    half = constant(2**31)
    behind = (now - cast(cast(xid, Text), BigInteger) + half).bitwise_and(constant(2**32 - 1)) - half
    status = func.txid_status(case((is_known, now - behind)), type_=Text)
    return func.coalesce(status == constant("in progress"), false())
