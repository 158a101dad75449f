"""Index changes that do not block appends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData

from pupsourcing_sa.migrations._catalog import TableKey, table_key
from pupsourcing_sa.migrations._plugin import register
from pupsourcing_sa.tables.declared import role_of

if TYPE_CHECKING:
    from alembic.operations.ops import CreateIndexOp, DropIndexOp, OpContainer
    from alembic.runtime.migration import MigrationContext

    from pupsourcing_sa.migrations._operations import AutocommitBlockOp

    _IndexOp = CreateIndexOp | DropIndexOp

__all__ = ["concurrent_indexes"]

#: A schema and the name of an index in it.
_IndexName = tuple[str | None, str]


def concurrent_indexes(context: MigrationContext, revision: Any, directives: list[Any]) -> None:
    """Make autogenerate create and drop indexes of an existing log with ``CONCURRENTLY``, so that appends continue.

    Use it as ``context.configure(process_revision_directives=migrations.concurrent_indexes)``. It applies to
    this library's tables, except those that the same revision creates.

    ``CREATE INDEX`` locks the log in SHARE mode, so appends wait until the index is built. ``CONCURRENTLY`` takes SHARE
    UPDATE EXCLUSIVE, which does not block appends, but it cannot run in a transaction. Each new index therefore gets a
    separate revision with an ``autocommit_block()``, after the revision with all other changes. Dropped indexes share
    the last revision. You can run an interrupted revision again.

    An ``autocommit_block()`` needs a connection without a transaction: from ``engine.connect()``, as in Alembic's
    templates, not from ``engine.begin()``.

    Raises:
        ValueError: a revision is for several databases at once.
        MissingExtraError: Alembic is not installed, or is older than 1.18.
    """
    register()
    from alembic.operations.ops import DowngradeOps, MigrationScript, UpgradeOps
    from alembic.util import rev_id

    for script in list(directives):
        existing = _own_tables(context) - set(_created_tables(script.upgrade_ops, context))
        upgrades = _take_indexes(script.upgrade_ops, existing, context)
        downgrades = _take_indexes(script.downgrade_ops, existing, context)
        last, message = script, script.message
        for title, names in _revisions(upgrades):
            upgrade = UpgradeOps([_concurrent_block(operation for operation in upgrades if _name(operation) in names)])
            downgrade = DowngradeOps(
                [_concurrent_block(operation for operation in downgrades if _name(operation) in names)]
            )
            if script.upgrade_ops.is_empty():
                script.upgrade_ops, script.downgrade_ops = upgrade, downgrade
                continue
            own_message = f"{message}, {title}" if message else None
            own = MigrationScript(rev_id(), upgrade, downgrade, message=own_message, head=last.rev_id, splice=False)
            own.version_path = script.version_path
            directives.insert(directives.index(last) + 1, own)
            last = own


def _own_tables(context: MigrationContext) -> set[TableKey]:
    metadata = context.opts["target_metadata"]
    return {
        table_key(context.dialect, table.schema, table.name)
        for collection in ([metadata] if isinstance(metadata, MetaData) else metadata or ())
        for table in collection.tables.values()
        if role_of(table)
    }


def _created_tables(container: OpContainer, context: MigrationContext) -> Iterator[TableKey]:
    from alembic.operations.ops import CreateTableOp

    for operation in container.ops:
        if isinstance(operation, CreateTableOp):
            yield table_key(context.dialect, operation.schema, operation.table_name)


def _take_indexes(container: OpContainer, tables: set[TableKey], context: MigrationContext) -> list[_IndexOp]:
    """Remove the operations on indexes of these tables from the container, and return them."""
    from alembic.operations.ops import CreateIndexOp, DropIndexOp, ModifyTableOps

    taken: list[_IndexOp] = []
    for table in list(container.ops):
        if (
            not isinstance(table, ModifyTableOps)
            or table_key(context.dialect, table.schema, table.table_name) not in tables
        ):
            continue
        indexes = [operation for operation in table.ops if isinstance(operation, CreateIndexOp | DropIndexOp)]
        taken += indexes
        table.ops = [operation for operation in table.ops if operation not in indexes]
        if not table.ops:
            container.ops.remove(table)
    return taken


def _revisions(operations: Sequence[_IndexOp]) -> Iterator[tuple[str, set[_IndexName]]]:
    """Yield the end of each revision's message and the indexes that the revision changes.

    New indexes come first, so that queries can always use an old or a new one. Each has its own revision: after an
    interruption, finished indexes are not built again.
    """
    from alembic.operations.ops import CreateIndexOp

    created = [_name(operation) for operation in operations if isinstance(operation, CreateIndexOp)]
    for name in created:
        yield name[1], {name}
    if dropped := {_name(operation) for operation in operations} - set(created):
        yield "old indexes", dropped


def _name(operation: _IndexOp) -> _IndexName:
    return operation.schema, str(operation.index_name)


def _concurrent_block(operations: Iterable[_IndexOp]) -> AutocommitBlockOp:
    from alembic.operations.ops import ExecuteSQLOp

    from pupsourcing_sa.migrations._operations import AutocommitBlockOp

    return AutocommitBlockOp(
        [
            # A concurrent build waits for all open transactions, and blocks none of them. A timeout would only leave an
            # invalid index behind.
            ExecuteSQLOp("SET lock_timeout = 0"),
            *(step for operation in operations for step in _repeatable(operation)),
            ExecuteSQLOp("RESET lock_timeout"),
        ]
    )


def _repeatable(operation: _IndexOp) -> Iterator[_IndexOp]:
    """Yield the operation with CONCURRENTLY, in a form that can be executed again after an interruption."""
    from alembic.operations.ops import CreateIndexOp, DropIndexOp

    if isinstance(operation, CreateIndexOp):
        # An interrupted build leaves an invalid index, which IF NOT EXISTS would accept. Drop it first.
        # Indexes of this library's tables have names.
        assert operation.index_name is not None
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
