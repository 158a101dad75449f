"""Lock holders: the transaction that has locked something, for operators to look at and to end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Row, case, func

from pupsourcing_sa.postgres.catalog import ACTIVITY, PREPARED
from pupsourcing_sa.postgres.expressions import constant

__all__ = ["HOLDER_COLUMNS", "LockHolder", "holder_of"]

#: What `LockHolder` has besides the ``pid``, where ``pg_stat_activity`` and ``pg_prepared_xacts`` are joined.
HOLDER_COLUMNS: Final = (
    PREPARED.c.gid,
    func.coalesce(ACTIVITY.c.usename, PREPARED.c.owner).label("user"),
    ACTIVITY.c.application_name,
    func.coalesce(ACTIVITY.c.state, case((PREPARED.c.gid.is_not(None), constant("prepared")))).label("state"),
    (func.clock_timestamp() - func.coalesce(ACTIVITY.c.xact_start, PREPARED.c.prepared)).label("age"),
    # Of what may not be seen it says so, in English.
    case((ACTIVITY.c.state.is_not(None), ACTIVITY.c.query)).label("query"),
)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A transaction that has locked something.

    Attributes:
        pid: process id of its backend, for ``pg_terminate_backend``; ``None`` for a prepared transaction.
        gid: id of a prepared transaction, for ``ROLLBACK PREPARED``; ``None`` for any other.
        user: the role that it runs as.
        application_name: as its connection says; a node's is ``pupsourcing-sa`` and its id while it has a checkpoint.
            ``None`` if the transaction is prepared.
        state: ``active``, ``idle in transaction``, ``prepared`` and so on; ``None``, like what follows, where this
            session may not see it, which takes the role ``pg_read_all_stats``.
        age: since the transaction began, or was prepared.
        query: its last statement.
    """

    pid: int | None
    gid: str | None
    user: str | None
    application_name: str | None
    state: str | None
    age: timedelta | None
    query: str | None

    def shown(self) -> dict[str, Any]:
        """As logs want it: the age in seconds."""
        return asdict(self) | {"age": None if self.age is None else self.age.total_seconds()}


def holder_of(row: Row[Any]) -> LockHolder:
    """The holder in a row of `holders`."""
    return LockHolder(row.pid, row.gid, row.user, row.application_name, row.state, row.age, row.query)
