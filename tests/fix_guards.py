"""A log with guards, to which the store and other programs write."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, MetaData, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables
from tests.fix_store import make_event

__all__ = ["GuardedLog"]

#: The advisory locks of this transaction that are marks of a log, as signed numbers.
_MARKS = text(
    "SELECT CASE WHEN objid = 4294967295 THEN -1 ELSE CAST(objid AS bigint) END FROM pg_locks "
    "WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND classid = CAST(:log AS regclass) AND objsubid = 2"
)
_SETTING = text("SELECT current_setting('pupsourcing_sa.mark_' || CAST(CAST(:log AS regclass) AS oid), true)")
_OBJECTS = text(
    "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(:log) UNION ALL "
    "SELECT proname FROM pg_proc WHERE pronamespace = CAST(:schema AS regnamespace) ORDER BY 1"
)


class GuardedLog:
    """A log with guards, and one without, for the store and for other programs."""

    def __init__(self, engine: Engine, names: dict[str, str], *, guarded: bool = True) -> None:
        self.engine = engine
        self.tables = EventTables(MetaData(), **names, guarded=guarded)
        self.store = EventStore(self.tables)
        quote = engine.dialect.identifier_preparer.quote_identifier
        parts = (self.tables.events.schema, self.tables.events.name)
        self.name = ".".join(quote(part) for part in parts if part).replace("%%", "%")
        self.schema = quote(parts[0]).replace("%%", "%") if parts[0] else "current_schema()"

    def execute(self, connection: Connection, sql: str) -> None:
        """Execute SQL like another program: without SQLAlchemy, which interprets colons and percent signs in names."""
        with self.cursor(connection) as cursor:
            cursor.execute(sql.format(log=self.name).encode())

    def cursor(self, connection: Connection) -> Any:
        if not connection.in_transaction():
            connection.begin()
        return connection.connection.cursor()

    def append(self, connection: Connection | Session, *aggregate_ids: str) -> None:
        for each in aggregate_ids:
            self.store.append(connection, AnyVersion(), [make_event(each)])

    def read(self) -> list[str]:
        with Session(self.engine) as session:
            return [each.aggregate_id for each in self.store.read_events(session)]

    def marks(self, connection: Connection) -> tuple[list[int], str | None]:
        """Return the marks of the transaction: its locks, and the setting that records them."""
        parameters = {"log": self.name}
        return list(connection.scalars(_MARKS, parameters)), connection.scalar(_SETTING, parameters)

    def objects(self) -> list[str]:
        """Return the triggers, and the functions in the log's schema."""
        with self.engine.connect() as connection:
            schema = self.schema
            if schema == "current_schema()":
                schema = connection.scalar(text("SELECT current_schema()"))
            return list(connection.scalars(_OBJECTS, {"log": self.name, "schema": schema}))
