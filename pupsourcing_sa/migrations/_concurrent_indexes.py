"""Indexes of a log that is in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData

from pupsourcing_sa.migrations._catalog import TableKey, table_key
from pupsourcing_sa.migrations._plugin import register
from pupsourcing_sa.tables._declared import role_of

if TYPE_CHECKING:
    from alembic.operations.ops import CreateIndexOp, DropIndexOp, OpContainer
    from alembic.runtime.migration import MigrationContext

__all__ = ["concurrent_indexes"]


def concurrent_indexes(context: MigrationContext, revision: Any, directives: list[Any]) -> None:
    """Have autogenerate create and drop the indexes of an existing log concurrently, while it is being written.

    ``CREATE INDEX`` takes SHARE on the log, and nothing is appended until it is done. ``CONCURRENTLY`` takes SHARE
    UPDATE EXCLUSIVE, and appends go on, but it cannot be part of a transaction. The indexes therefore get a revision of
    their own, after the one with everything else, and an ``autocommit_block()`` in it. When it was interrupted it can
    be run again.

    It is for ``context.configure(process_revision_directives=migrations.concurrent_indexes)``, and concerns indexes of
    this library's tables only, where the database has these tables already.

    Raises:
        ValueError: a revision is for several databases at once.
        MissingExtraError: Alembic is not installed.
    """
    register()
    from alembic.operations.ops import DowngradeOps, MigrationScript, UpgradeOps
    from alembic.util import rev_id

    from pupsourcing_sa.migrations._operations import AutocommitBlockOp

    for script in list(directives):
        existing = _tables_of_ours(context) - set(_created(script.upgrade_ops, context))
        created = _take_indexes(script.upgrade_ops, existing, context)
        dropped = _take_indexes(script.downgrade_ops, existing, context)
        if not created:
            continue
        upgrade = UpgradeOps([AutocommitBlockOp([each for op in created for each in _repeatable(op)])])
        downgrade = DowngradeOps([AutocommitBlockOp([each for op in dropped for each in _repeatable(op)])])
        if script.upgrade_ops.is_empty():
            script.upgrade_ops, script.downgrade_ops = upgrade, downgrade
            continue
        message = f"{script.message}, indexes" if script.message else None
        own = MigrationScript(rev_id(), upgrade, downgrade, message=message, head=script.rev_id, splice=False)
        own.version_path = script.version_path
        directives.insert(directives.index(script) + 1, own)


def _tables_of_ours(context: MigrationContext) -> set[TableKey]:
    metadata = context.opts["target_metadata"]
    return {
        table_key(context.dialect, table.schema, table.name)
        for each in ([metadata] if isinstance(metadata, MetaData) else metadata or ())
        for table in each.tables.values()
        if role_of(table)
    }


def _created(container: OpContainer, context: MigrationContext) -> Iterator[TableKey]:
    from alembic.operations.ops import CreateTableOp

    for operation in container.ops:
        if isinstance(operation, CreateTableOp):
            yield table_key(context.dialect, operation.schema, operation.table_name)


def _take_indexes(
    container: OpContainer, tables: set[TableKey], context: MigrationContext
) -> list[CreateIndexOp | DropIndexOp]:
    """Take what creates and drops indexes of these tables out of the container."""
    from alembic.operations.ops import CreateIndexOp, DropIndexOp, ModifyTableOps

    taken: list[CreateIndexOp | DropIndexOp] = []
    for table in list(container.ops):
        if (
            not isinstance(table, ModifyTableOps)
            or table_key(context.dialect, table.schema, table.table_name) not in tables
        ):
            continue
        indexes = [each for each in table.ops if isinstance(each, CreateIndexOp | DropIndexOp)]
        taken += indexes
        table.ops = [each for each in table.ops if each not in indexes]
        if not table.ops:
            container.ops.remove(table)
    return taken


def _repeatable(operation: CreateIndexOp | DropIndexOp) -> Iterator[CreateIndexOp | DropIndexOp]:
    """The operation done concurrently, so that it can follow an attempt which was interrupted."""
    from alembic.operations.ops import CreateIndexOp, DropIndexOp

    if isinstance(operation, CreateIndexOp):
        # What was interrupted leaves an invalid index behind, which IF NOT EXISTS would take for one.
        assert operation.index_name is not None  # the indexes of our tables have names
        yield DropIndexOp(
            operation.index_name,
            operation.table_name,
            schema=operation.schema,
            if_exists=True,
            postgresql_concurrently=True,
        )
        operation.kw = {**operation.kw, "postgresql_concurrently": True}
    else:
        operation.kw = {"postgresql_concurrently": True}
        operation.if_exists = True
    yield operation
