"""The user's own autogenerate upgrades the tables of each released version, with data in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from pupsourcing_sa import EventStore, EventTables, Exact
from tests.fix_alembic import Project
from tests.fix_store import make_event

RELEASED = Path(__file__).parent / "released"
VERSIONS = sorted(path.name for path in RELEASED.iterdir())

pytestmark = pytest.mark.usefixtures("new_project")


def add_revision(project: Project, version: str) -> None:
    """Add the revision that the version wrote."""
    revision = (RELEASED / version / "0001_event_log.txt").read_text()
    (project.directory / "migrations" / "versions" / "0001_event_log.py").write_text(revision)


@pytest.mark.parametrize("guarded", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_upgrade_with_data_in_it(project: Project, version: str, guarded: bool) -> None:
    add_revision(project, version)
    if guarded:
        project.guard()
    project.execute((RELEASED / version / "dump.sql").read_text())  # the database is at that revision
    before = project.objects()

    project.revise("upgrade the event log")
    project.alembic("upgrade", "head")

    assert project.differences() == ""
    upgraded = project.objects()
    store = EventStore()
    with Session(project.database) as session:
        events = store.read_events(session)
        assert [(each.global_position, each.aggregate_id, each.event_type) for each in events] == [
            (1, "ann", "UserRegistered"),
            (2, "ann", "UserRenamed"),
            (3, "bob", "UserRegistered"),
            (5, "ann", "UserRenamed"),
        ]
        assert events[0].json() == {"email": "ann@example.org"}
        assert events[0].metadata == {"by": "signup"}
        assert (events[0].trace_id, events[0].correlation_id, events[0].causation_id) == ("t1", "c1", "k1")
        assert store.append(session, Exact(3), [make_event("ann")]).global_positions == (6,)
        checkpoints = session.execute(
            text(
                "SELECT consumer_name, last_position, failed_position, attempts, log, partitions, claim "
                "FROM consumer_checkpoints ORDER BY 1"
            )
        )
        assert [tuple(row) for row in checkpoints] == [
            ("mails", 2, 3, 2, None, None, 0),
            ("user_count", 3, None, 0, None, None, 0),
        ]
        session.commit()

    project.alembic("downgrade", "-1")
    assert project.objects() == before
    project.alembic("upgrade", "head")
    assert project.objects() == upgraded


@pytest.mark.parametrize("version", VERSIONS)
def test_its_own_migration_still_runs(project: Project, version: str) -> None:
    """On a new database, where developers of the application run it."""
    add_revision(project, version)
    project.alembic("upgrade", "head")
    made = project.objects()
    project.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public", (RELEASED / version / "dump.sql").read_text())
    assert project.objects() == made
    assert EventTables().events.name in {name for name, _ in made}
