"""The statements that create, replace and drop the guards of a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, MetaData, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

from pupsourcing_sa.tables.guards import Guard, current_guards

__all__ = ["LISTENERS", "create_guard", "drop_guard", "replace_guard"]


class _GuardStatement(ExecutableDDLElement):
    """DDL for one guard of one log. A separate element per statement, because drivers execute one at a time."""

    def __init__(self, guard: Guard, log: Table, text: str) -> None:
        self.guard = guard
        self.log = log
        self.text = text


@compiles(_GuardStatement)
def _compile_guard_statement(element: _GuardStatement, compiler: Any, **kw: Any) -> str:
    guard, log = element.guard, element.log
    # A Table formats the function's name with quotes and, under a `schema_translate_map`, with the log's schema.
    function = Table(guard.function_name(log.name), MetaData(), schema=log.schema)
    format_table = compiler.preparer.format_table
    return element.text.format(log=format_table(log), function=format_table(function), guard=guard)


_CREATE_FUNCTION: Final = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $guard${guard.body}$guard$"""
_CREATE_TRIGGER: Final = """\
CREATE TRIGGER {guard.trigger_name} BEFORE {guard.events} ON {log}
FOR EACH STATEMENT EXECUTE FUNCTION {function}()"""
_DROP_TRIGGER: Final = "DROP TRIGGER IF EXISTS {guard.trigger_name} ON {log}"
_DROP_FUNCTION: Final = "DROP FUNCTION IF EXISTS {function}()"


def create_guard(guard: Guard, log: Table) -> list[ExecutableDDLElement]:
    """Return the statements that create a missing guard.

    They lock the log in SHARE ROW EXCLUSIVE mode, which conflicts with appends in open transactions but not with reads.
    """
    return [_GuardStatement(guard, log, text) for text in (_CREATE_FUNCTION, _CREATE_TRIGGER)]


def replace_guard(guard: Guard, log: Table) -> list[ExecutableDDLElement]:
    """Return the statements that create a guard, or replace an existing trigger and function with its names.

    They lock the log in ACCESS EXCLUSIVE mode, which conflicts with every other use of it.
    """
    # CREATE OR REPLACE TRIGGER requires PostgreSQL 14.
    return [_GuardStatement(guard, log, text) for text in (_CREATE_FUNCTION, _DROP_TRIGGER, _CREATE_TRIGGER)]


def drop_guard(guard: Guard, log: Table) -> list[ExecutableDDLElement]:
    """Return the statements that drop a guard, even an incomplete one.

    They lock the log in ACCESS EXCLUSIVE mode, which conflicts with every other use of it.
    """
    return [_GuardStatement(guard, log, text) for text in (_DROP_TRIGGER, _DROP_FUNCTION)]


# -- create_all() and drop_all() -----------------------------------------------------------------------------------


def _after_create(log: Table, connection: Connection, **kw: Any) -> None:
    for guard in current_guards():
        for statement in create_guard(guard, log):
            connection.execute(statement)


def _after_drop(log: Table, connection: Connection, **kw: Any) -> None:
    # PostgreSQL drops the triggers with the table, but not their functions.
    for guard in current_guards():
        connection.execute(_GuardStatement(guard, log, _DROP_FUNCTION))


#: Event listeners for the table of a guarded log.
LISTENERS: Final[Sequence[tuple[str, Callable[..., None]]]] = (
    ("after_create", _after_create),
    ("after_drop", _after_drop),
)
