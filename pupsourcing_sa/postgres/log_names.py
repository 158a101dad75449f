"""The name of a log: what a checkpoint remembers of the log that it belongs to.

The name is the one in the catalog, with the schema, such as ``shop.events``: the table to which ``search_path`` and
``schema_translate_map`` lead a session. The table's oid is of no use, because it changes with a restore.
"""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import Text, cast, func, select
from sqlalchemy.dialects.postgresql import OID

from pupsourcing_sa.postgres.catalog import catalog_table
from pupsourcing_sa.postgres.connections import SyncSession, connection_of
from pupsourcing_sa.postgres.errors import translated
from pupsourcing_sa.postgres.expressions import oid_of, server_identity
from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = ["LogName"]

_CLASSES: Final = catalog_table("pg_class", oid=OID, relname=Text, relnamespace=OID)
_NAMESPACES: Final = catalog_table("pg_namespace", oid=OID, nspname=Text)

_PLAIN: Final = re.compile("[a-z_][a-z0-9_]*")
_PART: Final = re.compile(r'"(?:[^"]|"")*"|[^."]+')


class LogName:
    """The name of a log, as a session of its workers sees it.

    Args:
        events: the log.
        workers: the tables of the workers. A session may have them in another database than the log.
    """

    def __init__(self, events: EventTables, workers: WorkerTables) -> None:
        self._events = events.events
        # A session with several binds may choose one by the kind of statement. Its workers write.
        self._workers = workers.consumer_checkpoints.update()
        self.statement = (
            select(
                cast(_NAMESPACES.c.nspname, Text),
                cast(_CLASSES.c.relname, Text),
                cast(func.current_database(), Text),
                server_identity(),
            )
            .join_from(_CLASSES, _NAMESPACES, _NAMESPACES.c.oid == _CLASSES.c.relnamespace)
            .where(_CLASSES.c.oid == oid_of(self._events))
        )

    def read(self, session: SyncSession) -> str:
        """Return the log's name with its schema, and with its database if that is not the one of the checkpoints.

        Raises:
            TablesMissingError: the log does not exist.
        """
        log, workers = connection_of(session, self._events), connection_of(session, self._workers)
        with translated(self._events):
            schema, name, database, server = log.execute(self.statement).one()
        parts = [schema, name]
        # Two engines may lead to the same database.
        if workers is not log and workers.scalar(select(server_identity())) != server:
            parts.insert(0, database)
        return ".".join(map(_quoted, parts))

    def exists(self, session: SyncSession, name: str) -> bool:
        """Return True if the log's database has a table of this name, which `read` has returned."""
        connection = connection_of(session, self._events)
        *databases, schema, table = _PART.findall(name)
        own = connection.execute(select(cast(func.current_database(), Text))).scalar_one()
        if databases not in ([], [_quoted(own)]):
            return False
        return connection.scalar(select(func.to_regclass(f"{schema}.{table}").is_not(None))) is True


def _quoted(name: str) -> str:
    """Return a name quoted as in SQL. SQLAlchemy would also quote reserved words, which differ between its versions."""
    return name if _PLAIN.fullmatch(name) else '"{}"'.format(name.replace('"', '""'))
