"""Guards in migrations: the operations that autogenerate finds, their text, and their downgrade."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, Table

from pupsourcing_sa import EventTables
from pupsourcing_sa.errors import MissingExtraError
from pupsourcing_sa.migrations import register
from pupsourcing_sa.tables import guards
from tests.fix_alembic import Autogenerate
from tests.fix_guards import GuardedLog
from tests.fix_postgres import new_schema
from tests.fix_store import NAMES


class Migrated:
    """A guarded log, created by autogenerate or by ``create_all()``."""

    def __init__(self, engine: Engine, names: dict[str, str]) -> None:
        self.engine = engine
        self.names = names
        self.log = GuardedLog(engine, names)
        self.metadata = self.log.tables.metadata
        self.options = {"include_schemas": "schema" in names}
        self.autogenerate = self.autogenerate_for(self.metadata)
        #: The text after the name of the guard in a migration.
        schema = f", schema={names['schema']!r}" if "schema" in names else ""
        self.arguments = f"{names.get('events', 'events')!r}", schema

    def autogenerate_for(self, metadata: MetaData, **options: Any) -> Autogenerate:
        def is_own_schema(name: str | None, type_: str, parents: Any) -> bool:
            return type_ != "schema" or name == self.names.get("schema")

        return Autogenerate(self.engine, metadata, include_name=is_own_schema, **self.options | options)

    def operation(self, name: str, guard: str, arguments: str = "") -> str:
        table, schema = self.arguments
        return f"log_op.{name}({guard!r}, {table}{arguments}{schema})"

    def execute(self, sql: str) -> None:
        with self.engine.begin() as connection:
            self.log.execute(connection, sql)


@pytest.fixture(params=NAMES)
def migrated(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Migrated]:
    with new_schema(engine, NAMES[request.param].get("schema")):
        migrated = Migrated(engine, NAMES[request.param])
        migrated.metadata.create_all(engine)
        yield migrated


def test_what_create_all_made_is_what_is_wanted(migrated: Migrated) -> None:
    assert migrated.autogenerate.upgrade() == ""


def test_to_guard_a_log_and_no_longer(migrated: Migrated) -> None:
    objects = migrated.log.objects()
    unguarded = EventTables(MetaData(), **migrated.names).metadata
    to_unguarded = migrated.autogenerate_for(unguarded)
    created = [
        migrated.operation("create_log_guard", "append_only", ", version=1"),
        migrated.operation("create_log_guard", "low_water_mark", ", version=1"),
    ]
    dropped = [
        migrated.operation("drop_log_guard", "append_only"),
        migrated.operation("drop_log_guard", "low_water_mark"),
    ]
    assert to_unguarded.upgrade().splitlines() == dropped
    assert to_unguarded.downgrade().splitlines() == created[::-1]
    migrated.autogenerate.execute("\n".join(dropped))
    assert migrated.log.objects() == []
    assert to_unguarded.upgrade() == ""

    assert migrated.autogenerate.upgrade().splitlines() == created
    assert migrated.autogenerate.downgrade().splitlines() == dropped[::-1]
    migrated.autogenerate.execute("\n".join(created))
    assert migrated.log.objects() == objects
    assert migrated.autogenerate.upgrade() == ""


def test_a_guard_that_was_dropped_by_hand(migrated: Migrated) -> None:
    migrated.execute("DROP TRIGGER pupsourcing_sa_append_only ON {log}")
    upgrade = migrated.autogenerate.upgrade()
    assert upgrade == migrated.operation("create_log_guard", "append_only", ", version=1")
    migrated.autogenerate.execute(upgrade)
    assert migrated.autogenerate.upgrade() == ""


_REPLACE = (
    "DROP TRIGGER pupsourcing_sa_append_only ON {{log}}; CREATE TRIGGER pupsourcing_sa_append_only "
    "BEFORE {} ON {{log}} FOR EACH STATEMENT {} EXECUTE FUNCTION {{function}}()"
)

#: Changes to a guard by hand, in SQL with {log} and {function}.
ALTERED = {
    "disabled": "ALTER TABLE {log} DISABLE TRIGGER pupsourcing_sa_append_only",
    "for-replication-only": "ALTER TABLE {log} ENABLE REPLICA TRIGGER pupsourcing_sa_append_only",
    "another-text": "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS "
    "$guard$BEGIN RETURN NULL; END$guard$",
    "fewer-events": _REPLACE.format("UPDATE", ""),
    "a-condition": _REPLACE.format("UPDATE OR DELETE OR TRUNCATE", "WHEN (current_user <> 'admin')"),
    "some-columns": _REPLACE.format("UPDATE OF trace_id OR DELETE OR TRUNCATE", ""),
    "a-setting": "ALTER FUNCTION {function}() SET pupsourcing_sa.allow_rewrite = 'on'",
    "renamed-function": "ALTER FUNCTION {function}() RENAME TO something_else",
}


@pytest.mark.parametrize("how", ALTERED)
def test_a_guard_that_was_altered_by_hand(migrated: Migrated, how: str) -> None:
    table = Table(
        guards.find_guard("append_only", 1).function_name(migrated.log.tables.events.name),
        MetaData(),
        schema=migrated.names.get("schema"),
    )
    function = migrated.engine.dialect.identifier_preparer.format_table(table).replace("%%", "%")
    migrated.execute(ALTERED[how].replace("{function}", function))

    upgrade = migrated.autogenerate.upgrade()

    assert upgrade == migrated.operation("replace_log_guard", "append_only", ", version=1")
    downgrade = migrated.autogenerate.downgrade()  # a downgrade cannot restore a change by hand
    assert downgrade == migrated.operation("replace_log_guard", "append_only", ", version=1, existing_version=1")
    migrated.autogenerate.execute(upgrade)
    assert migrated.autogenerate.upgrade() == ""
    migrated.autogenerate.execute(downgrade)
    assert migrated.autogenerate.upgrade() == ""


def test_a_trigger_that_fires_always_is_as_good(migrated: Migrated) -> None:
    migrated.execute("ALTER TABLE {log} ENABLE ALWAYS TRIGGER pupsourcing_sa_append_only")
    assert migrated.autogenerate.upgrade() == ""


def test_a_new_version_of_a_guard(migrated: Migrated, monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces the old version. Older migrations still create the old version."""
    first = guards.find_guard("append_only", 1)
    text = first.body.replace("version 1", "version 2")
    second = guards.Guard("append_only", 2, "UPDATE OR DELETE", 2 + 8 + 16, text)
    monkeypatch.setitem(guards._VERSIONS, "append_only", [first, second])

    upgrade, downgrade = migrated.autogenerate.upgrade(), migrated.autogenerate.downgrade()

    assert upgrade == migrated.operation("replace_log_guard", "append_only", ", version=2, existing_version=1")
    assert downgrade == migrated.operation("replace_log_guard", "append_only", ", version=1, existing_version=2")
    migrated.autogenerate.execute(upgrade)
    assert migrated.autogenerate.upgrade() == ""
    migrated.autogenerate.execute(downgrade)
    monkeypatch.undo()
    assert migrated.autogenerate.upgrade() == ""


def test_a_guard_of_no_known_version_comes_back_as_the_current_one(
    migrated: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = guards.find_guard("append_only", 1)
    second = guards.Guard("append_only", 2, first.events, first.trigger_type, first.body.replace("n 1", "n 2"))
    monkeypatch.setitem(guards._VERSIONS, "append_only", [first, second])
    migrated.autogenerate.execute(migrated.autogenerate.upgrade())
    unguarded = migrated.autogenerate_for(EventTables(MetaData(), **migrated.names).metadata)
    created = migrated.operation("create_log_guard", "append_only", ", version=2")
    assert created in unguarded.downgrade()
    migrated.execute("ALTER TABLE {log} DISABLE TRIGGER pupsourcing_sa_append_only")
    assert created in unguarded.downgrade()


def test_a_log_that_is_dropped_takes_its_functions_with_it(migrated: Migrated) -> None:
    nothing = migrated.autogenerate_for(MetaData(), drop_event_tables=True)
    upgrade, downgrade = nothing.upgrade(), nothing.downgrade()
    dropped = upgrade.index(f"op.drop_table({migrated.arguments[0]}")
    assert upgrade.index("log_op.drop_log_guard('low_water_mark'") < dropped
    nothing.execute(upgrade)
    assert migrated.log.objects() == []
    nothing.execute(downgrade)
    assert migrated.autogenerate.upgrade() == ""


def test_a_table_that_the_project_filters_out_is_left_alone(migrated: Migrated) -> None:
    migrated.execute("DROP TRIGGER pupsourcing_sa_append_only ON {log}")
    filtered = migrated.autogenerate_for(
        migrated.metadata, include_object=lambda object_, name, type_, *_: type_ != "table"
    )
    assert filtered.upgrade() == ""


def test_two_logs_in_several_metadata(engine: Engine) -> None:
    logs = [EventTables(MetaData(), guarded=True), EventTables(MetaData(), events="e2", aggregate_heads="h2")]
    for log in logs:
        log.metadata.create_all(engine)
    both = Autogenerate(engine, [log.metadata for log in logs])
    assert both.upgrade() == ""
    guarded = EventTables(MetaData(), events="e2", aggregate_heads="h2", guarded=True)
    both = Autogenerate(engine, [logs[0].metadata, guarded.metadata])
    assert both.upgrade().splitlines() == [
        "log_op.create_log_guard('append_only', 'e2', version=1)",
        "log_op.create_log_guard('low_water_mark', 'e2', version=1)",
    ]


def test_what_is_known() -> None:
    with pytest.raises(
        ValueError, match="there is no guard 'append_only' version 9; .* has 'append_only' version 1, 'low"
    ):
        guards.find_guard("append_only", 9)


def test_registering_again_does_nothing(engine: Engine) -> None:
    register()
    register()
    with engine.connect() as connection:
        operations = Operations(MigrationContext.configure(connection))
        with pytest.raises(ValueError, match="there is no guard 'append-only' version 1"):
            operations.create_log_guard("append-only", "events", version=1)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="^to must be 'identity' or 'serial', not 'bigserial'"):
            operations.alter_log_sequence("events", to="bigserial")  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="there is no guard 'append-only'"):
            operations.drop_log_guard("append-only", "events")  # type: ignore[attr-defined]


def test_without_alembic(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each == "alembic" or each.startswith("alembic.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pupsourcing-sa\[alembic\]'"):
        register()


def test_with_an_alembic_that_has_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alembic.__version__", "1.17.2")
    monkeypatch.setitem(sys.modules, "alembic.runtime.plugins", None)
    with pytest.raises(MissingExtraError, match=r"^alembic 1.18 or newer is required, but 1.17.2 is installed: pip"):
        register()


def test_with_a_directory_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alembic", ModuleType("alembic"))
    with pytest.raises(MissingExtraError, match="^alembic is not installed"):
        register()
