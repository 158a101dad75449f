"""Tables of this library that another project creates, and that autogenerate must not touch."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, inspect

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.migrations import all_but
from tests.fix_alembic import Autogenerate
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

        assert upgrade().count("op.drop_table") == len((*ours.tables, *workers.tables, "stale"))
        include_object = all_but(ours, workers, default_schema=default_schema)
        assert upgrade(include_object=include_object) == "op.drop_table('stale')"
        include_object = all_but(
            ours, workers, default_schema=default_schema, include_object=lambda _, name, *__: name != "stale"
        )
        assert upgrade(include_object=include_object) == ""


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
