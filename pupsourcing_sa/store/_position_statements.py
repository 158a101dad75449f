"""The statements about the stable position: where it is, and who holds it back."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import OID

from pupsourcing_sa.store._log import MARK_BITS, constant, oid_of, sequence_of
from pupsourcing_sa.tables import EventTables

__all__ = ["PositionStatements"]

#: How pg_locks shows the mark that lies below every position: as the unsigned oid with the same bits.
_MARK_BELOW_ALL_AS_OID: Final = constant(2**32 - 1)
#: Half of what the bits of a mark tell apart.
_HALF_OF_MARKS: Final = constant(2**30)


def _catalog(name: str, **columns: Any) -> FromClause:
    return table(name, *(column(each, type_) for each, type_ in columns.items()), schema="pg_catalog")


_LOCKS: Final = _catalog(
    "pg_locks",
    locktype=Text,
    database=OID,
    classid=OID,
    objid=OID,
    objsubid=Integer,
    transactionid=Text,
    pid=Integer,
    virtualtransaction=Text,
)
_DATABASES: Final = _catalog("pg_database", oid=OID, datname=Text)
_ACTIVITY: Final = _catalog(
    "pg_stat_activity",
    pid=Integer,
    application_name=Text,
    usename=Text,
    state=Text,
    query=Text,
    xact_start=DateTime(timezone=True),
)
_PREPARED: Final = _catalog(
    "pg_prepared_xacts", transaction=Text, gid=Text, owner=Text, prepared=DateTime(timezone=True)
)


class PositionStatements:
    """The statements about one log's stable position.

    Args:
        tables: the log.
    """

    def __init__(self, tables: EventTables) -> None:
        self._events = tables.events

    @cached_property
    def stable(self) -> Select[Any]:
        """The last position issued and the stable position, with what decides whether they can be relied upon.

        H, the last position issued, must be read before the locks are: an append that took its mark between the two
        would otherwise be missed. It is a subquery that cannot be merged (its output is volatile), and the smallest
        mark is a correlated subquery on it, which PostgreSQL can only run once it has H. Both look at the server's
        memory and not at the transaction's snapshot.

        A sequence that has issued nothing since it was created or restarted has no H. RESTART waits for the
        transactions that use the sequence, so everything in the log is finished then, and the log's last position
        stands in. Without the privilege to read the sequence H is NULL.
        """
        head = self._issued.c.position
        smallest = select(func.min(self._mark(head))).where(self._is_mark(head)).correlate(self._issued)
        return select(
            head.label("issued"),
            func.least(head, smallest.scalar_subquery()).label("stable"),
            func.current_setting(constant("transaction_isolation")).label("isolation"),
            func.pg_is_in_recovery().label("is_in_recovery"),
        )

    @cached_property
    def blocking(self) -> Select[Any]:
        """Who holds marks, the lowest first: backends, and prepared transactions, which have none."""
        head = self._issued.c.position
        now = func.clock_timestamp()
        own = _LOCKS.alias("own")  # the lock that every transaction has on its own id
        is_own = and_(
            _LOCKS.c.pid.is_(None),
            own.c.pid.is_(None),
            own.c.locktype == "transactionid",
            own.c.virtualtransaction == _LOCKS.c.virtualtransaction,
        )
        return (
            select(
                self._mark(head).label("mark"),
                _LOCKS.c.pid,
                _PREPARED.c.gid,
                func.coalesce(_ACTIVITY.c.usename, _PREPARED.c.owner).label("user"),
                _ACTIVITY.c.application_name,
                func.coalesce(_ACTIVITY.c.state, case((_PREPARED.c.gid.is_not(None), "prepared"))).label("state"),
                (now - func.coalesce(_ACTIVITY.c.xact_start, _PREPARED.c.prepared)).label("age"),
                _ACTIVITY.c.query,
            )
            .select_from(self._issued)
            .join(_LOCKS, self._is_mark(head))
            .outerjoin(_ACTIVITY, _ACTIVITY.c.pid == _LOCKS.c.pid)
            .outerjoin(own, is_own)
            .outerjoin(_PREPARED, cast(_PREPARED.c.transaction, Text) == cast(own.c.transactionid, Text))
            .order_by(self._mark(head), _LOCKS.c.pid)
        )

    @cached_property
    def _issued(self) -> FromClause:
        events = self._events
        sequence = sequence_of(events)
        is_readable = func.has_sequence_privilege(sequence, constant("USAGE, SELECT"))
        in_log = func.coalesce(select(func.max(events.c.global_position)).scalar_subquery(), constant(0))
        last = func.pg_sequence_last_value(sequence, type_=BigInteger)
        return select(func.coalesce(last, case((is_readable, in_log))).label("position")).subquery("issued")

    @staticmethod
    def _distance(head: ColumnElement[Any]) -> ColumnElement[Any]:
        return (head - cast(_LOCKS.c.objid, BigInteger)).bitwise_and(MARK_BITS)

    def _mark(self, head: ColumnElement[Any]) -> ColumnElement[Any]:
        """The position that a mark stands for: of those with its 31 bits, the one nearest to the last one issued."""
        is_below_all = cast(_LOCKS.c.objid, BigInteger) == _MARK_BELOW_ALL_AS_OID
        return case((is_below_all, constant(0)), else_=head - self._distance(head))

    def _is_mark(self, head: ColumnElement[Any]) -> ColumnElement[bool]:
        """Whether a lock is a mark of this log that counts: one above H was taken after H was read."""
        c = _LOCKS.c
        database = select(_DATABASES.c.oid).where(_DATABASES.c.datname == func.current_database()).scalar_subquery()
        is_below_all = cast(c.objid, BigInteger) == _MARK_BELOW_ALL_AS_OID
        return and_(
            c.locktype == "advisory",
            c.database == database,
            c.classid == oid_of(self._events),
            c.objsubid == 2,  # a lock with two int4 keys
            is_below_all | (self._distance(head) < _HALF_OF_MARKS),
        )
