"""``alembic revision --autogenerate`` finds all of our tables, and no difference afterwards."""

from __future__ import annotations

from runpy import run_path
from typing import Any

import pytest
from sqlalchemy import MetaData, text

from tests.fix_alembic import Project

_MODELS = """
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from pupsourcing_sa import EventTables, WorkerTables

class Base(DeclarativeBase):
    metadata = MetaData({metadata})

class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)

EventTables(Base.metadata{events})
WorkerTables(Base.metadata{workers})
target_metadata = Base.metadata
"""

_CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
_STRANGE = "Müller's %(shop)s"
_STRANGE_NAMES = f', schema="{_STRANGE}", events="the.events", aggregate_heads=\'heads "x"\''


def models(metadata: str = "", events: str = "", workers: str = "") -> str:
    return _MODELS.format(metadata=metadata, events=events, workers=workers)


_LIST = """
from sqlalchemy import MetaData
from pupsourcing_sa import EventTables, WorkerTables
mine, log = MetaData(), MetaData(schema="shop")
EventTables(log, guarded=True)
WorkerTables(mine)
target_metadata = [mine, log]
"""

#: Shapes of projects: their models, and their configuration of Alembic.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": (models(), {"plugin": False}),
    "guarded": (models(events=", guarded=True"), {"compare_type": "True", "compare_server_default": "True"}),
    "guarded-without-plugin": (models(events=", guarded=True"), {"plugin": False}),
    "schema-of-the-tables": (
        models(events=", schema='shop', guarded=True", workers=", schema='shop'"),
        {"include_schemas": "True", "version_table_schema": "'shop'"},
    ),
    "schema-of-the-metadata": (models("schema='shop'", ", guarded=True"), {"include_schemas": "True"}),
    "strange-names": (
        models(events=f"{_STRANGE_NAMES}, guarded=True", workers=f', schema="{_STRANGE}"'),
        {"include_schemas": "True"},
    ),
    "default-schema-by-name": (models(events=", schema='public', guarded=True"), {"include_schemas": "True"}),
    "naming-convention": (
        models(f"naming_convention={_CONVENTION}", ", guarded=True"),
        {"compare_server_default": "True"},
    ),
    "several-metadata": (_LIST, {"include_schemas": "True"}),
    "batch": (models(events=", guarded=True"), {"render_as_batch": "True"}),
    "pyproject": (models(events=", guarded=True"), {"template": "pyproject"}),
    "asyncio": (models(events=", guarded=True"), {"template": "async", "driver": "asyncpg"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_application_with_our_tables_on_its_metadata(project: Project, shape: str) -> None:
    content, options = SHAPES[shape]
    options = dict(options)
    project.url = project.url.replace("+psycopg", f"+{options.pop('driver', 'psycopg')}")
    with project.database.begin() as connection:  # Alembic does not create schemas
        connection.execute(text("CREATE SCHEMA shop"))
        connection.exec_driver_sql(f'CREATE SCHEMA "{_STRANGE.replace("%", "%%")}"')
    project.add_to(content, **options)

    made = project.migrate()

    project.alembic("downgrade", "base")
    target = run_path(str(project.directory / "models.py"))["target_metadata"]
    for metadata in [target] if isinstance(target, MetaData) else target:
        metadata.create_all(project.database)
    if shape != "guarded-without-plugin":
        assert project.objects() == made


def test_guards_without_the_plugin_are_left_to_others(project: Project) -> None:
    """Autogenerate finds no guard, existing or not."""
    project.add_to(models(events=", guarded=True"), plugin=False)
    run_path(str(project.directory / "models.py"))["target_metadata"].create_all(project.database)
    assert project.differences() == ""
    assert "log_guard" not in project.revise("nothing")
