"""Rendering of the operations in a migration script."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op

from pupsourcing_sa.migrations._operations import AutocommitBlockOp, LogOperation

__all__ = ["render_autocommit_block", "render_operation"]


def render_operation(context: AutogenContext, operation: LogOperation) -> str:
    """Return the call of an operation, such as ``log_op.drop_log_guard('append_only', 'events')``.

    Add the import of the module, which type checkers know. They do not know methods that are added to ``alembic.op``.
    """
    context.imports.add("from pupsourcing_sa.migrations import log_op")
    positional, named = operation.arguments
    if operation.schema is not None:
        named = named | {"schema": operation.schema}
    arguments = [_literal(value) for value in positional]
    arguments += [f"{name}={_literal(value)}" for name, value in named.items() if value is not None]
    return f"log_op.{operation.name}({', '.join(arguments)})"


def render_autocommit_block(context: AutogenContext, operation: AutocommitBlockOp) -> list[str]:
    """Return the lines of a ``with`` block that contains the operations."""
    return [
        f"with {context.opts.get('alembic_module_prefix') or ''}get_context().autocommit_block():",
        *(line for child in operation.ops for line in render_op(context, child)),
        # Alembic's printer ends the indented block at an empty line.
        "",
    ]


def _literal(value: Any) -> str:
    # The repr of a quoted_name is not a literal.
    return repr(str(value) if isinstance(value, str) else value)
