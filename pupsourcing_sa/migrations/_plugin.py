"""Registration with Alembic."""

from __future__ import annotations

from typing import Final

from pupsourcing_sa.migrations.requirements import require_alembic

__all__ = ["register"]

_NAME: Final = "pupsourcing_sa"


def register() -> None:
    """Add this library's operations and autogenerate plugin to Alembic. Further calls have no effect.

    Call it in ``env.py``, and list the plugin ``"pupsourcing_sa"`` for autogenerate::

        migrations.register()
        context.configure(…, autogenerate_plugins=["alembic.autogenerate.*", "pupsourcing_sa"])

    Autogenerate then finds differences that only this library knows, writes the operations of
    `pupsourcing_sa.migrations.log_op`, and refuses to drop this library's tables because they are not on
    ``target_metadata``. ``context.configure(drop_event_tables=True)`` allows that.

    It also adds the operations to ``alembic.op``, as in ``op.create_log_guard(…)``.

    Raises:
        MissingExtraError: Alembic is not installed, or is older than 1.18.
    """
    require_alembic()
    from alembic.autogenerate import renderers
    from alembic.operations import Operations
    from alembic.runtime.plugins import Plugin

    from pupsourcing_sa.migrations import _comparison
    from pupsourcing_sa.migrations._operations import OPERATIONS, AutocommitBlockOp
    from pupsourcing_sa.migrations._rendering import render_autocommit_block, render_operation

    if hasattr(Operations, OPERATIONS[-1].name):
        return
    Plugin.setup_plugin_from_module(_comparison, _NAME)
    Operations.implementation_for(AutocommitBlockOp)(lambda operations, operation: operation.execute(operations))
    renderers.dispatch_for(AutocommitBlockOp)(render_autocommit_block)
    for operation in OPERATIONS:
        Operations.implementation_for(operation)(lambda operations, operation: operation.execute(operations))
        renderers.dispatch_for(operation)(render_operation)
        Operations.register_operation(operation.name)(operation)
