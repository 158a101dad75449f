"""The statements about the stable position: where it is, and who holds it back."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, ColumnElement, FromClause, Select, and_, case, cast, func, select
from sqlalchemy.dialects.postgresql import OID

from pupsourcing_sa.postgres.catalog import ACTIVITY, LOCKS, PREPARED, catalog_table
from pupsourcing_sa.postgres.expressions import constant, oid_of, oid_of_database, sequence_of, server_identity
from pupsourcing_sa.postgres.lock_holders import HOLDER_COLUMNS
from pupsourcing_sa.store._low_water_mark import MARK_BITS
from pupsourcing_sa.tables import EventTables

__all__ = ["PositionStatements"]

#: How pg_locks shows the mark that lies below every position: as the unsigned oid with the same bits.
_MARK_BELOW_ALL_AS_OID: Final = constant(2**32 - 1)
#: Half of what the bits of a mark tell apart.
_HALF_OF_MARKS: Final = constant(2**30)

_SEQUENCES: Final = catalog_table(
    "pg_sequence", seqrelid=OID, seqcache=BigInteger, seqincrement=BigInteger, seqcycle=Boolean
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
        """The stable position, with what decides whether it can be relied upon.

        It is the last position in the log, or the smallest mark where one lies below. The last position must be read
        before the locks are: an append that took its mark between the two would otherwise be missed. The transaction's
        snapshot is older than both. The last position issued, by which marks are decoded, is read by a subquery that
        cannot be merged (its output is volatile), and the smallest mark by a correlated subquery on that, which
        PostgreSQL can only run once it has it.

        Not the last position issued itself: positions that were rolled back may not have reached the disk, and after a
        crash the sequence may issue them again. What is committed has been flushed, with all that came before it.
        """
        issued = self._issued.c
        smallest = select(func.min(self._mark(issued.position))).where(self._is_mark(issued.position))
        return select(
            func.least(issued.in_log, smallest.correlate(self._issued).scalar_subquery()).label("stable"),
            issued.in_log.label("last"),
            issued.is_readable,
            issued.is_in_order,
            func.current_setting(constant("transaction_isolation")).label("isolation"),
            func.pg_is_in_recovery().label("is_in_recovery"),
            server_identity().label("server_identity"),
        )

    @cached_property
    def blocking(self) -> Select[Any]:
        """Who holds marks, the lowest first: backends, and prepared transactions, which have none."""
        head = self._issued.c.position
        own = LOCKS.alias("own")  # the lock that every transaction has on its own id
        is_own = and_(
            LOCKS.c.pid.is_(None),
            own.c.pid.is_(None),
            own.c.locktype == "transactionid",
            own.c.virtualtransaction == LOCKS.c.virtualtransaction,
        )
        return (
            select(
                self._mark(head).label("mark"),
                LOCKS.c.pid,
                *HOLDER_COLUMNS,
            )
            .select_from(self._issued)
            .join(LOCKS, self._is_mark(head))
            .outerjoin(ACTIVITY, ACTIVITY.c.pid == LOCKS.c.pid)
            .outerjoin(own, is_own)
            .outerjoin(PREPARED, PREPARED.c.transaction == own.c.transactionid)
            .order_by(self._mark(head), LOCKS.c.pid)
        )

    @cached_property
    def _issued(self) -> FromClause:
        """The last position issued, the last one in the log, and what is wrong with the sequence.

        A sequence that has issued nothing since it was created or restarted has no last value. RESTART waits for the
        transactions that use the sequence, so everything in the log is finished then, and the log's last position
        stands in. Without the privilege to read the sequence it would look the same.
        """
        events, sequence = self._events, sequence_of(self._events)
        in_log = func.coalesce(select(func.max(events.c.global_position)).scalar_subquery(), constant(0))
        last = func.pg_sequence_last_value(sequence, type_=BigInteger)
        c = _SEQUENCES.c
        is_in_order = select((c.seqcache == 1) & (c.seqincrement > 0) & ~c.seqcycle).where(c.seqrelid == sequence)
        return select(
            func.coalesce(last, in_log).label("position"),
            in_log.label("in_log"),
            func.has_sequence_privilege(sequence, constant("USAGE, SELECT")).label("is_readable"),
            is_in_order.scalar_subquery().label("is_in_order"),
        ).subquery("issued")

    @staticmethod
    def _distance(head: ColumnElement[Any]) -> ColumnElement[Any]:
        return (head - cast(LOCKS.c.objid, BigInteger)).bitwise_and(MARK_BITS)

    def _mark(self, head: ColumnElement[Any]) -> ColumnElement[Any]:
        """The position that a mark stands for: of those with its 31 bits, the one nearest to the last one issued."""
        is_below_all = cast(LOCKS.c.objid, BigInteger) == _MARK_BELOW_ALL_AS_OID
        return case((is_below_all, constant(0)), else_=head - self._distance(head))

    def _is_mark(self, head: ColumnElement[Any]) -> ColumnElement[bool]:
        """Whether a lock is a mark of this log that counts: one above H was taken after H was read."""
        c = LOCKS.c
        is_below_all = cast(c.objid, BigInteger) == _MARK_BELOW_ALL_AS_OID
        return and_(
            c.locktype == "advisory",
            c.database == oid_of_database(),
            c.classid == oid_of(self._events),
            c.objsubid == 2,  # a lock with two int4 keys
            is_below_all | (self._distance(head) < _HALF_OF_MARKS),
        )
