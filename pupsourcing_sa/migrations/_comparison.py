"""What autogenerate finds besides tables: guards, sequences of BIGSERIAL, and constraints under other names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import (
    CreateUniqueConstraintOp,
    DropConstraintOp,
    DropTableOp,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Column, Table, UniqueConstraint

from pupsourcing_sa.migrations._catalog import FoundGuard, TableKey, found_guards, table_key
from pupsourcing_sa.migrations._operations import (
    AlterLogSequenceOp,
    CreateLogGuardOp,
    DropLogGuardOp,
    LogOperation,
    RenameLogConstraintOp,
    ReplaceLogGuardOp,
)
from pupsourcing_sa.tables.declared import role_of
from pupsourcing_sa.tables.guards import current_guards, is_guarded

__all__ = ["setup"]

#: Below Alembic's own logger, so that what is found is shown with what Alembic finds.
_log: Final = logging.getLogger("alembic.autogenerate.pupsourcing_sa")

_Guards = dict[str, FoundGuard]


def setup(plugin: Plugin) -> None:
    """Add comparisons to Alembic's own; Alembic calls it."""
    # Alembic would add an identity to a column that has a default already, and fail when it is executed.
    plugin.add_autogenerate_comparator(
        _leave_serial_to_us, "column", "server_default", qualifier="postgresql", priority=DispatchPriority.FIRST
    )
    # Last, because it looks at what was found about tables.
    plugin.add_autogenerate_comparator(
        _compare, "schema", "pupsourcing_sa", qualifier="postgresql", priority=DispatchPriority.LAST
    )


def _compare(context: AutogenContext, upgrade: UpgradeOps, schemas: set[str | None]) -> PriorityDispatchResult:
    assert context.connection is not None  # autogenerate has one
    guards: dict[TableKey, _Guards] = {}
    for found in found_guards(context.connection):
        guards.setdefault(_key(context, found.schema, found.table_name), {})[found.name] = found
    _keep_constraints(context, upgrade)
    _drop_guards_of_dropped_tables(context, upgrade, guards)
    for log in context.sorted_tables:
        if role_of(log) == "events" and context.run_object_filters(log, log.name, "table", False, None):
            if _is_serial(context, log.schema, log.name):
                _add(upgrade, AlterLogSequenceOp(log.name, to="identity", schema=log.schema))
            for operation in guard_operations(log, guards.get(_key(context, log.schema, log.name), {})):
                _add(upgrade, operation)
    return PriorityDispatchResult.CONTINUE


def _key(context: AutogenContext, schema: str | None, name: str) -> TableKey:
    assert context.dialect is not None
    return table_key(context.dialect, schema, name)


def _add(upgrade: UpgradeOps, operation: LogOperation) -> None:
    _log.info("Detected the need for %s on %r", operation.name, operation.table_name)
    upgrade.ops.append(operation)


# -- guards ------------------------------------------------------------------------------------------------------


def guard_operations(log: Table, found: _Guards) -> Iterator[LogOperation]:
    """What makes the guards that were found in the database those that the log is to have."""
    for guard in current_guards():
        existing = found.get(guard.name)
        if not is_guarded(log):
            if existing:
                yield _drop(existing, log.schema)
        elif existing is None:
            yield CreateLogGuardOp(guard.name, log.name, version=guard.version, schema=log.schema)
        elif existing.guard != guard:
            yield ReplaceLogGuardOp(
                guard.name,
                log.name,
                version=guard.version,
                existing_version=existing.guard.version if existing.guard else None,
                schema=log.schema,
            )


def _drop(found: FoundGuard, schema: str | None) -> DropLogGuardOp:
    version = found.guard.version if found.guard else None
    return DropLogGuardOp(found.name, found.table_name, schema=schema, _version=version)


def _drop_guards_of_dropped_tables(
    context: AutogenContext, upgrade: UpgradeOps, guards: dict[TableKey, _Guards]
) -> None:
    """A table takes its triggers with it, but not their functions."""
    for operation in list(upgrade.ops):
        if isinstance(operation, DropTableOp):
            found = guards.get(_key(context, operation.schema, operation.table_name), {})
            at = upgrade.ops.index(operation)
            upgrade.ops[at:at] = [_drop(each, operation.schema) for each in found.values()]


# -- logs that another program created ---------------------------------------------------------------------------


def _is_serial(context: AutogenContext, schema: str | None, table_name: str) -> bool:
    """Whether positions are issued by a default, which is what BIGSERIAL makes."""
    if not context.inspector.has_table(table_name, schema=schema):
        return False
    columns = {column["name"]: column for column in context.inspector.get_columns(table_name, schema=schema)}
    position = columns.get("global_position")
    return position is not None and position["default"] is not None and "identity" not in position


def _leave_serial_to_us(
    context: AutogenContext,
    operation: Any,
    schema: str | None,
    table_name: str,
    column_name: str,
    existing: Column[Any],
    wanted: Column[Any],
) -> PriorityDispatchResult:
    is_position = role_of(wanted.table) == "events" and column_name == "global_position"
    if is_position and _is_serial(context, schema, table_name):
        return PriorityDispatchResult.STOP
    return PriorityDispatchResult.CONTINUE


def _keep_constraints(context: AutogenContext, upgrade: UpgradeOps) -> None:
    """Where a unique constraint of ours only has another name, rename it rather than have its index built anew."""
    assert context.dialect is not None
    format_constraint: Any = context.dialect.identifier_preparer.format_constraint
    ours = {_key(context, table.schema, table.name) for table in context.sorted_tables if role_of(table)}
    for table in list(upgrade.ops):
        if not isinstance(table, ModifyTableOps) or _key(context, table.schema, table.table_name) not in ours:
            continue
        for dropped, added in list(_same_columns(table.ops)):
            # Where a convention's name is too long, SQLAlchemy shortens it otherwise than PostgreSQL would.
            old_name, new_name = dropped.constraint_name, format_constraint(added.to_constraint(), _alembic_quote=False)
            if new_name == old_name:  # what differs is something else, such as NULLS NOT DISTINCT
                continue
            table.ops = [each for each in table.ops if each not in (dropped, added)]
            _add(upgrade, RenameLogConstraintOp(str(old_name), new_name, table.table_name, schema=table.schema))
        if not table.ops:
            upgrade.ops.remove(table)


def _same_columns(operations: Iterable[Any]) -> Iterator[tuple[DropConstraintOp, CreateUniqueConstraintOp]]:
    added = {tuple(each.columns): each for each in operations if isinstance(each, CreateUniqueConstraintOp)}
    for each in operations:
        if isinstance(each, DropConstraintOp) and each.constraint_type == "unique":
            constraint = each.to_constraint()
            assert isinstance(constraint, UniqueConstraint)
            columns = tuple(constraint.columns.keys())
            if columns in added:
                yield each, added[columns]
