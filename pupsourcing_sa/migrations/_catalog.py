"""Catalog queries of autogenerate, for objects that Alembic does not reflect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Integer, Select, Text, and_, cast, select
from sqlalchemy.dialects.postgresql import ARRAY, CHAR, OID

from pupsourcing_sa.postgres.catalog import catalog_table
from pupsourcing_sa.tables.guards import Guard, known_guards

__all__ = ["ExistingGuard", "TableKey", "read_guards", "table_key"]

#: A schema, None for the default one, and the name of a table in it.
TableKey = tuple[str | None, str]


def table_key(dialect: Dialect, schema: str | None, name: str) -> TableKey:
    """Return a key that is the same for a table on the metadata and for its reflection by Alembic."""
    return None if schema == dialect.default_schema_name else schema, name


@dataclass(frozen=True, slots=True)
class ExistingGuard:
    """A guard in the database.

    Attributes:
        schema: schema of the log.
        table_name: name of the log.
        name: name of the guard.
        guard: its version; ``None`` if it matches no version or is disabled.
    """

    schema: str
    table_name: str
    name: str
    guard: Guard | None


_TRIGGERS: Final = catalog_table(
    "pg_trigger",
    tgname=Text,
    tgrelid=OID,
    tgfoid=OID,
    tgtype=Integer,
    tgattr=Text,
    tgenabled=CHAR,
    tgqual=Text,
)
_TABLES: Final = catalog_table("pg_class", oid=OID, relname=Text, relnamespace=OID)
_FUNCTIONS: Final = catalog_table(
    "pg_proc", oid=OID, proname=Text, pronamespace=OID, prosrc=Text, proconfig=ARRAY(Text)
)
_SCHEMAS: Final = catalog_table("pg_namespace", oid=OID, nspname=Text)


def _guard_triggers() -> Select[Any]:
    """Return a SELECT of all triggers with a guard's name and of their functions. It scans pg_trigger."""
    schema, function_schema = _SCHEMAS.alias("schema"), _SCHEMAS.alias("function_schema")
    return (
        select(
            schema.c.nspname.label("schema"),
            _TABLES.c.relname.label("table_name"),
            _TRIGGERS.c.tgname.label("trigger_name"),
            _TRIGGERS.c.tgtype.label("trigger_type"),
            and_(
                # O and A fire in ordinary sessions; D is disabled, and R fires for replication only. The cast is for
                # PostgreSQL 12, which cannot compare a "char" with a list of VARCHAR.
                cast(_TRIGGERS.c.tgenabled, Text).in_(["O", "A"]),
                # No WHEN clause, and no column list as in UPDATE OF.
                _TRIGGERS.c.tgqual.is_(None),
                cast(_TRIGGERS.c.tgattr, Text) == "",
            ).label("is_firing"),
            # ALTER FUNCTION … SET could permanently turn on the setting that allows rewriting.
            _FUNCTIONS.c.proconfig.is_(None).label("is_plain"),
            function_schema.c.nspname.label("function_schema"),
            _FUNCTIONS.c.proname.label("function_name"),
            _FUNCTIONS.c.prosrc.label("body"),
        )
        .join(_TABLES, _TABLES.c.oid == _TRIGGERS.c.tgrelid)
        .join(schema, schema.c.oid == _TABLES.c.relnamespace)
        .join(_FUNCTIONS, _FUNCTIONS.c.oid == _TRIGGERS.c.tgfoid)
        .join(function_schema, function_schema.c.oid == _FUNCTIONS.c.pronamespace)
        .where(_TRIGGERS.c.tgname.in_(sorted({guard.trigger_name for guard in known_guards()})))
    )


def read_guards(connection: Connection) -> list[ExistingGuard]:
    """Return the guards of all logs in the database."""
    guards = []
    for row in connection.execute(_guard_triggers()):
        versions = [guard for guard in known_guards() if guard.trigger_name == row.trigger_name]
        is_ours = row.is_firing and row.is_plain and row.function_schema == row.schema
        matching = (
            guard
            for guard in versions
            if is_ours
            and guard.function_name(row.table_name) == row.function_name
            and guard.trigger_type == row.trigger_type
            and guard.body == row.body
        )
        guards.append(ExistingGuard(row.schema, row.table_name, versions[0].name, next(matching, None)))
    return guards
