"""The tables as an SQL script, for projects without Alembic."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import MetaData, text
from sqlalchemy.orm import Session

from pupsourcing_sa import EventStore, EventTables, NoStream, WorkerTables
from pupsourcing_sa.migrations import sql_script
from tests.fix_alembic import Project
from tests.fix_store import NAMES, make_event


@pytest.mark.parametrize("guarded", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_it_creates_what_create_all_does_and_can_be_run_again(
    project: Project, names: dict[str, str], guarded: bool
) -> None:
    tables = EventTables(MetaData(), **names, guarded=guarded)
    workers = WorkerTables(tables.metadata, schema=names.get("schema"))
    schema = f'CREATE SCHEMA "{names["schema"]}"' if names else "SELECT"
    script = sql_script(tables, workers)

    project.execute(schema, script)

    made = project.objects()
    with Session(project.database) as session:
        EventStore(tables).append(session, NoStream(), [make_event()])
        session.commit()
    project.execute(script)
    assert project.objects() == made
    with Session(project.database) as session:
        assert len(EventStore(tables).read_events(session)) == 1
    tables.metadata.drop_all(project.database)
    tables.metadata.create_all(project.database)
    assert project.objects() == made


def test_it_replaces_guards_and_nothing_else(project: Project) -> None:
    tables = EventTables(guarded=True)
    project.execute(sql_script(tables))
    made = project.objects()
    project.execute(
        "DROP TRIGGER pupsourcing_sa_append_only ON events",
        "CREATE OR REPLACE FUNCTION events_low_water_mark() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN END$$",
    )
    project.execute(sql_script(tables))
    assert project.objects() == made


def test_all_of_it_or_nothing(project: Project) -> None:
    project.execute("CREATE VIEW aggregate_heads AS SELECT 1 AS one")
    script = sql_script(EventTables()).replace(
        "CREATE TABLE IF NOT EXISTS aggregate_heads", "CREATE TABLE aggregate_heads"
    )
    with pytest.raises(Exception, match="already exists"):
        project.execute(script)
    with project.database.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('events')")) is None


def test_a_line_has_no_space_at_its_end() -> None:
    lines = sql_script(EventTables(guarded=True), WorkerTables()).splitlines()
    assert all(line == line.rstrip() for line in lines)


def test_it_needs_to_know_which() -> None:
    with pytest.raises(ValueError, match="^tables must not be empty; write sql_script"):
        sql_script()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (EventTables, "not the class EventTables; write EventTables"),
        (WorkerTables, "not the class WorkerTables; write WorkerTables"),
        (MetaData(), "not MetaData; write EventTables"),
        ("events", "not str; write EventTables"),
    ],
)
def test_what_are_no_tables(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"^tables must be EventTables or WorkerTables, {message}\(…\)$"):
        sql_script(given)
