"""The event log's tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Identity, Integer, LargeBinary, MetaData, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine, to_instance

from pupsourcing_sa._checks import check_type
from pupsourcing_sa.errors import TableNameError
from pupsourcing_sa.tables.declared import DeclaredTables, timestamp
from pupsourcing_sa.tables.guard_statements import LISTENERS
from pupsourcing_sa.tables.guards import GUARDED_KEY, is_guarded
from pupsourcing_sa.tables.naming import Naming

__all__ = ["EventTables"]

#: Key in the ``info`` of a log's primary key, for the name of its table of aggregate heads.
_HEADS_KEY: Final = "pupsourcing_sa_aggregate_heads"


class EventTables(DeclaredTables):
    """The event log: the tables ``events`` and ``aggregate_heads``.

    A second call with the same arguments returns the same tables.

    Args:
        metadata: the ``MetaData`` for the tables, usually ``Base.metadata``; by default a new one.
        schema: schema of both tables; by default the metadata's.
        events: name of the log, which has one row per event.
        aggregate_heads: name of the table with the current version of each aggregate.
        payload: type of the payload column. ``LargeBinary`` (BYTEA, the default) holds any bytes. ``JSONB`` can be
            queried and accepts only JSON.
        guarded: True to protect the log with triggers. They refuse UPDATE, DELETE and TRUNCATE, unless the transaction
            executes ``SET LOCAL pupsourcing_sa.allow_rewrite = 'on'``. They also take the low-water mark for SQL that
            inserts without the store. ``create_all()`` creates them with the table; for Alembic see
            `pupsourcing_sa.migrations.register`.

    Raises:
        TableNameError: the metadata already has a table of this name that belongs to the application, or that was
            declared with another ``payload``, ``guarded`` or ``aggregate_heads``. No table is added then.

    >>> EventTables(schema="shop")
    EventTables(events='shop.events', aggregate_heads='shop.aggregate_heads')
    """

    events: Table
    aggregate_heads: Table

    #: True if the payload column is JSONB.
    has_json_payload: bool
    #: True if the log has guards.
    is_guarded: bool

    def __init__(
        self,
        metadata: MetaData | None = None,
        *,
        schema: str | None = None,
        events: str = "events",
        aggregate_heads: str = "aggregate_heads",
        payload: type[LargeBinary | JSONB] | LargeBinary | JSONB = LargeBinary,
        guarded: bool = False,
    ) -> None:
        super().__init__(metadata, schema)
        type_ = to_instance(payload)
        if not isinstance(type_, (LargeBinary, JSONB)):
            raise TypeError(f"payload must be LargeBinary or sqlalchemy.dialects.postgresql.JSONB, not {payload!r}")
        self.has_json_payload = isinstance(type_, JSONB)
        check_type("guarded", guarded, bool, "a bool")
        self.is_guarded = guarded
        self._check(events=events, aggregate_heads=aggregate_heads)
        existing = self._existing(events)
        if existing is not None:
            self._check_same(existing, aggregate_heads)
        self.events = self._table(
            "events",
            events,
            partial(_events, type_),
            info={GUARDED_KEY: guarded, _HEADS_KEY: aggregate_heads},
            listeners=LISTENERS if guarded else (),
        )
        self.aggregate_heads = self._table("aggregate_heads", aggregate_heads, _aggregate_heads)

    def _check_same(self, log: Table, aggregate_heads: str) -> None:
        """Raise `TableNameError` if an earlier call declared the log with other arguments."""
        known = f"the metadata already has {log.key!r} with"
        if isinstance(log.c.payload.type, JSONB) != self.has_json_payload:
            raise TableNameError(f"{known} another type of payload; use the same everywhere")
        if is_guarded(log) != self.is_guarded:
            raise TableNameError(f"{known} guarded={not self.is_guarded}; use the same everywhere")
        heads = log.primary_key.info[_HEADS_KEY]
        if heads != aggregate_heads:
            # Two stores with different heads would issue the same version of an aggregate twice.
            raise TableNameError(f"{known} aggregate_heads={str(heads)!r}; use the same everywhere")


def _events(payload: TypeEngine[Any], named: Naming) -> Sequence[SchemaItem]:
    return (
        # GENERATED ALWAYS and CACHE 1, the default: only the sequence issues positions, in ascending order. The stable
        # position depends on it.
        Column("global_position", BigInteger, Identity(always=True), nullable=False),
        Column("aggregate_type", Text, nullable=False),
        Column("aggregate_id", Text, nullable=False),
        Column("aggregate_version", BigInteger, nullable=False, doc="from 1 and without gaps"),
        Column("event_id", Uuid, nullable=False),
        Column("event_type", Text, nullable=False),
        Column("event_version", Integer, nullable=False, server_default=text("1"), doc="of the payload's schema"),
        Column("payload", payload, nullable=False),
        Column("trace_id", Text),
        Column("correlation_id", Text),
        Column("causation_id", Text),
        Column("metadata", JSONB),
        timestamp("created_at"),
        named.primary_key("global_position"),
        named.unique("event_id"),
        named.unique("aggregate_type", "aggregate_id", "aggregate_version"),
        named.index("aggregate_type", "global_position"),
        named.index("correlation_id", "global_position", postgresql_where=text("correlation_id IS NOT NULL")),
    )


def _aggregate_heads(named: Naming) -> Sequence[SchemaItem]:
    return (
        Column("aggregate_type", Text, nullable=False),
        Column("aggregate_id", Text, nullable=False),
        Column("aggregate_version", BigInteger, nullable=False),
        timestamp("updated_at"),
        named.primary_key("aggregate_type", "aggregate_id"),
    )
