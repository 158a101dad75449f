"""Tables of this library that another project creates, and that autogenerate must not touch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic.util import CommandError
from sqlalchemy import Column, Engine, Integer, MetaData, PrimaryKeyConstraint, Table, Text, Uuid, inspect

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.migrations import all_but
from tests.fix_alembic import Autogenerate, Project
from tests.fix_postgres import new_schema
from tests.fix_store import NAMES


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_tables_that_are_not_on_the_metadata_are_not_dropped(engine: Engine, names: dict[str, str]) -> None:
    ours = EventTables(MetaData(), **names, guarded=True)
    workers = WorkerTables(MetaData(), schema=names.get("schema"))
    default_schema = str(inspect(engine).default_schema_name)
    with new_schema(engine, names.get("schema")):
        for metadata in (ours.metadata, workers.metadata):
            metadata.create_all(engine)
        other = MetaData()
        Table("stale", other, Column("id", Integer))
        other.create_all(engine)

        def upgrade(**options: Any) -> str:
            schemas = {None, names.get("schema")}
            options["include_name"] = lambda name, type_, _: type_ != "schema" or name in schemas
            return Autogenerate(engine, MetaData(), include_schemas=True, **options).upgrade()

        with pytest.raises(CommandError, match=r"would drop .*consumer_checkpoints.*pass drop_event_tables=True$"):
            upgrade()
        assert upgrade(drop_event_tables=True).count("op.drop_table") == len((*ours.tables, *workers.tables, "stale"))
        include_object = all_but(ours, workers, default_schema=default_schema)
        assert upgrade(include_object=include_object) == "op.drop_table('stale')"
        include_object = all_but(
            ours, workers, default_schema=default_schema, include_object=lambda _, name, *__: name != "stale"
        )
        assert upgrade(include_object=include_object) == ""


def test_tables_of_an_application_that_resemble_ours_are_dropped(engine: Engine) -> None:
    metadata = MetaData()
    Table("events", metadata, Column("id", Integer, primary_key=True), Column("payload", Text))
    Table("worker_nodes", metadata, Column("worker_id", Uuid, primary_key=True), Column("hostname", Text))
    Table(
        "states",
        metadata,
        *(column._copy() for column in EventTables().aggregate_heads.columns),
        Column("state", Text),
        PrimaryKeyConstraint("aggregate_type", "aggregate_id"),
    )
    metadata.create_all(engine)
    assert Autogenerate(engine, MetaData()).upgrade().count("op.drop_table") == 3


@pytest.mark.parametrize(
    ("dump", "names"),
    [
        ("released/0.1/dump.sql", "aggregate_heads, consumer_assignments, consumer_checkpoints, events, worker_nodes"),
        ("go/dump.sql", "aggregate_heads, events"),
    ],
)
def test_tables_of_other_versions_are_recognized(project: Project, dump: str, names: str) -> None:
    project.execute((Path(__file__).parent / dump).read_text())
    with pytest.raises(CommandError, match=f"would drop {names} with"):
        Autogenerate(project.database, MetaData()).upgrade()


def test_an_environment_that_lacks_the_import(new_project: Project) -> None:
    """The command fails with the reason and without a traceback, and writes no revision."""
    new_project.revise("the tables")
    new_project.alembic("upgrade", "head")
    new_project.replace("migrations/env.py", "\nEventTables(target_metadata)\nWorkerTables(target_metadata)\n", "\n")
    for command in (["revision", "--autogenerate"], ["check"]):
        done = new_project.try_alembic(*command)
        assert done.returncode != 0
        assert "In env.py, import the module that declares them" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    option = "'drop_event_tables': True,"
    new_project.replace("migrations/env.py", "options: dict[str, Any] = {", f"options: dict[str, Any] = {{{option}")
    assert "op.drop_table('events')" in new_project.revise("without events")


def test_the_default_schema_by_its_name() -> None:
    reflected = Table("events", MetaData())
    assert not all_but(EventTables(schema="public"))(reflected, "events", "table", True, None)
    assert not all_but(EventTables(schema="shop"), default_schema="shop")(reflected, "events", "table", True, None)
    assert all_but(EventTables(schema="shop"))(reflected, "events", "table", True, None)
    assert all_but(EventTables())(Column("events", Integer), "events", "column", True, None)


def test_it_needs_to_know_which() -> None:
    with pytest.raises(ValueError, match="^tables must not be empty; write all_but"):
        all_but()


@pytest.mark.parametrize(("given", "what"), [(EventTables, "the class EventTables"), (MetaData(), "MetaData")])
def test_what_are_no_tables(given: Any, what: str) -> None:
    with pytest.raises(TypeError, match=f"^tables must be .*, not {what}; write EventTables\\(…\\)$"):
        all_but(given)
