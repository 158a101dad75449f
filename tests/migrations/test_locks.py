"""Each operation takes the lock that the documentation names, and no stronger one."""

from __future__ import annotations

import alembic
import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, text

from pupsourcing_sa import EventTables
from pupsourcing_sa.migrations import register

_LOCKS = text(
    "SELECT mode FROM pg_locks WHERE relation = CAST('events' AS regclass) AND pid = pg_backend_pid() "
    "AND mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')"
)

OPERATIONS = {
    "create_log_guard": ("log_op.create_log_guard('append_only', 'events', version=1)", "SHARE ROW EXCLUSIVE"),
    "replace_log_guard": ("log_op.replace_log_guard('append_only', 'events', version=1)", "ACCESS EXCLUSIVE"),
    "drop_log_guard": ("log_op.drop_log_guard('append_only', 'events')", "ACCESS EXCLUSIVE"),
    "alter_log_sequence": ("log_op.alter_log_sequence('events', to='serial')", "ACCESS EXCLUSIVE"),
    "rename_log_constraint": (
        "log_op.rename_log_constraint('events_event_id_key', 'event_ids', 'events')",
        "ACCESS EXCLUSIVE",
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_strongest_lock_on_the_log(engine: Engine, name: str) -> None:
    register()
    migration, lock = OPERATIONS[name]
    is_there = name in ("replace_log_guard", "drop_log_guard")
    EventTables(MetaData(), guarded=is_there).metadata.create_all(engine)
    with engine.connect() as connection, Operations.context(MigrationContext.configure(connection)):
        exec(migration, {"log_op": alembic.op})  # it has the same functions
        modes = set(connection.scalars(_LOCKS))
    documented = f"{lock.title().replace(' ', '')}Lock"
    assert documented in modes
    assert modes <= {documented, "ShareRowExclusiveLock"}
    documentation = getattr(Operations, name).__doc__
    assert f" in {lock} mode" in documentation
