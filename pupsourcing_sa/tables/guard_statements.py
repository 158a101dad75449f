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
    """DDL about one guard of one log; PostgreSQL's drivers take one statement at a time."""

    def __init__(self, guard: Guard, log: Table, text: str) -> None:
        self.guard = guard
        self.log = log
        self.text = text


@compiles(_GuardStatement)
def _compile_guard_statement(element: _GuardStatement, compiler: Any, **kw: Any) -> str:
    guard, log = element.guard, element.log
    # Quoted like a table's name, in the schema that the log is in under the `schema_translate_map` of the moment.
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
    """Create a guard that is not there.

    Takes SHARE ROW EXCLUSIVE on the log: waits for appends in open transactions, and appends wait for it; reads go on.
    """
    return [_GuardStatement(guard, log, text) for text in (_CREATE_FUNCTION, _CREATE_TRIGGER)]


def replace_guard(guard: Guard, log: Table) -> list[ExecutableDDLElement]:
    """Create a guard, whatever is there under its names.

    Takes ACCESS EXCLUSIVE on the log, for which it waits for everyone, and everyone for it.
    """
    # CREATE OR REPLACE TRIGGER would need PostgreSQL 14.
    return [_GuardStatement(guard, log, text) for text in (_CREATE_FUNCTION, _DROP_TRIGGER, _CREATE_TRIGGER)]


def drop_guard(guard: Guard, log: Table) -> list[ExecutableDDLElement]:
    """Drop a guard, or what is left of it.

    Takes ACCESS EXCLUSIVE on the log, for which it waits for everyone, and everyone for it.
    """
    return [_GuardStatement(guard, log, text) for text in (_DROP_TRIGGER, _DROP_FUNCTION)]


# -- create_all() and drop_all() -----------------------------------------------------------------------------------


def _after_create(log: Table, connection: Connection, **kw: Any) -> None:
    for guard in current_guards():
        for statement in create_guard(guard, log):
            connection.execute(statement)


def _after_drop(log: Table, connection: Connection, **kw: Any) -> None:
    for guard in current_guards():  # the triggers went with the table
        connection.execute(_GuardStatement(guard, log, _DROP_FUNCTION))


#: For the table of a guarded log.
LISTENERS: Final[Sequence[tuple[str, Callable[..., None]]]] = (
    ("after_create", _after_create),
    ("after_drop", _after_drop),
)
