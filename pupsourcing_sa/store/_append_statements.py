"""The statements that append.

Each is one statement in three steps: take the low-water mark, write the heads of the aggregates, insert the events.
PostgreSQL runs the steps in this order because each step reads the result of the previous one.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Delete,
    Dialect,
    FromClause,
    Insert,
    Integer,
    LargeBinary,
    Select,
    TableValuedAlias,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    func,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB, TIMESTAMP, UUID, insert

from pupsourcing_sa.expected import AnyVersion, ExpectedVersion
from pupsourcing_sa.postgres.expressions import constant, parameter, sequence_of
from pupsourcing_sa.store._low_water_mark import has_event_above, low_water_mark
from pupsourcing_sa.tables import EventTables

__all__ = ["AppendStatements"]

# Their names are not those of columns, which SQLAlchemy reserves for the values that an UPDATE sets.
_STREAM_TYPE: Final = parameter("stream_type", Text())
_STREAM_ID: Final = parameter("stream_id", Text())
_COUNT: Final = parameter("count", BigInteger())

#: Number of the event in the append, from 1.
_NUMBER: Final[dict[str, Any]] = {"number": BigInteger}
#: Number of the event's aggregate in the append, and number of the event among those of its aggregate, both from 1.
_PLACE: Final[dict[str, Any]] = {"stream": Integer, "place": BigInteger}
#: Fields of each event except the payload.
_EVENT_COLUMNS: Final[dict[str, Any]] = {
    "event_id": UUID,
    "event_type": Text,
    "event_version": Integer,
    "trace_id": Text,
    "correlation_id": Text,
    "causation_id": Text,
    "metadata": JSON,
    "created_at": TIMESTAMP(timezone=True),
}
#: Fields of each aggregate. ``stream`` is its number, from 1, and ``count`` the number of its events.
_STREAM_COLUMNS: Final[dict[str, Any]] = {
    "stream": Integer,
    "stream_type": Text,
    "stream_id": Text,
    "expected": BigInteger,
    "count": BigInteger,
}


class _Bytes(LargeBinary):
    """A type that passes bytes to the driver unchanged. Every supported driver accepts them."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> None:
        return None


def _json_rows(name: str, **columns: Any) -> TableValuedAlias:
    """Return a table with the rows of a JSON array, which is the parameter ``name``.

    One text for all rows is a third faster than an array per column. Most of the client's cost of an append would be
    psycopg's work for each value of an array. In the JSON, payloads would be twice as large. They are sent as one value
    of bytes instead, and each event has a range of it.
    """
    rows = func.json_to_recordset(cast(parameter(name, Text()), JSON))
    valued = rows.table_valued(*(column(key, type_) for key, type_ in columns.items()))
    return valued.render_derived(name=f"given_{name}", with_types=True)


def _is_same_aggregate(row: FromClause, given: FromClause) -> ColumnElement[bool]:
    """Return a condition: the row belongs to the given aggregate."""
    return and_(row.c.aggregate_type == given.c.stream_type, row.c.aggregate_id == given.c.stream_id)


class AppendStatements:
    """The statements that append to one log.

    Args:
        tables: the log.
        notify_channel: the channel that every append notifies, or ``None``.
    """

    def __init__(self, tables: EventTables, notify_channel: str | None) -> None:
        self._events = tables.events
        self._heads = tables.aggregate_heads
        self._notify_channel = notify_channel
        self._has_json_payload = tables.has_json_payload

    # -- one aggregate -----------------------------------------------------------------------------------------

    def one(self, expected: ExpectedVersion) -> Insert:
        """Append to one aggregate. Returns (global_position, aggregate_version) of each event, no row on a conflict.

        The primary key finds the head. The statement waits there for a concurrent writer of the same aggregate.
        """
        if isinstance(expected, AnyVersion):
            return self._to_any
        return self._to_exact if expected.version else self._to_none

    @cached_property
    def _to_none(self) -> Insert:
        return self._to_one(self._insert_head().on_conflict_do_nothing())

    @cached_property
    def _to_any(self) -> Insert:
        heads = self._heads
        return self._to_one(
            self._insert_head().on_conflict_do_update(
                index_elements=[heads.c.aggregate_type, heads.c.aggregate_id],
                set_={"aggregate_version": heads.c.aggregate_version + _COUNT, "updated_at": func.now()},
            )
        )

    @cached_property
    def _to_exact(self) -> Insert:
        heads, mark = self._heads, low_water_mark(self._events)
        return self._to_one(
            heads.update()
            .where(
                heads.c.aggregate_type == _STREAM_TYPE,
                heads.c.aggregate_id == _STREAM_ID,
                # The mark is always taken. Reading that here makes the update wait for it.
                heads.c.aggregate_version == case((mark.c.is_taken, parameter("expected_version", BigInteger()))),
            )
            .values(aggregate_version=heads.c.aggregate_version + _COUNT, updated_at=func.now())
        )

    def _insert_head(self) -> Any:
        mark = low_water_mark(self._events)
        return insert(self._heads).from_select(
            ["aggregate_type", "aggregate_id", "aggregate_version"],
            select(_STREAM_TYPE, _STREAM_ID, _COUNT).where(mark.c.is_taken),
        )

    def _to_one(self, write_head: Any) -> Insert:
        head = write_head.returning(self._heads.c.aggregate_version, *self._notify()).cte("pupsourcing_head")
        given = self._given_events(_NUMBER)
        first = head.c.aggregate_version - _COUNT
        return self._insert_events(
            given, _STREAM_TYPE, _STREAM_ID, first + given.c.number, head.join(given, true())
        ).returning(self._events.c.global_position, self._events.c.aggregate_version)

    # -- several aggregates ------------------------------------------------------------------------------------

    @cached_property
    def many(self) -> CompoundSelect[Any]:
        """Append to several aggregates. Returns (number, new version) of each one, and (0, position) of each event.

        One pass writes the heads in the order of their primary key, existing or new. Two appends to the same aggregates
        therefore wait for each other and never deadlock.

        If the snapshot shows a conflict, no head is written and no row returned. If a concurrent writer causes a
        conflict during the pass, no event is written. The heads that were written are returned, and `undo` must restore
        them.
        """
        events, heads, mark = self._events, self._heads, low_water_mark(self._events)
        wanted = select(_json_rows("streams", **_STREAM_COLUMNS)).cte("pupsourcing_wanted")
        conflict = (
            select(wanted.c.count)
            .select_from(wanted.outerjoin(heads, _is_same_aggregate(heads, wanted)))
            .where(wanted.c.expected != func.coalesce(heads.c.aggregate_version, 0))
        )
        fits = select(true().label("fits")).where(mark.c.is_taken, ~exists(conflict)).cte("pupsourcing_fits")
        write = insert(heads).from_select(
            ["aggregate_type", "aggregate_id", "aggregate_version"],
            select(wanted.c.stream_type, wanted.c.stream_id, wanted.c.count)
            .select_from(wanted.join(fits, true()))
            .order_by(wanted.c.stream_type, wanted.c.stream_id),
        )
        new = write.excluded
        any_version = select(wanted.c.stream_type, wanted.c.stream_id).where(wanted.c.expected.is_(None))
        exact = select(wanted.c.stream_type, wanted.c.stream_id, wanted.c.expected)
        written_heads = (
            write.on_conflict_do_update(
                index_elements=[heads.c.aggregate_type, heads.c.aggregate_id],
                set_={
                    "aggregate_version": heads.c.aggregate_version + new.aggregate_version,
                    "updated_at": func.now(),
                },
                where=or_(
                    tuple_(new.aggregate_type, new.aggregate_id).in_(any_version),
                    tuple_(new.aggregate_type, new.aggregate_id, heads.c.aggregate_version).in_(exact),
                ),
            )
            .returning(heads.c.aggregate_type, heads.c.aggregate_id, heads.c.aggregate_version, *self._notify())
            .cte("pupsourcing_head")
        )
        head = (
            select(wanted, written_heads.c.aggregate_version)
            .join_from(wanted, written_heads, _is_same_aggregate(written_heads, wanted))
            .cte("pupsourcing_written_heads")
        )
        as_expected = func.coalesce(head.c.expected + head.c.count, head.c.aggregate_version)
        is_complete = (
            select(func.count()).select_from(head).where(head.c.aggregate_version == as_expected).scalar_subquery()
            == select(func.count()).select_from(wanted).scalar_subquery()
        )
        given = self._given_events(_PLACE | _NUMBER)
        written = (
            self._insert_events(
                given,
                head.c.stream_type,
                head.c.stream_id,
                head.c.aggregate_version - head.c.count + given.c.place,
                given.join(head, and_(given.c.stream == head.c.stream, is_complete)),
            )
            .returning(events.c.global_position)
            .cte("pupsourcing_written_events")
        )
        # Not a join: PostgreSQL does not know the number of rows, and would compare each event with each aggregate.
        return union_all(
            select(head.c.stream, head.c.aggregate_version.label("value")),
            select(constant(0), written.c.global_position),
        )

    @cached_property
    def undo(self) -> Delete:
        """Restore the heads that `many` has written and still locks, by their primary key."""
        heads = self._heads
        given = select(_json_rows("streams", **_STREAM_COLUMNS)).cte("pupsourcing_given")
        is_given = _is_same_aggregate(heads, given)
        lowered = (
            heads.update()
            .where(is_given, heads.c.aggregate_version > given.c.count)
            .values(aggregate_version=heads.c.aggregate_version - given.c.count)
            .returning(heads.c.aggregate_id)
            .cte("pupsourcing_lowered")
        )
        return heads.delete().where(is_given, heads.c.aggregate_version == given.c.count).add_cte(lowered)

    @cached_property
    def refusal(self) -> Select[Any]:
        """Explain an append that wrote nothing: the version of one aggregate, and the state of the sequence."""
        heads = self._heads
        version = select(heads.c.aggregate_version).where(
            heads.c.aggregate_type == _STREAM_TYPE, heads.c.aggregate_id == _STREAM_ID
        )
        last = func.pg_sequence_last_value(sequence_of(self._events), type_=BigInteger)
        may_use = func.has_sequence_privilege(sequence_of(self._events), constant("USAGE"))
        # The volatile function in its output keeps PostgreSQL from inlining this subquery.
        issued = select(last.label("last")).subquery("pupsourcing_issued")
        columns: list[ColumnElement[Any]] = [
            func.coalesce(version.scalar_subquery(), constant(0)).label("version"),
            has_event_above(self._events, issued.c.last).label("is_behind"),
            or_(issued.c.last.is_not(None), may_use).label("is_readable"),
        ]
        return select(*columns)

    # -- common parts ------------------------------------------------------------------------------------------

    def _notify(self) -> list[ColumnElement[Any]]:
        """Notify the channel once per written head. PostgreSQL sends equal notifications once, after the commit."""
        if self._notify_channel is None:
            return []
        return [cast(func.pg_notify(self._notify_channel, ""), Text).label("notified")]

    def _given_events(self, numbers: dict[str, Any]) -> TableValuedAlias:
        payload: dict[str, Any] = {"payload": JSON} if self._has_json_payload else {"start": Integer, "size": Integer}
        return _json_rows("events", **numbers, **_EVENT_COLUMNS, **payload)

    def _insert_events(
        self,
        given: TableValuedAlias,
        stream_type: ColumnElement[Any],
        stream_id: ColumnElement[Any],
        version: ColumnElement[Any],
        joined: FromClause,
    ) -> Insert:
        if self._has_json_payload:
            payload: ColumnElement[Any] = cast(given.c.payload, JSONB)
        else:
            payload = func.substring(cast(parameter("payloads", _Bytes()), _Bytes()), given.c.start, given.c.size)
        values: dict[str, ColumnElement[Any]] = {
            "aggregate_type": stream_type,
            "aggregate_id": stream_id,
            "aggregate_version": version,
            **{name: given.c[name] for name in _EVENT_COLUMNS if name != "metadata"},
            "metadata": cast(given.c.metadata, JSONB),
            "payload": payload,
        }
        rows = select(*values.values()).select_from(joined).order_by(given.c.number)
        return self._events.insert().from_select(list(values), rows)
