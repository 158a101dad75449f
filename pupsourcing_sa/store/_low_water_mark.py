"""The low-water mark: an advisory lock with the position above which a transaction may insert events."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CTE, BigInteger, Integer, Table, Text, case, cast, func, select, true

from pupsourcing_sa.postgres.expressions import constant, oid_of, sequence_of

__all__ = ["MARK_BELOW_ALL", "MARK_BITS", "low_water_mark"]

#: A low-water mark is an int4 with the low 31 bits of a position.
MARK_BITS: Final = constant(2**31 - 1)
#: The mark below every position. Positions do not use the sign.
MARK_BELOW_ALL: Final = constant(-1)


def low_water_mark(events: Table) -> CTE:
    """Take the transaction's low-water mark, unless it has one for this log. Returns one row, ``is_taken``.

    The mark is a shared advisory lock (oid of the log, low 31 bits of a position) on the last position that was issued
    before the transaction's first append. A transaction-local setting remembers it, so that a transaction holds one
    lock for any number of appends. A rollback to a savepoint undoes both.

    A sequence that has issued nothing, or nothing since it was restarted, has no last position. The transaction then
    takes the negative mark, which is below every position.
    """
    name = constant("pupsourcing_sa.mark_").concat(cast(oid_of(events), Text))
    # A setting that an earlier transaction of this session has set is '' and not NULL.
    is_held = func.coalesce(func.current_setting(name, true()), constant("")) != constant("")
    last = func.pg_sequence_last_value(sequence_of(events), type_=BigInteger)
    # The volatile function in its output keeps PostgreSQL from inlining this subquery. Both uses below see one value.
    issued = select(
        case((is_held, None), else_=func.coalesce(last.bitwise_and(MARK_BITS), MARK_BELOW_ALL)).label("mark")
    ).subquery("issued")
    lock = func.pg_advisory_xact_lock_shared(cast(oid_of(events), Integer), cast(issued.c.mark, Integer))
    remember = func.set_config(name, cast(issued.c.mark, Text), true())
    is_taken = case((issued.c.mark.is_(None), true()), else_=lock.is_not(None) & remember.is_not(None))
    return select(is_taken.label("is_taken")).cte("pupsourcing_mark")
