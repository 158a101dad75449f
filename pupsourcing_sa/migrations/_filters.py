"""A filter for projects in which something other than Alembic creates this library's tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pupsourcing_sa.tables import EventTables, WorkerTables
from pupsourcing_sa.tables.declared import check_declared

__all__ = ["all_but"]

_IncludeObject = Callable[[Any, Any, str, bool, Any], bool]


def all_but(
    *tables: EventTables | WorkerTables, default_schema: str = "public", include_object: _IncludeObject | None = None
) -> _IncludeObject:
    """Return a filter that excludes this library's tables from Alembic's comparison.

    Use it if the tables are not on ``target_metadata`` because something else creates them. Without the filter,
    autogenerate would drop them.

    Args:
        tables: the tables to exclude.
        default_schema: schema of tables without one; the first schema of the database's ``search_path``.
        include_object: the project's own filter, for all other objects.

    Returns:
        A function for ``context.configure(include_object=…)``.

    >>> from pupsourcing_sa import EventTables
    >>> include_object = all_but(EventTables(schema="shop"))
    """
    if not tables:
        raise ValueError("tables must not be empty; write all_but(EventTables(), WorkerTables())")
    check_declared(tables)
    excluded = {(table.schema or default_schema, table.name) for group in tables for table in group.tables}

    def include(object_: Any, name: Any, type_: str, reflected: bool, compare_to: Any) -> bool:
        if type_ == "table" and (object_.schema or default_schema, name) in excluded:
            return False
        return include_object is None or include_object(object_, name, type_, reflected, compare_to)

    return include
