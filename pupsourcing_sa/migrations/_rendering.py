"""How the operations read in a migration."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op

from pupsourcing_sa.migrations._operations import AutocommitBlockOp, LogOperation

__all__ = ["render_autocommit_block", "render_operation"]


def render_operation(context: AutogenContext, operation: LogOperation) -> str:
    positional, named = operation.arguments
    if operation.schema is not None:
        named = named | {"schema": operation.schema}
    arguments = [_literal(each) for each in positional]
    arguments += [f"{name}={_literal(value)}" for name, value in named.items() if value is not None]
    return f"{_prefix(context)}{operation.name}({', '.join(arguments)})"


def render_autocommit_block(context: AutogenContext, operation: AutocommitBlockOp) -> list[str]:
    return [
        f"with {_prefix(context)}get_context().autocommit_block():",
        *(line for each in operation.ops for line in render_op(context, each)),
        "",  # which ends the block, for what prints it
    ]


def _prefix(context: AutogenContext) -> str:
    return str(context.opts.get("alembic_module_prefix") or "")


def _literal(value: Any) -> str:
    return repr(str(value) if isinstance(value, str) else value)  # the repr of a quoted_name is none
