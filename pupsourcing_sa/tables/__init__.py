"""The Core tables of the event log and of the worker, on the caller's ``MetaData``.

They are ordinary tables: ``create_all()``, Alembic and reflection treat them like the application's own. Columns,
tables and constraints have the names that they have in pupsourcing (Go), so that its logs can be read as they are.
"""

from __future__ import annotations

from pupsourcing_sa.tables._event_tables import EventTables
from pupsourcing_sa.tables._worker_tables import WorkerTables

__all__ = ["EventTables", "WorkerTables"]
