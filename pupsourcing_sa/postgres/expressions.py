"""Expressions that several statements share.

Statements are Core expressions over the tables. Their text depends on the tables and never on the data. SQLAlchemy
therefore compiles each statement once, and the server plans it once per connection.

No result depends on the settings of a session, a role or a database. psycopg receives values as text, whose form
depends on settings: DateStyle and TimeZone for a timestamp, IntervalStyle for an interval, and extra_float_digits for a
floating-point number. Statements therefore return `moment` and `seconds` instead.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Connection,
    Dialect,
    LargeBinary,
    Numeric,
    String,
    Table,
    Text,
    bindparam,
    cast,
    extract,
    false,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import OID, REGCLASS
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine

from pupsourcing_sa.postgres.catalog import DATABASES
from pupsourcing_sa.tables.naming import dollar_quoted

__all__ = [
    "SECONDS",
    "age",
    "constant",
    "duration",
    "moment",
    "oid_if_exists",
    "oid_of",
    "oid_of_database",
    "opaque",
    "opaque_parameter",
    "parameter",
    "qualified_name",
    "seconds",
    "sequence_of",
    "server_identity",
]


def constant(value: int | str) -> ColumnElement[Any]:
    """Return a value as part of the statement's text, which saves sending a parameter."""
    return literal_column(str(value), BigInteger) if isinstance(value, int) else literal_column(f"'{value}'", Text)


def parameter(name: str, type_: TypeEngine[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=type_)


def opaque_parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a parameter whose value the planner does not see, because it does not look into a subquery.

    PostgreSQL plans a statement with the values of its parameters unless the statement is prepared, and at first even
    then. With this parameter it uses constants instead of values and statistics: a range has 0.5 % of the rows, and
    LIMIT returns a tenth of them. So it reads an index in order rather than sort what the range contains.
    """
    return select(parameter(name, type_)).scalar_subquery()


def opaque(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a condition that the planner expects to be true for half of the rows, whatever the statistics say.

    With a filter that seems to remove nearly all rows, the planner would not expect LIMIT to end the statement early.
    """
    return func.coalesce(condition, false(), type_=Boolean())


#: PostgreSQL's timestamps in binary are microseconds since this moment.
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

#: The type of `seconds`: a NUMERIC on the server, a float in Python.
SECONDS: Final[TypeEngine[float]] = Numeric(asdecimal=False)


#: Quotes names for people. Those of drivers with percent signs in parameters double the percent signs of names.
_PREPARER: Final = PGDialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]


class _Moment(TypeDecorator[datetime]):
    """A timestamp in PostgreSQL's binary format, as a datetime in UTC."""

    impl = LargeBinary
    cache_ok = True

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return _EPOCH + timedelta(microseconds=int.from_bytes(value, "big", signed=True))


class _Duration(TypeDecorator[timedelta]):
    """A number of seconds, as a timedelta."""

    impl = SECONDS
    cache_ok = True

    def process_result_value(self, value: float | None, dialect: Dialect) -> timedelta | None:
        return None if value is None else timedelta(seconds=value)


def moment(timestamp: ColumnElement[Any]) -> ColumnElement[datetime]:
    """Return a TIMESTAMPTZ such that Python gets a datetime in UTC. The statement cannot compare it."""
    return func.timestamptz_send(timestamp, type_=_Moment())


def seconds(interval: ColumnElement[Any]) -> ColumnElement[float]:
    """Return the seconds of an interval."""
    return cast(extract("epoch", interval), SECONDS)


def duration(interval: ColumnElement[Any]) -> ColumnElement[timedelta]:
    """Return an interval such that Python gets a timedelta."""
    return cast(extract("epoch", interval), _Duration())


def age(timestamp: ColumnElement[Any]) -> ColumnElement[float]:
    """Return the seconds since a moment; 0 if a writer's clock put it in the future."""
    return func.greatest(seconds(func.clock_timestamp() - timestamp), constant(0), type_=SECONDS)


class _NameOf(ColumnElement[str]):
    """A table's quoted name as a string, such as ``'"My Shop".events'``, under the current ``schema_translate_map``.

    PostgreSQL's ``regclass`` resolves it as it resolves the same name in a FROM clause.
    """

    __visit_name__ = "pupsourcing_sa_name_of"
    # The cache key must distinguish tables.
    _traverse_internals = [("table", InternalTraversal.dp_clauseelement)]
    type = String()

    def __init__(self, table: Table) -> None:
        self.table = table


@compiles(_NameOf)
def _compile_name_of(element: _NameOf, compiler: Any, **kw: Any) -> str:
    return dollar_quoted(compiler.preparer.format_table(element.table), "name")


def qualified_name(table: Table, connection: Connection) -> str:
    """Return a table's quoted name under the connection's ``schema_translate_map``, for messages."""
    schema = connection.schema_for_object(table)
    name = _PREPARER.quote(table.name)
    return name if schema is None else f"{_PREPARER.quote_schema(schema)}.{name}"


def oid_of(table: Table) -> ColumnElement[Any]:
    return cast(cast(_NameOf(table), REGCLASS), OID)


def oid_if_exists(table: Table) -> ColumnElement[Any]:
    """Return the oid of a table; NULL if there is none of its name."""
    return cast(func.to_regclass(_NameOf(table)), OID)


def oid_of_database() -> ColumnElement[Any]:
    """Return the oid of this database. Another database may have a table with the same oid, and locks on it."""
    return select(DATABASES.c.oid).where(DATABASES.c.datname == func.current_database()).scalar_subquery()


def sequence_of(events: Table) -> ColumnElement[Any]:
    """Return the sequence of the identity or BIGSERIAL column that issues the positions, even if it was renamed."""
    return cast(func.pg_get_serial_sequence(_NameOf(events), constant("global_position")), REGCLASS)


def server_identity() -> ColumnElement[Any]:
    """Return the start time of the server, the start time of its statistics, and the oid of the database, as a string.

    It changes with a restart, a failover, a crash, and a restore into a new database of the same name. The postmaster
    survives the crash of a backend, but recovery discards the statistics. Every role may read that time.
    """
    started = _microseconds(func.pg_postmaster_start_time())
    recovered = func.coalesce(_microseconds(func.pg_stat_get_bgwriter_stat_reset_time()), constant(""))
    return started.concat("/").concat(recovered).concat("/").concat(cast(oid_of_database(), Text))


def _microseconds(timestamp: ColumnElement[Any]) -> ColumnElement[Any]:
    return cast(cast(extract("epoch", timestamp) * 1_000_000, BigInteger), Text)
