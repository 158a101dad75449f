"""Indexes of a log that is in use."""

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
    """Have autogenerate create and drop the indexes of an existing log concurrently, while it is being written.

    ``CREATE INDEX`` takes SHARE on the log, and nothing is appended until it is done. ``CONCURRENTLY`` takes SHARE
    UPDATE EXCLUSIVE, and appends go on, but it cannot be part of a transaction. Each new index therefore gets a
    revision of its own, after the one with everything else, with an ``autocommit_block()`` in it, and those that are
    dropped get the last one. When one was interrupted it can be run again.

    An ``autocommit_block()`` needs a connection that has no transaction yet: one from ``engine.connect()``, as in
    Alembic's templates, and not from ``engine.begin()``.

    It is for ``context.configure(process_revision_directives=migrations.concurrent_indexes)``, and concerns indexes of
    this library's tables only, where the database has these tables already.

    Raises:
        ValueError: a revision is for several databases at once.
        MissingExtraError: Alembic is not installed, or is older than 1.18.
    """
    register()
    from alembic.operations.ops import DowngradeOps, MigrationScript, UpgradeOps
    from alembic.util import rev_id

    for script in list(directives):
        existing = _tables_of_ours(context) - set(_created(script.upgrade_ops, context))
        upgrades = _take_indexes(script.upgrade_ops, existing, context)
        downgrades = _take_indexes(script.downgrade_ops, existing, context)
        last, message = script, script.message
        for what, names in _steps(upgrades):
            upgrade = UpgradeOps([_block(each for each in upgrades if _name(each) in names)])
            downgrade = DowngradeOps([_block(each for each in downgrades if _name(each) in names)])
            if script.upgrade_ops.is_empty():
                script.upgrade_ops, script.downgrade_ops = upgrade, downgrade
                continue
            own_message = f"{message}, {what}" if message else None
            own = MigrationScript(rev_id(), upgrade, downgrade, message=own_message, head=last.rev_id, splice=False)
            own.version_path = script.version_path
            directives.insert(directives.index(last) + 1, own)
            last = own


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


def _take_indexes(container: OpContainer, tables: set[TableKey], context: MigrationContext) -> list[_IndexOp]:
    """Take what creates and drops indexes of these tables out of the container."""
    from alembic.operations.ops import CreateIndexOp, DropIndexOp, ModifyTableOps

    taken: list[_IndexOp] = []
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


def _steps(operations: Sequence[_IndexOp]) -> Iterator[tuple[str, set[_IndexName]]]:
    """Which indexes belong into one revision; new ones first, so that statements always have what they need.

    Each new one has a revision of its own: what is finished is not built again after the next was interrupted.
    """
    from alembic.operations.ops import CreateIndexOp

    created = [_name(each) for each in operations if isinstance(each, CreateIndexOp)]
    for name in created:
        yield name[1], {name}
    if dropped := {_name(each) for each in operations} - set(created):
        yield "old indexes", dropped


def _name(operation: _IndexOp) -> _IndexName:
    return operation.schema, str(operation.index_name)


def _block(operations: Iterable[_IndexOp]) -> AutocommitBlockOp:
    from alembic.operations.ops import ExecuteSQLOp

    from pupsourcing_sa.migrations._operations import AutocommitBlockOp

    return AutocommitBlockOp(
        [
            # It waits for every transaction that is open, while nobody waits for it; an index would remain invalid.
            ExecuteSQLOp("SET lock_timeout = 0"),
            *(each for operation in operations for each in _repeatable(operation)),
            ExecuteSQLOp("RESET lock_timeout"),
        ]
    )


def _repeatable(operation: _IndexOp) -> Iterator[_IndexOp]:
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
