"""The registration with Alembic."""

from __future__ import annotations

from typing import Final

from pupsourcing_sa.migrations.requirements import require_alembic

__all__ = ["register"]

_NAME: Final = "pupsourcing_sa"


def register() -> None:
    """Teach Alembic our operations, and autogenerate to find what tables cannot say. Calling it again does nothing.

    ``env.py`` calls it, because migrations need the operations whenever they run, and lists the plugin
    ``"pupsourcing_sa"``, without which autogenerate does not use it::

        migrations.register()
        context.configure(…, autogenerate_plugins=["alembic.autogenerate.*", "pupsourcing_sa"])

    Migrations then have, each with the lock that it takes in its docstring:

    - ``op.create_log_guard``, ``op.replace_log_guard`` and ``op.drop_log_guard``;
    - ``op.alter_log_sequence`` and ``op.rename_log_constraint``, for a log that another program created.

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
