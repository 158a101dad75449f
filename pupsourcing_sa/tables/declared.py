"""Declaration of this library's tables on the application's ``MetaData``, and a mark that identifies them there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, DateTime, MetaData, Table, event, func
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.schema import SchemaConst

from pupsourcing_sa._checks import check_name, check_type
from pupsourcing_sa.errors import TableNameError
from pupsourcing_sa.tables.naming import Naming

__all__ = ["DeclaredTables", "check_declared", "role_of", "timestamp"]

# Key of the mark in the ``info`` of the primary key. Alembic would render the ``info`` of a table in migrations.
_ROLE: Final = "pupsourcing_sa"


def role_of(table: Table) -> str | None:
    """Return the argument that names the table, such as ``"events"``; ``None`` for a table of the application."""
    role: str | None = table.primary_key.info.get(_ROLE)
    return role


def timestamp(name: str) -> Column[Any]:
    """Return a column for a point in time, by default the transaction's start."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


class DeclaredTables:
    """Base of `EventTables` and `WorkerTables`."""

    def __init__(self, metadata: MetaData | None, schema: str | None) -> None:
        if metadata is None:
            metadata = MetaData()
        check_type("metadata", metadata, MetaData, "a MetaData, such as Base.metadata")
        # SQLAlchemy's BLANK_SCHEMA means no schema even if the metadata has one.
        if schema is not None and not isinstance(schema, SchemaConst):
            check_name("schema", schema, "schema name")
        self.metadata = metadata
        self._schema = schema
        self._tables: list[Table] = []

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables, in an order in which they can be created."""
        return tuple(self._tables)

    def _existing(self, name: str) -> Table | None:
        return self.metadata.tables.get(self._key(name))

    def _key(self, name: str) -> str:
        return Table(name, MetaData(schema=self.metadata.schema), schema=self._schema).key

    def _check(self, **names: str) -> None:
        """Raise an error for invalid or conflicting names, before any table is added to the metadata.

        Args:
            names: the tables' names, by argument.
        """
        arguments: dict[str, str] = {}
        for argument, name in names.items():
            check_name(argument, name, "table name")
            key = self._key(name)
            if key in arguments:
                raise TableNameError(f"{arguments[key]} and {argument} must be different tables, not both {key!r}")
            arguments[key] = argument
            existing = self._existing(name)
            if existing is not None and role_of(existing) != argument:
                raise TableNameError(
                    f"the metadata already has another table {key!r}; "
                    f'choose another name, as in {type(self).__name__}({argument}="…"), or another schema="…"'
                )

    def _table(
        self,
        argument: str,
        name: str,
        build: Callable[[Naming], Sequence[SchemaItem]],
        *,
        info: Mapping[str, Any] | None = None,
        listeners: Sequence[tuple[str, Callable[..., None]]] = (),
    ) -> Table:
        """Return the table of a checked name. Declare it unless an earlier call did."""
        table = self._existing(name)
        if table is None:
            table = Table(name, self.metadata, *build(Naming(self.metadata, name)), schema=self._schema)
            table.primary_key.info.update({_ROLE: argument, **(info or {})})
            for event_name, listener in listeners:
                # With `propagate`, copies by to_metadata() have the listener, too.
                event.listen(table, event_name, listener, propagate=True)
        self._tables.append(table)
        return table

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{role_of(table)}={table.key!r}' for table in self.tables)})"


def check_declared(tables: Sequence[DeclaredTables]) -> None:
    """Refuse values other than `EventTables` and `WorkerTables` objects, such as the class itself.

    Raises:
        TypeError: an argument has another type. The message shows the correct call.
    """
    for value in tables:
        if isinstance(value, DeclaredTables):
            continue
        is_class = isinstance(value, type)
        passed = f"the class {value.__name__}" if is_class else type(value).__name__
        class_name = value.__name__ if is_class and issubclass(value, DeclaredTables) else "EventTables"
        raise TypeError(f"tables must be EventTables or WorkerTables, not {passed}; write {class_name}(…)")
