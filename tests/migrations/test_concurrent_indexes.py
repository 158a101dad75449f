"""Indexes of a log that is in use, created without stopping those who append to it."""

from __future__ import annotations

import re

import pytest
from alembic.operations import Operations
from alembic.operations.ops import CreateIndexOp, DropIndexOp
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text

from pupsourcing_sa import EventTables
from pupsourcing_sa.migrations import register
from pupsourcing_sa.migrations._operations import AutocommitBlockOp
from tests.fix_alembic import Project, index_files
from tests.migrations.test_adopting import DUMP

_MODELS = "from pupsourcing_sa import EventTables\ntarget_metadata = EventTables().metadata\n"


@pytest.fixture
def adopting(project: Project) -> Project:
    project.execute(DUMP)
    project.add_to(_MODELS, process_revision_directives="migrations.concurrent_indexes")
    return project


def test_they_are_in_a_revision_of_their_own(adopting: Project) -> None:
    before = adopting.objects()
    adopting.revise("adopt the log")
    versions = {
        path.stem.partition("_")[2]: path.read_text()
        for path in (adopting.directory / "migrations" / "versions").glob("*.py")
    }
    assert sorted(versions) == ["adopt_the_log", "adopt_the_log_indexes"]
    assert "index" not in versions["adopt_the_log"].partition("def upgrade")[2]
    assert "op.alter_log_sequence('events', to='identity')" in versions["adopt_the_log"]
    upgrade = versions["adopt_the_log_indexes"].partition("def upgrade")[2].partition("def downgrade")[0]
    block = [line for line in upgrade.splitlines() if line.startswith("    ") and not re.search('#|"""', line)]
    assert block[0] == "    with op.get_context().autocommit_block():"
    assert len(block) == 9
    assert all(line.startswith("        op.") and "postgresql_concurrently=True" in line for line in block[1:])

    adopting.alembic("upgrade", "head")
    assert adopting.differences() == ""
    made = adopting.objects()
    adopting.alembic("downgrade", "base")
    assert adopting.objects() == before
    sql = adopting.alembic("upgrade", "head", "--sql")
    adopting.execute("DROP TABLE alembic_version")
    adopting.execute_output(sql)
    assert adopting.objects() == made


def test_they_can_be_run_again(adopting: Project) -> None:
    """After an attempt that was interrupted one of the old is gone, and one of the new is there and invalid."""
    adopting.revise("adopt the log")
    new = "events_correlation_id_global_position_idx"
    adopting.execute(
        "DROP INDEX idx_events_aggregate",
        f"CREATE INDEX {new} ON events (correlation_id, global_position) WHERE correlation_id IS NOT NULL",
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{new}'::regclass",
    )
    adopting.alembic("upgrade", "head")
    assert adopting.differences() == ""
    with adopting.database.connect() as connection:
        assert connection.scalar(text("SELECT bool_and(indisvalid) FROM pg_index"))


def test_a_new_log_has_its_indexes_with_it(project: Project) -> None:
    project.add_to(_MODELS, process_revision_directives="migrations.concurrent_indexes")
    revision = project.revise("event log")
    assert "autocommit_block" not in revision
    assert "op.create_index('events_aggregate_type_global_position_idx'" in revision


def test_indexes_of_the_applications_own_tables_are_its_own_affair(project: Project) -> None:
    models = (
        "from sqlalchemy import Column, Index, Integer, MetaData, Table\n"
        "target_metadata = MetaData()\n"
        "Table('customer', target_metadata, Column('id', Integer), Index('customer_id', 'id'))\n"
    )
    project.execute("CREATE TABLE customer (id integer)")
    project.add_to(models, process_revision_directives="migrations.concurrent_indexes")
    assert "autocommit_block" not in project.revise("index")


def test_the_block_as_an_operation(engine: Engine) -> None:
    """For programs that execute what autogenerate finds, rather than write it down."""
    register()
    metadata = EventTables().metadata
    metadata.create_all(engine)
    index = next(each for each in metadata.tables["events"].indexes if "correlation_id" in each.columns)
    drop, create = DropIndexOp.from_index(index), CreateIndexOp.from_index(index)
    for operation in (drop, create):
        operation.kw = {"postgresql_concurrently": True}
    block = AutocommitBlockOp([drop, create])
    assert [type(each) for each in block.reverse().ops] == [DropIndexOp, CreateIndexOp]
    before = index_files(engine, "events")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            Operations(context).invoke(block)
    after = index_files(engine, "events")
    assert {name for name in before if before[name] != after[name]} == {index.name}
