"""The statements that read the stable position and the transactions that hold it back."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import OID

from pupsourcing_sa.postgres.catalog import ACTIVITY, INHERITANCE, LOCKS, PREPARED, SUBSCRIBED, catalog_table
from pupsourcing_sa.postgres.expressions import constant, oid_of, oid_of_database, sequence_of, server_identity
from pupsourcing_sa.postgres.lock_holders import HOLDER_COLUMNS
from pupsourcing_sa.store._low_water_mark import MARK_BITS
from pupsourcing_sa.tables import EventTables

__all__ = ["PositionStatements", "sequence_state"]

#: The mark below every position as pg_locks shows it: an unsigned oid with the same bits.
_MARK_BELOW_ALL_AS_OID: Final = constant(2**32 - 1)
#: Half of the number of different marks.
_HALF_OF_MARKS: Final = constant(2**30)

_SEQUENCES: Final = catalog_table(
    "pg_sequence", seqrelid=OID, seqcache=BigInteger, seqincrement=BigInteger, seqcycle=Boolean
)


def sequence_state(sequence: str) -> Select[Any]:
    """Select the last value of a sequence, or the next one if it has not been called since it was restarted.

    Args:
        sequence: its quoted name.
    """
    # A colon would begin a parameter.
    name = sequence.replace(":", r"\:")
    columns: list[ColumnElement[Any]] = [column("last_value", BigInteger), column("is_called", Boolean)]
    return select(*columns).select_from(text(name))


class PositionStatements:
    """The statements for one log.

    Args:
        tables: the log.
    """

    def __init__(self, tables: EventTables) -> None:
        self._events = tables.events

    @cached_property
    def stable(self) -> Select[Any]:
        """Select the stable position, the last position, and the facts that decide if they are reliable.

        The stable position is the last position in the log, or the smallest mark if that is lower. The primary key
        finds the last position.

        PostgreSQL must read the last position before the locks. Otherwise it would miss an append that takes its mark
        between the two. The transaction's snapshot is older than both. Two details enforce this order. PostgreSQL
        cannot inline the subquery for the last positions, because its output is volatile. The subquery for the smallest
        mark decodes marks with its result, so it can only run afterwards.

        The last position issued is not returned. Positions that were rolled back may not have been flushed to disk, and
        after a crash the sequence may issue them again. A commit flushes its positions and all positions before.
        """
        issued = self._issued.c
        smallest = select(func.min(self._mark(issued.position))).where(self._is_mark(issued.position))
        return select(
            func.least(issued.in_log, smallest.correlate(self._issued).scalar_subquery()).label("stable"),
            issued.in_log.label("last"),
            issued.is_readable,
            issued.is_in_order,
            issued.last_issued,
            self._is_replicated.label("is_replicated"),
            func.current_setting(constant("transaction_isolation")).label("isolation"),
            func.pg_is_in_recovery().label("is_in_recovery"),
            server_identity().label("server_identity"),
        )

    @cached_property
    def blocking(self) -> Select[Any]:
        """Select the transactions that hold marks, the lowest mark first: of backends, and prepared transactions."""
        last = self._issued.c.position
        # Every transaction holds a lock on its own id. For a prepared transaction, the id is the key of
        # pg_prepared_xacts.
        own = LOCKS.alias("own")
        is_own = and_(
            LOCKS.c.pid.is_(None),
            own.c.pid.is_(None),
            own.c.locktype == "transactionid",
            own.c.virtualtransaction == LOCKS.c.virtualtransaction,
        )
        return (
            select(
                self._mark(last).label("mark"),
                LOCKS.c.pid,
                *HOLDER_COLUMNS,
            )
            .select_from(self._issued)
            .join(LOCKS, self._is_mark(last))
            .outerjoin(ACTIVITY, ACTIVITY.c.pid == LOCKS.c.pid)
            .outerjoin(own, is_own)
            .outerjoin(PREPARED, PREPARED.c.transaction == own.c.transactionid)
            .order_by(self._mark(last), LOCKS.c.pid)
        )

    @cached_property
    def server_identity(self) -> Select[Any]:
        """Select the server identity alone."""
        return select(server_identity())

    @cached_property
    def sequence(self) -> Select[Any]:
        """Select the quoted name of the sequence, and if this role may read its state."""
        sequence = sequence_of(self._events)
        may_read = func.has_sequence_privilege(sequence, constant("SELECT"))
        return select(cast(sequence, Text).label("name"), may_read.label("is_readable"))

    @cached_property
    def last_issued(self) -> Select[Any]:
        """Select the last position issued; NULL if the sequence has issued nothing since it was restarted."""
        return select(func.pg_sequence_last_value(sequence_of(self._events), type_=BigInteger).label("last_issued"))

    @cached_property
    def replicated(self) -> Select[Any]:
        """Select if a subscription fills the log."""
        return select(self._is_replicated.label("is_replicated"))

    @property
    def _is_replicated(self) -> ColumnElement[bool]:
        """A condition: a subscription fills the log, or a partition of it. Every role can read these catalogs."""
        log = oid_of(self._events)
        partitions = select(INHERITANCE.c.inhrelid).where(INHERITANCE.c.inhparent == log)
        subscribed = SUBSCRIBED.c.srrelid
        return exists().where(or_(subscribed == log, subscribed.in_(partitions)))

    @cached_property
    def _issued(self) -> FromClause:
        """The last position issued, the last position in the log, and the state of the sequence.

        A sequence that has issued nothing since it was created or restarted has no last value. RESTART waits for the
        transactions that use the sequence, so no event in the log is uncommitted then, and the last position in the log
        takes its place. A role without the privilege to read the sequence sees no last value either.
        """
        events, sequence = self._events, sequence_of(self._events)
        in_log = func.coalesce(select(func.max(events.c.global_position)).scalar_subquery(), constant(0))
        last = func.pg_sequence_last_value(sequence, type_=BigInteger)
        c = _SEQUENCES.c
        is_in_order = select((c.seqcache == 1) & (c.seqincrement > 0) & ~c.seqcycle).where(c.seqrelid == sequence)
        return select(
            func.coalesce(last, in_log).label("position"),
            last.label("last_issued"),
            in_log.label("in_log"),
            func.has_sequence_privilege(sequence, constant("USAGE, SELECT")).label("is_readable"),
            is_in_order.scalar_subquery().label("is_in_order"),
        ).subquery("issued")

    @staticmethod
    def _distance(last: ColumnElement[Any]) -> ColumnElement[Any]:
        return (last - cast(LOCKS.c.objid, BigInteger)).bitwise_and(MARK_BITS)

    def _mark(self, last: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the position of a mark: among those with its 31 bits, the nearest one to the last position issued."""
        is_below_all = cast(LOCKS.c.objid, BigInteger) == _MARK_BELOW_ALL_AS_OID
        return case((is_below_all, constant(0)), else_=last - self._distance(last))

    def _is_mark(self, last: ColumnElement[Any]) -> ColumnElement[bool]:
        """Return a condition: the lock is a mark of this log. A mark above ``last`` was taken later and is ignored."""
        c = LOCKS.c
        is_below_all = cast(c.objid, BigInteger) == _MARK_BELOW_ALL_AS_OID
        return and_(
            c.locktype == "advisory",
            c.database == oid_of_database(),
            c.classid == oid_of(self._events),
            c.objsubid == 2,  # a lock with two int4 keys
            is_below_all | (self._distance(last) < _HALF_OF_MARKS),
        )
