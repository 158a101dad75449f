"""The statements that read events."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Text,
    cast,
    column,
    func,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.postgres.expressions import constant, parameter
from pupsourcing_sa.tables import EventTables

__all__ = ["ReadStatements"]


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

    def _row(self) -> list[ColumnElement[Any]]:
        """The columns of `PersistedEvent`'s row, in the forms that the drivers load at the least cost."""
        c = self._events.c
        return [
            c.global_position,
            c.aggregate_type,
            c.aggregate_id,
            c.aggregate_version,
            func.uuid_send(c.event_id),
            c.event_type,
            c.event_version,
            func.convert_to(cast(c.payload, Text), constant("UTF8")) if self._has_json_payload else c.payload,
            c.trace_id,
            c.correlation_id,
            c.causation_id,
            cast(c.metadata, Text),
            func.timestamptz_send(c.created_at),
        ]

    def aggregate_stream(self, *, backwards: bool) -> Select[Any]:
        """A range of one aggregate's events in version order, by the unique index on the three columns."""
        if backwards not in self._built:
            c = self._events.c
            version = c.aggregate_version
            self._built[backwards] = (
                select(*self._row())
                .where(
                    c.aggregate_type == parameter("stream_type", Text()),
                    c.aggregate_id == parameter("stream_id", Text()),
                    version.between(parameter("from_version", BigInteger()), parameter("to_version", BigInteger())),
                )
                .order_by(version.desc() if backwards else version)
                .limit(parameter("limit", BigInteger()))
            )
        return self._built[backwards]

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
        """Events by their ids, in the log's order, by the unique index on them."""
        c = self._events.c
        is_wanted = c.event_id == func.any(parameter("event_ids", ARRAY(c.event_id.type)))
        return select(*self._row()).where(is_wanted).order_by(c.global_position)

    @cached_property
    def latest_global_position(self) -> Select[Any]:
        """The highest position that this transaction sees, by the primary key; NULL in an empty log."""
        return select(func.max(self._events.c.global_position))

    @cached_property
    def following(self) -> Select[Any]:
        """The position of the first event after another position, by the primary key; NULL when there is none."""
        position = self._events.c.global_position
        return select(func.min(position)).where(position > parameter("after", BigInteger()))

    def page(self, scope: Scope, *, backwards: bool) -> Select[Any]:
        """Events of a scope with after < global_position <= up_to in the log's order, or against it; limited."""
        kind = (
            scope.aggregate_types is not None,
            scope.event_types is not None,
            scope.correlation_id is not None,
            scope.partitions > 1,
            backwards,
        )
        if kind not in self._built:
            self._built[kind] = self._page(*kind)
        return self._built[kind]

    def _page(
        self, by_aggregate_type: bool, by_event_type: bool, by_correlation: bool, by_partition: bool, backwards: bool
    ) -> Select[Any]:
        """A range of the primary key, filtered; or of the index on correlation ids, which are few and so are filtered.

        With aggregate types, a page of positions of each by the index (aggregate_type, global_position), merged, and
        then the rows of the page that is left. It costs at most types times limit, whatever share of the log the types
        have, where ``= ANY`` would make the planner choose between filtering all of the log and sorting the types.

        Two shapes keep PostgreSQL from that in a prepared statement, whose values it does not know. The range is one of
        pairs, which only this index has: of positions, it would filter the log by the primary key wherever VACUUM has
        not been yet, as at its end. And the rows are looked up one by one, by LIMIT, and never joined with all of it.
        """
        events = self._events
        after, up_to, limit = (parameter(name, BigInteger()) for name in ("after", "up_to", "limit"))

        def matches(candidates: FromClause) -> list[ColumnElement[bool]]:
            c = candidates.c
            found = []
            if by_event_type:
                found.append(c.event_type == func.any(parameter("event_types", ARRAY(Text()))))
            if by_correlation:
                found.append(c.correlation_id == parameter("correlation", Text()))
            if by_partition:
                # The sign is masked out rather than taken off by abs(), which fails on the smallest bigint.
                hashed = func.hashtextextended(c.aggregate_id, 0, type_=BigInteger).bitwise_and(constant(2**63 - 1))
                found.append(hashed % parameter("partitions", BigInteger()) == parameter("partition", BigInteger()))
            return found

        def ordered(position: ColumnElement[Any]) -> ColumnElement[Any]:
            return position.desc() if backwards else position

        if not by_aggregate_type or by_correlation:
            position = events.c.global_position
            rows = select(*self._row()).where(position > after, position <= up_to, *matches(events))
            rows = rows.order_by(ordered(position)).limit(limit)
            if by_aggregate_type:
                rows = rows.where(events.c.aggregate_type == func.any(parameter("aggregate_types", ARRAY(Text()))))
            return rows

        types = (
            func.unnest(parameter("aggregate_types", ARRAY(Text())))
            .table_valued(column("aggregate_type", Text), name="scope")
            .render_derived()
        )
        candidates = events.alias("candidates")
        key = candidates.c.aggregate_type, candidates.c.global_position
        of_type = (
            select(candidates.c.global_position)
            .where(
                tuple_(*key) > tuple_(types.c.aggregate_type, after),
                tuple_(*key) <= tuple_(types.c.aggregate_type, up_to),
                *matches(candidates),
            )
            .order_by(*map(ordered, key))
            .limit(limit)
            .lateral("pupsourcing_of_type")
        )
        merged = select(of_type.c.global_position).select_from(types.join(of_type, true()))
        page = merged.order_by(ordered(of_type.c.global_position)).limit(limit).subquery("pupsourcing_page")
        of_page = events.c.global_position == page.c.global_position
        row = select(*self._row()).where(of_page).limit(constant(1)).lateral("pupsourcing_row")
        return select(row).select_from(page.join(row, true())).order_by(ordered(page.c.global_position))
