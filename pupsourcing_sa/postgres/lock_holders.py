"""The transaction that holds a lock, described for operators."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Row, case, func

from pupsourcing_sa.postgres.catalog import ACTIVITY, PREPARED
from pupsourcing_sa.postgres.expressions import constant, duration

__all__ = ["HOLDER_COLUMNS", "LockHolder", "holder_of"]

#: The attributes of `LockHolder` except ``pid``, from ``pg_stat_activity`` and ``pg_prepared_xacts``.
HOLDER_COLUMNS: Final = (
    PREPARED.c.gid,
    func.coalesce(ACTIVITY.c.usename, PREPARED.c.owner).label("user"),
    ACTIVITY.c.application_name,
    func.coalesce(ACTIVITY.c.state, case((PREPARED.c.gid.is_not(None), constant("prepared")))).label("state"),
    duration(func.clock_timestamp() - func.coalesce(ACTIVITY.c.xact_start, PREPARED.c.prepared)).label("age"),
    # If this role lacks the privilege, the state is NULL and the query is an English notice.
    case((ACTIVITY.c.state.is_not(None), ACTIVITY.c.query)).label("query"),
)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A transaction that holds a lock.

    Attributes:
        pid: process id of its backend, for ``pg_terminate_backend``; ``None`` for a prepared transaction.
        gid: id of a prepared transaction, for ``ROLLBACK PREPARED``; ``None`` for any other.
        user: role of the transaction.
        application_name: name that its connection has set. While a node holds a checkpoint, this is
            ``pupsourcing-sa`` and the node's id. ``None`` for a prepared transaction.
        state: ``active``, ``idle in transaction``, ``prepared`` and so on. This attribute and the next ones are
            ``None`` if this session may not see them; the role ``pg_read_all_stats`` may.
        age: time since the transaction started, or was prepared.
        query: its last statement.
    """

    pid: int | None
    gid: str | None
    user: str | None
    application_name: str | None
    state: str | None
    age: timedelta | None
    query: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for a log record or an event, with the age in seconds."""
        return asdict(self) | {"age": None if self.age is None else self.age.total_seconds()}


def holder_of(row: Row[Any]) -> LockHolder:
    """Return the holder in a row that has ``pid`` and `HOLDER_COLUMNS`."""
    return LockHolder(row.pid, row.gid, row.user, row.application_name, row.state, row.age, row.query)
