"""Which objects autogenerate leaves alone."""

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
    """A filter for Alembic that keeps tables of ours from being compared, and so from being dropped.

    It is for projects that do not have them on their ``target_metadata``, because something else creates them.

    Args:
        tables: the tables to leave alone.
        default_schema: the schema that tables without one are in, the first of the database's ``search_path``.
        include_object: a filter of the project's own, which has to agree to all the others.

    Returns:
        What ``context.configure(include_object=…)`` takes.

    >>> from pupsourcing_sa import EventTables
    >>> include_object = all_but(EventTables(schema="shop"))
    """
    if not tables:
        raise ValueError("tables must name what to leave alone, as in all_but(EventTables(), WorkerTables())")
    check_declared(tables)
    ours = {(table.schema or default_schema, table.name) for each in tables for table in each.tables}

    def include(object_: Any, name: Any, type_: str, reflected: bool, compare_to: Any) -> bool:
        if type_ == "table" and (object_.schema or default_schema, name) in ours:
            return False
        return include_object is None or include_object(object_, name, type_, reflected, compare_to)

    return include
