"""The Core tables of the event log and of the worker, on the caller's ``MetaData``.

They are ordinary tables: ``create_all()``, Alembic and reflection treat them like the application's own. Columns,
tables and constraints have the names that they have in pupsourcing (Go), so that its logs can be read as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine, to_instance

from pupsourcing_sa.errors import TableNameError

__all__ = ["EventTables", "WorkerTables"]

#: PostgreSQL cuts longer names off, in bytes.
_MAX_NAME_BYTES: Final = 63
_INFO_KEY: Final = "pupsourcing_sa"


def _name(table: str, suffix: str) -> str:
    """``<table>_<suffix>`` within PostgreSQL's limit, distinct for distinct tables."""
    name = f"{table}_{suffix}"
    if len(name.encode()) <= _MAX_NAME_BYTES:
        return name
    end = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}_{suffix.rpartition('_')[2]}"
    return table.encode()[: _MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end


class _Naming:
    """Names for constraints and indexes, unless the ``MetaData``'s own convention names them."""

    def __init__(self, metadata: MetaData, table: str) -> None:
        self._convention: Mapping[Any, Any] = metadata.naming_convention
        self._table = table

    def __call__(self, kind: str, kind_class: type[SchemaItem], suffix: str) -> str | None:
        convention = self._convention.get(kind, self._convention.get(kind_class))
        is_default = kind == "ix" and convention == "ix_%(column_0_label)s"  # every MetaData has this one
        if convention is None or is_default or "%(constraint_name)s" in str(convention):
            return _name(self._table, suffix)
        return None

    def primary_key(self, *columns: str) -> PrimaryKeyConstraint:
        return PrimaryKeyConstraint(*columns, name=self("pk", PrimaryKeyConstraint, "pkey"))

    def unique(self, *columns: str) -> UniqueConstraint:
        return UniqueConstraint(*columns, name=self("uq", UniqueConstraint, f"{'_'.join(columns)}_key"))

    def index(self, *columns: str, **options: Any) -> Index:
        return Index(self("ix", Index, f"{'_'.join(columns)}_idx"), *columns, **options)

    def foreign_key(self, column: str, target: Column[Any], *, ondelete: str) -> ForeignKeyConstraint:
        name = self("fk", ForeignKeyConstraint, f"{column}_fkey")
        return ForeignKeyConstraint([column], [target], name=name, ondelete=ondelete)


def _timestamp(name: str) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


class _Tables:
    def __init__(self, metadata: MetaData | None, schema: str | None) -> None:
        if metadata is None:
            metadata = MetaData()
        elif not isinstance(metadata, MetaData):
            raise TypeError(f"metadata must be a MetaData, such as Base.metadata, not {type(metadata).__name__}")
        self.metadata = metadata
        self._schema = schema

    def _table(self, argument: str, name: str, build: Callable[[_Naming], Sequence[SchemaItem]]) -> Table:
        """The table of that name; an equal one that an earlier call made is used again."""
        if not isinstance(name, str):
            raise TypeError(f"{argument} must be a str, not {type(name).__name__}")
        if not name or "\0" in name or len(name.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"{argument} must be a table name of 1 to {_MAX_NAME_BYTES} bytes, not {name!r}")
        key = Table(name, MetaData(schema=self.metadata.schema), schema=self._schema).key
        existing = self.metadata.tables.get(key)
        if existing is None:
            return Table(
                name,
                self.metadata,
                *build(_Naming(self.metadata, name)),
                schema=self._schema,
                info={_INFO_KEY: argument},
            )
        if existing.info.get(_INFO_KEY) != argument:
            raise TableNameError(
                f"the metadata has a table {key!r} of its own; "
                f'choose another name, as in {type(self).__name__}({argument}="…"), or another schema="…"'
            )
        return existing

    def __repr__(self) -> str:
        tables = (f"{name}={value.key!r}" for name, value in vars(self).items() if isinstance(value, Table))
        return f"{type(self).__name__}({', '.join(tables)})"


class EventTables(_Tables):
    """The event log: the tables ``events`` and ``aggregate_heads``.

    Args:
        metadata: where the tables are put, usually ``Base.metadata``; a new one by default.
        schema: schema of both; by default the metadata's.
        events: name of the log, which has one row for each event.
        aggregate_heads: name of the table with the current version of each aggregate.
        payload: type of the payload's column: ``LargeBinary`` (BYTEA, the default) holds any bytes; ``JSONB`` can be
            queried, and takes payloads that are JSON only.

    Raises:
        TableNameError: the metadata has a table of that name which is not ours.

    Called again with the same names, it gives the same tables.

    >>> EventTables(schema="shop")
    EventTables(events='shop.events', aggregate_heads='shop.aggregate_heads')
    """

    events: Table
    aggregate_heads: Table

    #: Whether the payload's column is JSONB.
    has_json_payload: bool

    def __init__(
        self,
        metadata: MetaData | None = None,
        *,
        schema: str | None = None,
        events: str = "events",
        aggregate_heads: str = "aggregate_heads",
        payload: type[LargeBinary | JSONB] | LargeBinary | JSONB = LargeBinary,
    ) -> None:
        super().__init__(metadata, schema)
        type_ = to_instance(payload)
        if not isinstance(type_, (LargeBinary, JSONB)):
            raise TypeError(f"payload must be LargeBinary or sqlalchemy.dialects.postgresql.JSONB, not {payload!r}")
        self.has_json_payload = isinstance(type_, JSONB)
        self.events = self._table("events", events, partial(_events, type_))
        if isinstance(self.events.c.payload.type, JSONB) != self.has_json_payload:
            raise TableNameError(f"the metadata has {self.events.key!r} already, with another type of payload")
        self.aggregate_heads = self._table("aggregate_heads", aggregate_heads, _aggregate_heads)


def _events(payload: TypeEngine[Any], named: _Naming) -> Sequence[SchemaItem]:
    return (
        # ALWAYS, and the sequence's cache left at 1: positions are issued in order, by the sequence and nothing else.
        Column("global_position", BigInteger, Identity(always=True), nullable=False),
        Column("aggregate_type", Text, nullable=False),
        Column("aggregate_id", Text, nullable=False),
        Column("aggregate_version", BigInteger, nullable=False),
        Column("event_id", Uuid, nullable=False),
        Column("event_type", Text, nullable=False),
        Column("event_version", Integer, nullable=False, server_default=text("1")),
        Column("payload", payload, nullable=False),
        Column("trace_id", Text),
        Column("correlation_id", Text),
        Column("causation_id", Text),
        Column("metadata", JSONB),
        _timestamp("created_at"),
        named.primary_key("global_position"),
        named.unique("event_id"),
        named.unique("aggregate_type", "aggregate_id", "aggregate_version"),
        named.index("aggregate_type", "global_position"),
        named.index("correlation_id", "global_position", postgresql_where=text("correlation_id IS NOT NULL")),
    )


def _aggregate_heads(named: _Naming) -> Sequence[SchemaItem]:
    return (
        Column("aggregate_type", Text, nullable=False),
        Column("aggregate_id", Text, nullable=False),
        Column("aggregate_version", BigInteger, nullable=False),
        _timestamp("updated_at"),
        named.primary_key("aggregate_type", "aggregate_id"),
    )


class WorkerTables(_Tables):
    """What the worker keeps: ``worker_nodes``, ``consumer_assignments`` and ``consumer_checkpoints``.

    Args:
        metadata: where the tables are put, usually ``Base.metadata``; a new one by default.
        schema: schema of all three; by default the metadata's.
        worker_nodes: name of the table with one row for each running worker process.
        consumer_assignments: name of the table that says which node runs which partition of which consumer.
        consumer_checkpoints: name of the table that says how far each partition of each consumer has come.

    Raises:
        TableNameError: the metadata has a table of that name which is not ours.

    Called again with the same names, it gives the same tables.
    """

    worker_nodes: Table
    consumer_assignments: Table
    consumer_checkpoints: Table

    def __init__(
        self,
        metadata: MetaData | None = None,
        *,
        schema: str | None = None,
        worker_nodes: str = "worker_nodes",
        consumer_assignments: str = "consumer_assignments",
        consumer_checkpoints: str = "consumer_checkpoints",
    ) -> None:
        super().__init__(metadata, schema)
        self.worker_nodes = self._table("worker_nodes", worker_nodes, _worker_nodes)
        self.consumer_assignments = self._table("consumer_assignments", consumer_assignments, self._assignments)
        self.consumer_checkpoints = self._table("consumer_checkpoints", consumer_checkpoints, _checkpoints)

    def _assignments(self, named: _Naming) -> Sequence[SchemaItem]:
        return (
            Column("consumer_name", Text, nullable=False),
            Column("partition", Integer, nullable=False),
            Column("worker_id", Uuid),
            _timestamp("updated_at"),
            named.primary_key("consumer_name", "partition"),
            named.foreign_key("worker_id", self.worker_nodes.c.worker_id, ondelete="SET NULL"),
        )


def _worker_nodes(named: _Naming) -> Sequence[SchemaItem]:
    return (
        Column("worker_id", Uuid, nullable=False),
        Column("hostname", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("consumers", ARRAY(Text), nullable=False),
        _timestamp("heartbeat_at"),
        _timestamp("created_at"),
        named.primary_key("worker_id"),
    )


def _checkpoints(named: _Naming) -> Sequence[SchemaItem]:
    return (
        Column("consumer_name", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        Column("last_position", BigInteger, nullable=False, server_default=text("0")),
        _timestamp("updated_at"),
        # While an event fails: which one, how often, with what, and when it is tried again (never, when parked).
        Column("failed_position", BigInteger),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("error", Text),
        Column("failed_at", DateTime(timezone=True)),
        Column("retry_at", DateTime(timezone=True)),
        Column("parked_at", DateTime(timezone=True)),
        named.primary_key("consumer_name", "partition"),
    )
