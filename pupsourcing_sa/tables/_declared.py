"""Tables of ours on somebody's ``MetaData``: made once, found again, and never mistaken for somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, DateTime, MetaData, Table, event, func
from sqlalchemy.schema import SchemaItem

from pupsourcing_sa.errors import TableNameError
from pupsourcing_sa.tables._naming import MAX_NAME_BYTES, Naming

__all__ = ["DeclaredTables", "role_of", "timestamp"]

# Marks are in the ``info`` of the primary key: Alembic writes a table's own into every migration that creates it.
_ROLE: Final = "pupsourcing_sa"


def role_of(table: Table) -> str | None:
    """Which of our tables it is, by the argument that names it, such as ``"events"``; None for somebody else's."""
    role: str | None = table.primary_key.info.get(_ROLE)
    return role


def timestamp(name: str) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


class DeclaredTables:
    """What `EventTables` and `WorkerTables` have in common."""

    def __init__(self, metadata: MetaData | None, schema: str | None) -> None:
        if metadata is None:
            metadata = MetaData()
        elif not isinstance(metadata, MetaData):
            raise TypeError(f"metadata must be a MetaData, such as Base.metadata, not {type(metadata).__name__}")
        self.metadata = metadata
        self._schema = schema

    def _table(
        self,
        argument: str,
        name: str,
        build: Callable[[Naming], Sequence[SchemaItem]],
        *,
        info: Mapping[str, Any] | None = None,
        listeners: Sequence[tuple[str, Callable[..., None]]] = (),
    ) -> Table:
        """The table of that name; an equal one that an earlier call made is used again."""
        if not isinstance(name, str):
            raise TypeError(f"{argument} must be a str, not {type(name).__name__}")
        if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"{argument} must be a table name of 1 to {MAX_NAME_BYTES} bytes, not {name!r}")
        key = Table(name, MetaData(schema=self.metadata.schema), schema=self._schema).key
        existing = self.metadata.tables.get(key)
        if existing is None:
            table = Table(name, self.metadata, *build(Naming(self.metadata, name)), schema=self._schema)
            table.primary_key.info.update({_ROLE: argument, **(info or {})})
            for event_name, listener in listeners:
                event.listen(table, event_name, listener, propagate=True)  # to what to_metadata() makes of it
            return table
        if role_of(existing) != argument:
            raise TableNameError(
                f"the metadata has a table {key!r} of its own; "
                f'choose another name, as in {type(self).__name__}({argument}="…"), or another schema="…"'
            )
        return existing

    def __repr__(self) -> str:
        tables = (f"{name}={value.key!r}" for name, value in vars(self).items() if isinstance(value, Table))
        return f"{type(self).__name__}({', '.join(tables)})"
