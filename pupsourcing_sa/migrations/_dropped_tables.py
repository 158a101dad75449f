"""Refusal to drop the tables of a log or a worker that ``target_metadata`` lacks.

Autogenerate drops every table that is in the database but not on the metadata. If ``env.py`` does not import the module
that declares this library's tables, the revision would drop all events.
"""

from __future__ import annotations

from typing import Any, Final

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import DropTableOp, UpgradeOps
from alembic.util import CommandError
from sqlalchemy import Column, DefaultClause, MetaData, Table, TextClause

from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = ["OPTION", "refuse_drops"]

#: Argument of ``context.configure()`` that allows autogenerate to drop the tables.
OPTION: Final = "drop_event_tables"


def refuse_drops(context: AutogenContext, upgrade: UpgradeOps) -> None:
    """Refuse a migration that drops tables of this library.

    Raises:
        CommandError: it would drop such a table, and the option is not set.
    """
    if (context.opts or {}).get(OPTION):
        return
    dropped = [operation.to_table() for operation in upgrade.ops if isinstance(operation, DropTableOp)]
    names = sorted(table.key for table in dropped if _is_ours(table))
    if names:
        raise CommandError(
            f"this revision would drop {', '.join(names)} with all events or checkpoints, because target_metadata does "
            "not have these tables of pupsourcing_sa. In env.py, import the module that declares them with EventTables "
            "and WorkerTables. If they have new names, rename them with op.rename_table() first. If something else "
            "creates them, pass include_object=migrations.all_but(…) to context.configure(). To drop them, pass "
            f"{OPTION}=True"
        )


def _is_ours(found: Table) -> bool:
    """Return True if a table has the columns and the primary key of one of this library's tables, of any version.

    Its name may be any. Later versions only add columns that are nullable or have a constant default.
    """
    metadata = MetaData()
    names = set(found.columns.keys())
    for declared in (*EventTables(metadata).tables, *WorkerTables(metadata).tables):
        original = {column.name for column in declared.columns if not column.nullable and not _is_constant(column)}
        has_key = found.primary_key.columns.keys() == declared.primary_key.columns.keys()
        if has_key and original <= names <= set(declared.columns.keys()):
            return True
    return False


def _is_constant(column: Column[Any]) -> bool:
    return isinstance(column.server_default, DefaultClause) and isinstance(column.server_default.arg, TextClause)
