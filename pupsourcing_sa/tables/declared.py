"""Tables of ours on somebody's ``MetaData``: made once, found again, and never mistaken for somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, DateTime, MetaData, Table, event, func
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.schema import SchemaConst

from pupsourcing_sa.errors import TableNameError
from pupsourcing_sa.tables.naming import Naming, check_name

__all__ = ["DeclaredTables", "check_declared", "role_of", "timestamp"]

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
        # BLANK_SCHEMA is SQLAlchemy's word for no schema where the metadata has one.
        if schema is not None and not isinstance(schema, SchemaConst):
            check_name("schema", schema, "schema name")
        self.metadata = metadata
        self._schema = schema
        self._tables: list[Table] = []

    @property
    def tables(self) -> tuple[Table, ...]:
        """All of them, in the order in which they can be created."""
        return tuple(self._tables)

    def _existing(self, name: str) -> Table | None:
        return self.metadata.tables.get(self._key(name))

    def _key(self, name: str) -> str:
        return Table(name, MetaData(schema=self.metadata.schema), schema=self._schema).key

    def _check(self, **names: str) -> None:
        """Refuse names that cannot be, before any table is added to the metadata.

        Args:
            names: the tables' names, by the arguments that they come from.
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
                    f"the metadata has a table {key!r} of its own; "
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
        """The table of that name, which has been checked; one that an earlier call made is used again."""
        table = self._existing(name)
        if table is None:
            table = Table(name, self.metadata, *build(Naming(self.metadata, name)), schema=self._schema)
            table.primary_key.info.update({_ROLE: argument, **(info or {})})
            for event_name, listener in listeners:
                event.listen(table, event_name, listener, propagate=True)  # to what to_metadata() makes of it
        self._tables.append(table)
        return table

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{role_of(table)}={table.key!r}' for table in self.tables)})"


def check_declared(tables: Sequence[DeclaredTables]) -> None:
    """Refuse what are no tables of ours, such as the class itself.

    Raises:
        TypeError: says what to write instead.
    """
    for given in tables:
        if isinstance(given, DeclaredTables):
            continue
        is_class = isinstance(given, type)
        what = f"the class {given.__name__}" if is_class else type(given).__name__
        instead = given.__name__ if is_class and issubclass(given, DeclaredTables) else "EventTables"
        raise TypeError(f"tables must be EventTables or WorkerTables, not {what}; write {instead}(…)")
