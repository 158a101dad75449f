"""The low-water mark: an advisory lock with the position above which a transaction may insert events."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Table,
    Text,
    case,
    cast,
    false,
    func,
    select,
    true,
)

from pupsourcing_sa.postgres.expressions import constant, oid_of, sequence_of

__all__ = ["MARK_BELOW_ALL", "MARK_BITS", "has_event_above", "low_water_mark"]

#: A low-water mark is an int4 with the low 31 bits of a position.
MARK_BITS: Final = constant(2**31 - 1)
#: The mark below every position. Positions do not use the sign.
MARK_BELOW_ALL: Final = constant(-1)
#: Size of a log in bytes that any plan reads in less than 0.1 ms: about 500 events.
_SMALL_LOG: Final = constant(2**17)


def low_water_mark(events: Table) -> CTE:
    """Take the transaction's low-water mark, unless it has one for this log. Returns one row, ``is_taken``.

    The mark is a shared advisory lock (oid of the log, low 31 bits of a position) on the last position that was issued
    before the transaction's first append. A transaction-local setting remembers it, so that a transaction holds one
    lock for any number of appends. A rollback to a savepoint undoes both.

    A sequence that has issued nothing, or nothing since it was restarted, has no last position. The transaction then
    takes the negative mark, which is below every position.

    ``is_taken`` is false if the sequence is behind the log, or if this role cannot see that. Nothing is locked or
    remembered then.
    """
    name, checked = _setting("mark", events), _setting("checked", events)
    is_held = _value(name).is_not(None)
    last = func.pg_sequence_last_value(sequence_of(events), type_=BigInteger)
    # The volatile function in its output keeps PostgreSQL from inlining this subquery. Every use below sees one value.
    issued = select(is_held.label("is_held"), case((is_held, None), else_=last).label("last")).subquery(
        "pupsourcing_issued"
    )
    mark = func.coalesce(issued.c.last.bitwise_and(MARK_BITS), MARK_BELOW_ALL)
    lock = func.pg_advisory_xact_lock_shared(cast(oid_of(events), Integer), cast(mark, Integer))
    remember = func.set_config(name, cast(mark, Text), true())
    remember_check = func.set_config(checked, func.coalesce(cast(issued.c.last, Text), constant("")), false())
    is_taken = case(
        (issued.c.is_held, true()),
        (_is_behind(events, issued.c.last, cast(_value(checked), BigInteger)), false()),
        else_=lock.is_not(None) & remember.is_not(None) & remember_check.is_not(None),
    )
    return select(is_taken.label("is_taken")).cte("pupsourcing_mark")


def _setting(name: str, events: Table) -> ColumnElement[Any]:
    """Return the name of a setting that belongs to this log."""
    return constant(f"pupsourcing_sa.{name}_").concat(cast(oid_of(events), Text))


def _value(setting: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the value of a setting; NULL if it is not set."""
    # A setting that an earlier transaction of this session has set locally is '' and not NULL.
    return func.nullif(func.current_setting(setting, true()), constant(""))


def has_event_above(events: Table, last: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return a condition: the snapshot has an event above the last position issued; false if that is NULL.

    The sequence is then behind the log. Otherwise every position in the snapshot was issued before the snapshot was
    taken, and ``last`` is read later.

    The primary key finds the event. To compare with the last position in the log would be slow beside a large append in
    flight: its events are in the index, and PostgreSQL would step over all of them to find a committed one.
    """
    above = select(func.min(events.c.global_position)).where(events.c.global_position > last)
    return above.scalar_subquery().is_not(None)


def _is_behind(events: Table, last: ColumnElement[Any], checked: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return a condition: the sequence is behind the log.

    A large log is not read again if this session has found the sequence at ``checked``, not behind, and it has not gone
    back. A connection may have planned this statement when the log was empty, with a sequential scan, and PostgreSQL
    keeps such a plan until the log is analyzed.

    A sequence without a last position can be behind, too, such as a new one beside restored events. Only ``nextval``
    shows its next position. It is called if the log has an event, and at most once after the sequence was restarted.
    The append uses later positions only, so this one may be that of the last event.

    An identity column needs no privilege on its sequence. A role without one sees no last position, so it is refused.
    """
    sequence = sequence_of(events)
    in_log = select(func.max(events.c.global_position)).scalar_subquery()
    may_use = func.has_sequence_privilege(sequence, constant("USAGE"))
    is_large = func.pg_relation_size(oid_of(events)) > _SMALL_LOG
    return case(
        ((last >= checked) & is_large, false()),
        (last.is_not(None), has_event_above(events, last)),
        (~may_use, true()),
        (in_log.is_(None), false()),
        else_=func.nextval(sequence, type_=BigInteger) < in_log,
    )
