"""What every statement of the store is made of: the log's own names, its mark, and parameters.

Statements are Core expressions over the tables. Their text depends on the tables and never on the data, so that
SQLAlchemy compiles each once and the server plans it once for each connection.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    String,
    Table,
    Text,
    bindparam,
    cast,
    extract,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import OID, REGCLASS
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine

from pupsourcing_sa.postgres.catalog import DATABASES
from pupsourcing_sa.tables.naming import dollar_quoted

__all__ = [
    "constant",
    "oid_of",
    "oid_of_database",
    "parameter",
    "sequence_of",
    "server_identity",
]


def constant(value: int | str) -> ColumnElement[Any]:
    """A value that is part of the statement's text, and not one more parameter to send."""
    return literal_column(str(value), BigInteger) if isinstance(value, int) else literal_column(f"'{value}'", Text)


def parameter(name: str, type_: TypeEngine[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=type_)


class _NameOf(ColumnElement[str]):
    """A table's quoted name as a string, under the ``schema_translate_map`` of the moment.

    ``'"My Shop".events'`` as PostgreSQL's ``regclass`` wants it: what it finds is what the same name in a FROM finds.
    """

    __visit_name__ = "pupsourcing_sa_name_of"
    _traverse_internals = [("table", InternalTraversal.dp_clauseelement)]  # the cache key must tell tables apart
    type = String()

    def __init__(self, table: Table) -> None:
        self.table = table


@compiles(_NameOf)
def _compile_name_of(element: _NameOf, compiler: Any, **kw: Any) -> str:
    return dollar_quoted(compiler.preparer.format_table(element.table), "name")


def oid_of(table: Table) -> ColumnElement[Any]:
    return cast(cast(_NameOf(table), REGCLASS), OID)


def oid_of_database() -> ColumnElement[Any]:
    """The oid of this database; others may have tables of the same oid, and locks on them."""
    return select(DATABASES.c.oid).where(DATABASES.c.datname == func.current_database()).scalar_subquery()


def sequence_of(events: Table) -> ColumnElement[Any]:
    """The sequence that issues the positions, whatever its name: identity or BIGSERIAL, renamed or not."""
    return cast(func.pg_get_serial_sequence(_NameOf(events), constant("global_position")), REGCLASS)


def server_identity() -> ColumnElement[Any]:
    """Identify the running server and the database.

    It differs after a restart, a failover, and a restore into a new database of the same name: the start time of the
    server and the oid of the database.
    """
    started = cast(extract("epoch", func.pg_postmaster_start_time()) * 1_000_000, BigInteger)
    return cast(started, Text).concat("/").concat(cast(oid_of_database(), Text))
