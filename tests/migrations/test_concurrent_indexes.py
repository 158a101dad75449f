"""Indexes of a log in use, created without blocking appends."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

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
from tests.waiting import wait_until

_MODELS = "from pupsourcing_sa import EventTables\ntarget_metadata = EventTables().metadata\n"


@pytest.fixture
def adopting(project: Project) -> Project:
    project.execute(DUMP)
    project.add_to(_MODELS, process_revision_directives="migrations.concurrent_indexes")
    return project


def operations(revision: str) -> list[str]:
    """Return the lines of a revision's upgrade(), without comments."""
    upgrade = revision.partition("def upgrade")[2].partition("def downgrade")[0]
    return [line.strip() for line in upgrade.splitlines() if line.startswith("    ") and not re.search('#|"""', line)]


_NEW = ["events_aggregate_type_global_position_idx", "events_correlation_id_global_position_idx"]


def test_each_has_a_revision_of_its_own(adopting: Project) -> None:
    before = adopting.objects()
    assert "idx_events_aggregate" in adopting.differences()  # Alembic shows only the last revision
    adopting.revise("adopt the log")
    revisions = [
        (text, operations(text))
        for path in (adopting.directory / "migrations" / "versions").glob("*.py")
        if (text := path.read_text())
    ]
    revisions.sort(key=lambda each: each[0].partition("\n")[0])
    assert [text.partition("\n")[0].removeprefix('"""adopt the log') for text, _ in revisions] == [
        "",
        f", {_NEW[0]}",
        f", {_NEW[1]}",
        ", old indexes",
    ]
    everything_else, *of_indexes = [found for _, found in revisions]
    assert everything_else == ["log_op.alter_log_sequence('events', to='identity')"]
    for block in of_indexes:
        assert block[:2] == ["with op.get_context().autocommit_block():", "op.execute('SET lock_timeout = 0')"]
        assert block[-1] == "op.execute('RESET lock_timeout')"
        assert all(line.startswith("op.") and "postgresql_concurrently=True" in line for line in block[2:-1])
    assert [len(block) - 3 for block in of_indexes] == [2, 2, 4]

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
    """An attempt was interrupted: one new index is complete, the other is invalid, and an old one is dropped."""
    adopting.revise("adopt the log")
    done, interrupted = _NEW
    adopting.alembic("upgrade", "+2")
    before = index_files(adopting.database, "events")
    adopting.execute(
        "DROP INDEX idx_events_aggregate",
        f"CREATE INDEX {interrupted} ON events (correlation_id, global_position) WHERE correlation_id IS NOT NULL",
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{interrupted}'::regclass",
    )
    adopting.alembic("upgrade", "head")
    assert adopting.differences() == ""
    assert index_files(adopting.database, "events")[done] == before[done]
    with adopting.database.connect() as connection:
        assert connection.scalar(text("SELECT bool_and(indisvalid) FROM pg_index"))


def test_what_others_do_meanwhile_makes_none_fail(adopting: Project) -> None:
    """A lock_timeout would end it while it waits for an open transaction, and leave an invalid index."""
    adopting.revise("adopt the log")
    adopting.alembic("upgrade", "+1")
    adopting.replace("migrations/env.py", "poolclass=", "connect_args={'options': '-clock_timeout=50ms'}, poolclass=")
    with adopting.database.connect() as report, ThreadPoolExecutor() as pool:
        report.execute(text("SELECT count(*) FROM events"))
        upgrade = pool.submit(adopting.alembic, "upgrade", "+1")
        wait_until(lambda: upgrade.done() or is_waiting(adopting, "200ms"))
        report.rollback()
        upgrade.result()


def is_waiting(project: Project, age: str) -> bool:
    """Return True if a statement of that age waits for a transaction."""
    with project.database.connect() as connection:
        return bool(
            connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'virtualxid' "
                    "AND datname = current_database() AND clock_timestamp() - query_start > CAST(:age AS interval)"
                ),
                {"age": age},
            )
        )


def test_an_index_that_has_changed(adopting: Project) -> None:
    """Another index has its name. The upgrade replaces it, and the downgrade restores it."""
    adopting.revise("adopt the log")
    adopting.alembic("upgrade", "head")
    adopting.execute(f"DROP INDEX {_NEW[0]}", f"CREATE INDEX {_NEW[0]} ON events (aggregate_type)")
    before = adopting.objects()
    revision = adopting.revise("replace")
    assert revision.count("Revision ID") == 1
    adopting.alembic("upgrade", "head")
    assert adopting.differences() == ""
    adopting.alembic("downgrade", "-1")
    assert adopting.objects() == before


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
    """Some programs execute the operations that autogenerate finds, without writing a revision."""
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
