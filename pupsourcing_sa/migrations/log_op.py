"""Operations for migrations, with types, for the tables of this library.

Autogenerate writes them into a revision::

    from pupsourcing_sa.migrations import log_op

    def upgrade() -> None:
        log_op.create_log_guard("append_only", "events", version=1)

They are also methods of ``alembic.op`` after `pupsourcing_sa.migrations.register`. Type checkers do not know methods
that are added to ``alembic.op``, and migrations with these functions do not need the call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec

from pupsourcing_sa.migrations._plugin import register

register()

from alembic import op  # noqa: E402 - register() explains how to install Alembic
from alembic.operations import Operations  # noqa: E402

from pupsourcing_sa.migrations._operations import (  # noqa: E402
    AlterLogSequenceOp,
    CreateLogGuardOp,
    DropLogGuardOp,
    RenameLogConstraintOp,
    ReplaceLogGuardOp,
)

__all__ = [
    "alter_log_sequence",
    "create_log_guard",
    "drop_log_guard",
    "rename_log_constraint",
    "replace_log_guard",
]

_Arguments = ParamSpec("_Arguments")
# The module has the methods of the operations of the running migration.
_OPERATIONS: Final[Any] = op


def _in_migration(
    operation: Callable[Concatenate[Operations, _Arguments], None],
) -> Callable[_Arguments, None]:
    """Return a function that invokes the operation in the running migration."""

    @wraps(operation)
    def invoke(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        operation(_OPERATIONS, *args, **kwargs)

    return invoke


create_log_guard = _in_migration(CreateLogGuardOp.create_log_guard)
replace_log_guard = _in_migration(ReplaceLogGuardOp.replace_log_guard)
drop_log_guard = _in_migration(DropLogGuardOp.drop_log_guard)
alter_log_sequence = _in_migration(AlterLogSequenceOp.alter_log_sequence)
rename_log_constraint = _in_migration(RenameLogConstraintOp.rename_log_constraint)
