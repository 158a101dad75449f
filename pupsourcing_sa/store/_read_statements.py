"""The statements that read events.

Each reads the events that it returns, in order, from one index, and stops at its limit. The plan must not depend on
statistics: a log that was restored or imported has none until ANALYZE has run. Without statistics, or with old ones,
PostgreSQL may expect few rows, and read and sort everything that is left of the log. Values and conditions are
therefore opaque to the planner. docs/decisions/0017 has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Double,
    FromClause,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from pupsourcing_sa._checks import MAX_BIGINT
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.postgres.expressions import constant, opaque, opaque_parameter, parameter
from pupsourcing_sa.store.pages import ByteLimit
from pupsourcing_sa.tables import EventTables

__all__ = ["ReadStatements"]

_MAX_BYTES: Final = parameter("max_bytes", BigInteger())


class ReadStatements:
    """The statements that read one log.

    Args:
        tables: the log.
    """

    def __init__(self, tables: EventTables) -> None:
        self._events = tables.events
        self._heads = tables.aggregate_heads
        self._has_json_payload = tables.has_json_payload
        self._built: dict[object, Select[Any]] = {}

    def _row(self, c: Any, fits: ColumnElement[bool] | None = None) -> list[ColumnElement[Any]]:
        """Return the columns of a `PersistedEvent`, in the forms that drivers load fastest.

        Args:
            c: columns with the names of the table's columns.
            fits: condition without which the payload and the metadata are NULL.
        """
        payload, metadata = self._payload(c), cast(c.metadata, Text)
        return [
            c.global_position,
            c.aggregate_type,
            c.aggregate_id,
            c.aggregate_version,
            func.uuid_send(c.event_id),
            c.event_type,
            c.event_version,
            payload if fits is None else case((fits, payload)).label("payload"),
            c.trace_id,
            c.correlation_id,
            c.causation_id,
            metadata if fits is None else case((fits, metadata)).label("metadata"),
            func.timestamptz_send(c.created_at),
        ]

    def _measured_row(self, c: Any) -> list[ColumnElement[Any]]:
        """Return the columns as they are stored, and the size of the event, but at most ``max_bytes``.

        PostgreSQL knows the size of a BYTEA value without reading it.
        """
        size = func.least(_size(self._payload(c), cast(c.metadata, Text)), _MAX_BYTES, type_=BigInteger)
        return [c[column.name] for column in self._events.c] + [size.label("size")]

    def _payload(self, c: Any) -> ColumnElement[Any]:
        if not self._has_json_payload:
            payload: ColumnElement[Any] = c.payload
            return payload
        return func.convert_to(cast(c.payload, Text), constant("UTF8")).label("payload")

    def _limited(
        self, build: Callable[[_Columns], Select[Any]], byte_limit: ByteLimit | None, key: str, *, backwards: bool
    ) -> Select[Any]:
        """Build a statement with a byte limit.

        Args:
            build: builds the statement that selects these columns. It must have a LIMIT, so that PostgreSQL executes it
                before the conditions on its rows.
            byte_limit: the limit, with the parameter ``max_bytes``.
            key: name of the column by which the rows are ordered.
            backwards: order them descending.
        """
        if byte_limit is None:
            return build(self._row)
        if byte_limit is ByteLimit.EACH:
            c = build(self._row).subquery("pupsourcing_rows").c
            fits = _size(c.payload, c.metadata) <= _MAX_BYTES
            contents = ("payload", "metadata")
            row = [case((fits, column)).label(column.key) if column.key in contents else column for column in c]
            return select(*row).order_by(c[key].desc() if backwards else c[key])
        rows = build(self._measured_row).subquery("pupsourcing_rows")
        order = rows.c[key].desc() if backwards else rows.c[key]
        total = func.sum(rows.c.size, type_=BigInteger).over(order_by=order, rows=(None, 0))
        c = select(rows, total.label("total")).subquery("pupsourcing_measured").c
        # An event that alone exceeds the limit counts as much as the limit, so it fits if it is the first one. The
        # condition on the rows also selects the first one that does not fit.
        limited = select(*self._row(c, c.total <= _MAX_BYTES)).where(c.total - c.size <= _MAX_BYTES)
        return limited.order_by(c[key].desc() if backwards else c[key])

    def aggregate_stream(self, *, backwards: bool, byte_limit: ByteLimit | None = None) -> Select[Any]:
        """Select events of one aggregate in the order of their versions, by the unique index on (type, id, version)."""
        kind = (backwards, byte_limit)
        if kind not in self._built:
            c = self._events.c
            version = c.aggregate_version
            lowest, highest = (opaque_parameter(name, BigInteger()) for name in ("from_version", "to_version"))

            def build(columns: _Columns) -> Select[Any]:
                return (
                    select(*columns(c))
                    .where(
                        c.aggregate_type == parameter("stream_type", Text()),
                        c.aggregate_id == parameter("stream_id", Text()),
                        version.between(lowest, highest),
                    )
                    .order_by(version.desc() if backwards else version)
                    .limit(opaque_parameter("limit", BigInteger()))
                )

            self._built[kind] = self._limited(build, byte_limit, "aggregate_version", backwards=backwards)
        return self._built[kind]

    @cached_property
    def aggregate_version(self) -> Select[Any]:
        """Select the current version of an aggregate, by the primary key of its head; no row if it does not exist."""
        heads = self._heads
        return select(heads.c.aggregate_version).where(
            heads.c.aggregate_type == parameter("stream_type", Text()),
            heads.c.aggregate_id == parameter("stream_id", Text()),
        )

    @cached_property
    def by_id(self) -> Select[Any]:
        """Select events by their ids in the log's order, by the unique index on event_id."""
        return self._having_any(self._events.c.event_id, "event_ids")

    @cached_property
    def by_position(self) -> Select[Any]:
        """Select events by their positions in the log's order, by the primary key."""
        return self._having_any(self._events.c.global_position, "positions")

    def _having_any(self, key: ColumnElement[Any], name: str) -> Select[Any]:
        c = self._events.c
        is_wanted = key == func.any(parameter(name, ARRAY(key.type)))
        return select(*self._row(c)).where(is_wanted).order_by(c.global_position)

    @cached_property
    def sample(self) -> Select[Any]:
        """Select random events of each type and version in a range of the primary key, and the number of all of them.

        An event gets a random key. Those with the smallest keys are the sample, even of several ranges.
        """
        c = self._events.c
        after, up_to, limit = (opaque_parameter(name, BigInteger()) for name in ("after", "up_to", "limit"))
        key = cast(func.random(type_=Double()) * constant(2**53), BigInteger).label("key")
        part = (
            select(c.event_type, c.event_version, c.global_position, key)
            .where(c.global_position > after, c.global_position <= up_to)
            .order_by(c.global_position)
            .limit(limit)
            .subquery("pupsourcing_part")
            .c
        )
        pair = (part.event_type, part.event_version)
        ranked = select(
            *pair,
            func.count().over(partition_by=pair).label("events"),
            part.key,
            part.global_position,
            func.max(part.global_position).over().label("last"),
            func.row_number().over(partition_by=pair, order_by=part.key).label("number"),
        ).subquery("pupsourcing_ranked")
        *columns, number = ranked.c
        return select(*columns).where(number <= parameter("size", BigInteger()))

    @cached_property
    def latest_global_position(self) -> Select[Any]:
        """Select the highest position in the snapshot, by the primary key; NULL if the log is empty."""
        return select(func.max(self._events.c.global_position))

    @cached_property
    def following(self) -> Select[Any]:
        """Select the position of the first event after a position, by the primary key; NULL if there is none."""
        position = self._events.c.global_position
        return select(func.min(position)).where(position > parameter("after", BigInteger()))

    def page(self, scope: Scope, *, backwards: bool, byte_limit: ByteLimit | None = None) -> Select[Any]:
        """Select at most ``limit`` events of a scope with after < global_position <= up_to; `_page` names the index."""
        kind = (scope.conditions, backwards)
        if (kind, byte_limit) not in self._built:
            build = partial(self._page, *kind)
            self._built[kind, byte_limit] = self._limited(build, byte_limit, "global_position", backwards=backwards)
        return self._built[kind, byte_limit]

    def _page(self, conditions: frozenset[str], backwards: bool, columns: _Columns) -> Select[Any]:
        """Build the statement for one kind of scope.

        Without aggregate types, it reads and filters a range of the primary key. With a correlation id, it reads and
        filters a range of the index on (correlation_id, global_position). With an aggregate, it reads and filters the
        aggregate's stream by the unique index on (type, id, version). Its versions have the order of the log.

        With aggregate types, it reads a page of positions for each type by the index (aggregate_type, global_position).
        It merges these pages, and looks up the rows of the resulting page. The cost is at most the number of types
        times the limit, even if the types make up most of the log. With ``= ANY``, the planner would have to choose
        between filtering the whole log and sorting all events of the types. LIMIT makes the lookup of each row a
        separate one, which the planner never turns into a join with the whole log.
        """
        events = self._events
        after, up_to, limit = (opaque_parameter(name, BigInteger()) for name in ("after", "up_to", "limit"))

        def is_in_range(position: ColumnElement[Any]) -> ColumnElement[bool]:
            return and_(position > after, position <= up_to)

        def matches(candidates: FromClause, selected: str = "") -> list[ColumnElement[bool]]:
            """Return the conditions on candidates that an index has selected by one of them."""
            c = candidates.c
            # Mask the sign out: abs() fails for the smallest bigint.
            hashed = func.hashtextextended(c.aggregate_id, 0, type_=BigInteger).bitwise_and(constant(2**63 - 1))
            partition = hashed % parameter("partitions", BigInteger())
            filters = {
                "event_types": c.event_type == func.any(parameter("event_types", ARRAY(Text()))),
                "partitions": partition == parameter("partition", BigInteger()),
                "aggregate_types": c.aggregate_type == func.any(parameter("aggregate_types", ARRAY(Text()))),
                "correlation_id": c.correlation_id == parameter("correlation", Text()),
                "since": c.created_at >= parameter("since", DateTime(timezone=True)),
                "until": c.created_at < parameter("until", DateTime(timezone=True)),
            }
            return [opaque(filters[name]) for name in filters if name in conditions and name != selected]

        def ordered(position: ColumnElement[Any]) -> ColumnElement[Any]:
            return position.desc() if backwards else position

        def of_key(key: ColumnElement[Any], value: ColumnElement[Any]) -> list[ColumnElement[bool]]:
            """Select the range of positions of one key by the index on (key, global_position).

            The comparison of pairs makes the index start and stop reading at the right entries. The primary key does
            not support it. Other indexes on the key do, but for the key alone. The planner estimates it by the key
            alone, too. The comparisons of both columns correct the estimate, so that it prefers this index.
            """
            position = key.table.c.global_position
            pair = tuple_(key, position)
            in_pairs = [pair > tuple_(value, after), pair <= tuple_(value, up_to)]
            return [*in_pairs, key.between(value, value), is_in_range(position)]

        if "aggregate" in conditions:
            position, version = events.c.global_position, events.c.aggregate_version
            of_aggregate = (
                events.c.aggregate_type == parameter("stream_type", Text()),
                events.c.aggregate_id == parameter("stream_id", Text()),
                # Every version is higher. As in `aggregate_stream`, the planner expects few rows and does not sort.
                version > select(constant(0)).scalar_subquery(),
                version <= select(constant(MAX_BIGINT)).scalar_subquery(),
            )
            rows = select(*columns(events.c)).where(*of_aggregate, opaque(is_in_range(position)), *matches(events))
            return rows.order_by(ordered(version)).limit(limit)

        if "correlation_id" in conditions:
            key, position = events.c.correlation_id, events.c.global_position
            of_id = [key.is_not(None), *of_key(key, opaque_parameter("correlation", Text()))]
            rows = select(*columns(events.c)).where(*of_id, *matches(events, "correlation_id"))
            return rows.order_by(ordered(key), ordered(position)).limit(limit)

        if "aggregate_types" not in conditions:
            position = events.c.global_position
            rows = select(*columns(events.c)).where(is_in_range(position), *matches(events))
            return rows.order_by(ordered(position)).limit(limit)

        types = (
            func.unnest(parameter("aggregate_types", ARRAY(Text())))
            .table_valued(column("aggregate_type", Text), name="scope")
            .render_derived()
        )
        candidates = events.alias("candidates")
        c = candidates.c
        of_type = (
            select(c.global_position)
            .where(*of_key(c.aggregate_type, types.c.aggregate_type), *matches(candidates, "aggregate_types"))
            .order_by(ordered(c.aggregate_type), ordered(c.global_position))
            .limit(limit)
            .lateral("pupsourcing_of_type")
        )
        merged = select(of_type.c.global_position).select_from(types.join(of_type, true()))
        page = merged.order_by(ordered(of_type.c.global_position)).limit(limit).subquery("pupsourcing_page")
        of_page = events.c.global_position == page.c.global_position
        row = select(*columns(events.c)).where(of_page).limit(constant(1)).lateral("pupsourcing_row")
        # The position of the page, by which its rows are ordered already.
        merged_position = page.c.global_position
        others = [column for column in row.c if column.key != merged_position.key]
        joined = select(merged_position, *others).select_from(page.join(row, true()))
        return joined.order_by(ordered(merged_position))


#: Returns the columns that a statement selects, from the columns of the log.
_Columns: TypeAlias = Callable[[Any], list[ColumnElement[Any]]]


def _size(payload: ColumnElement[Any], metadata: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the bytes of an event, from its payload in bytes and its metadata as text."""
    return func.octet_length(payload) + func.coalesce(func.octet_length(metadata), constant(0))
