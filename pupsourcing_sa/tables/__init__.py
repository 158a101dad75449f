"""The Core tables of the event log and the worker, on the caller's ``MetaData``.

They are ordinary tables: ``create_all()``, Alembic and reflection treat them like the application's own. Tables,
columns and constraints have the same names as in pupsourcing (Go), so that its logs can be read unchanged.
"""

from __future__ import annotations

from pupsourcing_sa.tables._event_tables import EventTables
from pupsourcing_sa.tables._worker_tables import WorkerTables

__all__ = ["EventTables", "WorkerTables"]
