"""The statements that adopt a log that another program created, without rewriting it."""

from __future__ import annotations

from typing import Any, Final, Literal

from sqlalchemy import Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

from pupsourcing_sa.tables.naming import dollar_quoted

__all__ = ["AlterLogSequence", "RenameLogConstraint"]

# PostgreSQL cannot turn the sequence of a BIGSERIAL column into that of an identity column. Therefore create a new
# sequence that continues at the same value and has the same privileges. Lock the table in ACCESS EXCLUSIVE mode, as
# ALTER TABLE does, before reading the old value, so that no position is issued in between.
_REPLACE_SEQUENCE: Final = """\

DECLARE
    log CONSTANT text := {name};
    sequence CONSTANT text := pg_get_serial_sequence(log, 'global_position');
    last bigint;
    is_called boolean;
    privileges text[];
    grantees text[];
BEGIN
    IF sequence IS NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'global_position of ' || log || ' has no sequence of its own',
            HINT = 'ALTER SEQUENCE ... OWNED BY makes it the column''s own.';
    END IF;
    LOCK TABLE {log} IN ACCESS EXCLUSIVE MODE;
    EXECUTE 'SELECT last_value, is_called FROM ' || sequence INTO last, is_called;
    SELECT array_agg(privilege_type), array_agg(
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        INTO privileges, grantees
        FROM pg_class, aclexplode(relacl) WHERE oid = sequence::regclass;
{replace}
    PERFORM setval(pg_get_serial_sequence(log, 'global_position'), last, is_called);
    FOR i IN 1 .. coalesce(cardinality(privileges), 0) LOOP
        EXECUTE 'GRANT ' || privileges[i] || ' ON SEQUENCE ' || pg_get_serial_sequence(log, 'global_position')
            || ' TO ' || grantees[i];
    END LOOP;
END
"""
_REPLACEMENTS: Final = {
    "identity": """\
    ALTER TABLE {log} ALTER COLUMN global_position DROP DEFAULT;
    EXECUTE 'DROP SEQUENCE ' || sequence;
    ALTER TABLE {log} ALTER COLUMN global_position ADD GENERATED ALWAYS AS IDENTITY;""",
    "serial": """\
    ALTER TABLE {log} ALTER COLUMN global_position DROP IDENTITY;
    EXECUTE 'CREATE SEQUENCE ' || sequence;
    EXECUTE 'ALTER SEQUENCE ' || sequence || ' OWNED BY ' || log || '.global_position';
    EXECUTE 'ALTER TABLE ' || log || ' ALTER COLUMN global_position SET DEFAULT nextval('
        || quote_literal(sequence) || ')';""",
}


class AlterLogSequence(ExecutableDDLElement):
    """A statement that makes an identity (GENERATED ALWAYS) or a BIGSERIAL sequence issue a log's positions.

    It locks the log in ACCESS EXCLUSIVE mode for a moment; it reads no row.
    """

    def __init__(self, log: Table, to: Literal["identity", "serial"]) -> None:
        self.log = log
        self.to = to


@compiles(AlterLogSequence)
def _compile_alter_log_sequence(element: AlterLogSequence, compiler: Any, **kw: Any) -> str:
    log = compiler.preparer.format_table(element.log)
    name = dollar_quoted(log, "name")
    body = _REPLACE_SEQUENCE.format(log=log, name=name, replace=_REPLACEMENTS[element.to].format(log=log))
    return f"DO {dollar_quoted(body, 'do')}"


class RenameLogConstraint(ExecutableDDLElement):
    """A statement that renames a constraint and its index.

    It locks the table in ACCESS EXCLUSIVE mode for a moment; it reads no row.
    """

    def __init__(self, table: Table, old_name: str, new_name: str) -> None:
        self.table = table
        self.old_name = old_name
        self.new_name = new_name


@compiles(RenameLogConstraint)
def _compile_rename_log_constraint(element: RenameLogConstraint, compiler: Any, **kw: Any) -> str:
    preparer = compiler.preparer
    names = f"{preparer.quote(element.old_name)} TO {preparer.quote(element.new_name)}"
    return f"ALTER TABLE {preparer.format_table(element.table)} RENAME CONSTRAINT {names}"
