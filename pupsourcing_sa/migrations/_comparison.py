"""Autogenerate's comparison of guards, BIGSERIAL sequences, and constraints with other names."""

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

from pupsourcing_sa.migrations._catalog import ExistingGuard, TableKey, read_guards, table_key
from pupsourcing_sa.migrations._dropped_tables import refuse_drops
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

#: A child of Alembic's own logger, so that its messages appear together with Alembic's.
_log: Final = logging.getLogger("alembic.autogenerate.pupsourcing_sa")

_Guards = dict[str, ExistingGuard]


def setup(plugin: Plugin) -> None:
    """Register the comparisons. Alembic calls this function."""
    # Alembic itself would add an identity to a column that already has a default. The migration would then fail.
    plugin.add_autogenerate_comparator(
        _skip_serial_default, "column", "server_default", qualifier="postgresql", priority=DispatchPriority.FIRST
    )
    # Run last, because this revises the findings of other comparators.
    plugin.add_autogenerate_comparator(
        _compare_logs, "schema", "pupsourcing_sa", qualifier="postgresql", priority=DispatchPriority.LAST
    )


def _compare_logs(context: AutogenContext, upgrade: UpgradeOps, schemas: set[str | None]) -> PriorityDispatchResult:
    assert context.connection is not None
    refuse_drops(context, upgrade)
    guards: dict[TableKey, _Guards] = {}
    for guard in read_guards(context.connection):
        guards.setdefault(_key(context, guard.schema, guard.table_name), {})[guard.name] = guard
    _rename_constraints(context, upgrade)
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


def guard_operations(log: Table, existing_guards: _Guards) -> Iterator[LogOperation]:
    """Yield the operations that turn the existing guards of a log into the declared ones."""
    for guard in current_guards():
        existing = existing_guards.get(guard.name)
        if not is_guarded(log):
            if existing:
                yield _drop_guard(existing, log.schema)
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


def _drop_guard(existing: ExistingGuard, schema: str | None) -> DropLogGuardOp:
    version = existing.guard.version if existing.guard else None
    return DropLogGuardOp(existing.name, existing.table_name, schema=schema, _version=version)


def _drop_guards_of_dropped_tables(
    context: AutogenContext, upgrade: UpgradeOps, guards: dict[TableKey, _Guards]
) -> None:
    """Drop guards before their table, because PostgreSQL drops only the triggers with a table, not the functions."""
    for operation in list(upgrade.ops):
        if isinstance(operation, DropTableOp):
            existing_guards = guards.get(_key(context, operation.schema, operation.table_name), {})
            index = upgrade.ops.index(operation)
            upgrade.ops[index:index] = [_drop_guard(guard, operation.schema) for guard in existing_guards.values()]


# -- logs of other programs ----------------------------------------------------------------------------------------


def _is_serial(context: AutogenContext, schema: str | None, table_name: str) -> bool:
    """Return True if the column has a default that issues the positions, as with BIGSERIAL."""
    if not context.inspector.has_table(table_name, schema=schema):
        return False
    columns = {column["name"]: column for column in context.inspector.get_columns(table_name, schema=schema)}
    position = columns.get("global_position")
    return position is not None and position["default"] is not None and "identity" not in position


def _skip_serial_default(
    context: AutogenContext,
    operation: Any,
    schema: str | None,
    table_name: str,
    column_name: str,
    existing: Column[Any],
    declared: Column[Any],
) -> PriorityDispatchResult:
    """Stop Alembic's comparison of defaults for a BIGSERIAL position, which `_compare_logs` handles."""
    is_position = role_of(declared.table) == "events" and column_name == "global_position"
    if is_position and _is_serial(context, schema, table_name):
        return PriorityDispatchResult.STOP
    return PriorityDispatchResult.CONTINUE


def _rename_constraints(context: AutogenContext, upgrade: UpgradeOps) -> None:
    """Rename unique constraints that differ only in name. Alembic would drop them and build their indexes again."""
    assert context.dialect is not None
    format_constraint: Any = context.dialect.identifier_preparer.format_constraint
    own_tables = {_key(context, table.schema, table.name) for table in context.sorted_tables if role_of(table)}
    for table in list(upgrade.ops):
        if not isinstance(table, ModifyTableOps) or _key(context, table.schema, table.table_name) not in own_tables:
            continue
        for dropped, added in list(_same_columns(table.ops)):
            # Let SQLAlchemy format the name: it shortens long names in another way than PostgreSQL.
            old_name, new_name = dropped.constraint_name, format_constraint(added.to_constraint(), _alembic_quote=False)
            # Constraints with equal names differ in something else, such as NULLS NOT DISTINCT.
            if new_name == old_name:
                continue
            table.ops = [operation for operation in table.ops if operation not in (dropped, added)]
            _add(upgrade, RenameLogConstraintOp(str(old_name), new_name, table.table_name, schema=table.schema))
        if not table.ops:
            upgrade.ops.remove(table)


def _same_columns(operations: Iterable[Any]) -> Iterator[tuple[DropConstraintOp, CreateUniqueConstraintOp]]:
    """Yield each dropped unique constraint with an added one on the same columns."""
    added = {
        tuple(operation.columns): operation
        for operation in operations
        if isinstance(operation, CreateUniqueConstraintOp)
    }
    for operation in operations:
        if isinstance(operation, DropConstraintOp) and operation.constraint_type == "unique":
            constraint = operation.to_constraint()
            assert isinstance(constraint, UniqueConstraint)
            columns = tuple(constraint.columns.keys())
            if columns in added:
                yield operation, added[columns]
