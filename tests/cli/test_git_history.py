"""Acceptance test: import a git history, project it with a worker, and compare the result with git."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from pupsourcing_sa import EventStore, EventTables, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.worker import Worker
from tests.fix_command import Command

#: This variable names another repository.
REPOSITORY = Path(os.environ.get("PUPSOURCING_TEST_REPOSITORY", Path(__file__).parents[2]))


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    name: Mapped[str] = mapped_column(primary_key=True)
    commits: Mapped[int]


store = EventStore(EventTables(Base.metadata))
worker_tables = WorkerTables(Base.metadata)


@consumer("commits_by_author", aggregate_types={"Author"}, event_types={"Committed"})
def count(session: Session, event: PersistedEvent) -> None:
    author = session.get(Author, event.aggregate_id) or Author(name=event.aggregate_id, commits=0)
    author.commits += 1
    session.add(author)


def git(*arguments: str, directory: Path) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=directory, check=True, capture_output=True, encoding="utf-8", errors="replace"
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The repository of this project, or a new one if the tests run outside a checkout, such as from an sdist."""
    if (REPOSITORY / ".git").exists() and git("rev-list", "--all", "--max-count=1", directory=REPOSITORY):
        return REPOSITORY
    made = tmp_path / "repository"
    git("init", "--quiet", str(made), directory=tmp_path)
    for number in range(30):
        name = ("Ann", "Bob", 'Zoë "Z" O\'Neil')[number % 7 % 3]
        options = ["-c", f"user.name={name}", "-c", "user.email=someone@example.org"]
        git(*options, "commit", "--quiet", "--allow-empty", "--message", f"change {number}", directory=made)
    return made


def as_events(repository: Path) -> str:
    """Return an event for each commit, in their order. Each author is an aggregate."""
    lines = []
    for record in git("log", "--reverse", "--format=%H%x1f%aN%x1f%aI%x1f%s%x1e", "HEAD", directory=repository).split(
        "\x1e\n"
    ):
        if record:
            commit, author, date, subject = record.split("\x1f")
            event = {
                "aggregate_type": "Author",
                "aggregate_id": author,
                "event_type": "Committed",
                "payload": {"commit": commit, "subject": subject},
                "created_at": date,
            }
            lines.append(json.dumps(event))
    return "\n".join(lines)


def test_it_agrees_with_git(command: Command, engine: Engine, repository: Path):
    Base.metadata.create_all(engine)
    imported = command("import", "-", input=as_events(repository))
    assert imported.returncode == 0, imported.stderr
    Worker(sessionmaker(engine), store, [count], tables=worker_tables).drain()

    expected = {}
    for line in git("shortlog", "-sn", "HEAD", directory=repository).splitlines():
        commits, _, author = line.strip().partition("\t")
        expected[author] = int(commits)
    with Session(engine) as session:
        assert {author.name: author.commits for author in session.scalars(select(Author))} == expected
        # The log has the commits in the order of git.
        commits = git("rev-list", "--reverse", "HEAD", directory=repository).split()
        found = [event.json()["commit"] for event in store.read_events(session, limit=len(commits) + 1)]
    assert found == commits
    assert Counter(expected).total() == len(commits)
