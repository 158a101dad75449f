"""The tables as a SQL script, for projects without Alembic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

from pupsourcing_sa.tables import EventTables, WorkerTables
from pupsourcing_sa.tables.declared import check_declared
from pupsourcing_sa.tables.guard_statements import replace_guard
from pupsourcing_sa.tables.guards import current_guards

__all__ = ["sql_script"]

_HEADER: Final = """\
-- The tables of pupsourcing_sa. The schemas must exist.
-- You can run this script again: it keeps existing tables and indexes, and replaces guards.
BEGIN;
SET LOCAL client_min_messages = warning;
"""


def sql_script(*tables: EventTables | WorkerTables) -> str:
    """Return a script for ``psql`` that creates tables in one transaction.

    Args:
        tables: the tables, as in ``sql_script(EventTables(schema="shop"), WorkerTables(schema="shop"))``.

    >>> from pupsourcing_sa import EventTables
    >>> print(sql_script(EventTables()).splitlines()[5])
    CREATE TABLE IF NOT EXISTS events (
    """
    if not tables:
        raise ValueError("tables must not be empty; write sql_script(EventTables(), WorkerTables())")
    check_declared(tables)
    # With the paramstyle "named", percent signs are not doubled.
    dialect = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]
    elements = (element for group in tables for element in _statements(group))
    statements = (str(element.compile(dialect=dialect)).strip() for element in elements)
    text = "\n".join(line.rstrip() for line in ";\n\n".join(statements).splitlines())
    return f"{_HEADER}\n{text};\n\nCOMMIT;\n"


def _statements(tables: EventTables | WorkerTables) -> Iterator[ExecutableDDLElement]:
    for table in tables.tables:
        yield CreateTable(table, if_not_exists=True)
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield CreateIndex(index, if_not_exists=True)
    if isinstance(tables, EventTables) and tables.is_guarded:
        for guard in current_guards():
            yield from replace_guard(guard, tables.events)
