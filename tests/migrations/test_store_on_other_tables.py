"""The tests of the store, repeated on guarded, adopted, and upgraded tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, inspect, text

from pupsourcing_sa import EventTables
from tests.fix_alembic import Autogenerate
from tests.fix_store import Log, make_named_tables
from tests.migrations.test_adopting import DUMP
from tests.migrations.test_upgrading import RELEASED, VERSIONS
from tests.prepared_schemas import prepare
from tests.store import test_append, test_append_many, test_append_once, test_reading
from tests.store.test_append_once import two  # noqa: F401
from tests.store.test_reading import scoped, ten  # noqa: F401

for _module in (test_append, test_append_many, test_append_once, test_reading):
    for _name, _value in vars(_module).items():
        if _name.startswith(("test_", "Test")):
            globals()[f"{_name}_of_{_module.__name__.rpartition('.')[2]}"] = _value

#: The kind of the tables and of the session, in the daily and in the exhaustive run.
DAILY = [("guarded-custom", "asyncpg-connection"), ("go", "session")]
OTHERS = [("guarded", "session"), *((version, "session") for version in VERSIONS)]


def _migrated(engine: Engine, dump: str, *, guarded: bool) -> EventTables:
    """Create tables from a dump, upgrade them by autogenerate, and empty them."""
    schema = str(inspect(engine).default_schema_name)
    tables = EventTables(guarded=guarded)
    with engine.begin() as connection, connection.connection.cursor() as cursor:
        cursor.execute(dump.replace("public.", f"{schema}.").replace("'search_path', ''", f"'search_path', '{schema}'"))
    with engine.begin() as connection:
        for table in inspect(connection).get_table_names():
            if table not in tables.metadata.tables:  # Alembic's table and the worker's tables
                connection.execute(text(f"DROP TABLE {table} CASCADE"))
    autogenerate = Autogenerate(engine, tables.metadata)
    autogenerate.execute(autogenerate.upgrade())
    assert autogenerate.upgrade() == ""
    return tables


def _empty(engine: Engine, tables: EventTables) -> None:
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL pupsourcing_sa.allow_rewrite = 'on'"))
        for table in tables.metadata.sorted_tables:
            name = connection.dialect.identifier_preparer.format_table(table)
            assert connection.scalar(text(f"SELECT count(*) FROM {name}"))  # the dump has data
            connection.execute(text(f"TRUNCATE {name} RESTART IDENTITY"))


def _make(engine: Engine, variant: str) -> EventTables:
    if variant.startswith("guarded"):
        return make_named_tables(engine, "custom" if "custom" in variant else "default", guarded=True)
    prepare(engine, variant, lambda: _create(engine, variant))
    return EventTables(guarded=variant != "go")


def _create(engine: Engine, variant: str) -> None:
    if variant == "go":
        schema = str(inspect(engine).default_schema_name)
        with engine.begin() as connection, connection.connection.cursor() as cursor:
            cursor.execute(DUMP.replace("public.", f"{schema}."))
        tables = EventTables()
    else:
        tables = _migrated(engine, Path(RELEASED / variant / "dump.sql").read_text(), guarded=True)
    engine.dispose()  # connections with the search_path of the dump
    _empty(engine, tables)


@pytest.fixture(
    params=[
        *(pytest.param(variant, id="-".join(variant)) for variant in DAILY),
        *(pytest.param(variant, id="-".join(variant), marks=pytest.mark.exhaustive) for variant in OTHERS),
    ]
)
def log(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Log]:
    variant, kind = request.param
    log = Log(engine, _make(engine, variant), kind)
    yield log
    log.close()


@pytest.fixture
def plain_log(engine: Engine) -> Iterator[Any]:
    log = Log(engine, _make(engine, "guarded"), "session")
    yield log
    log.close()
