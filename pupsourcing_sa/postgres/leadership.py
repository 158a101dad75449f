"""The advisory lock of a worker group's leader, which decides about assignments and about the rows of consumers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, Select, cast, func, select

from pupsourcing_sa.postgres.expressions import oid_of
from pupsourcing_sa.tables import WorkerTables

__all__ = ["lead", "try_to_lead"]


def lead(tables: WorkerTables) -> Select[Any]:
    """Return a SELECT that makes the transaction the leader. It waits for another leader."""
    return select(func.pg_advisory_xact_lock(*_key(tables)).is_not(None))


def try_to_lead(tables: WorkerTables) -> Select[Any]:
    """Return a SELECT that makes the transaction the leader, unless there is another one. It returns True if it did."""
    return select(func.pg_try_advisory_xact_lock(*_key(tables)))


def _key(tables: WorkerTables) -> tuple[Any, int]:
    return cast(oid_of(tables.worker_nodes), Integer), 0
