"""``pupsourcing-sa worker``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, WorkerTables
from tests.fix_command import COMMAND, Command
from tests.fix_store import make_event, make_tables

APPLICATION = """
import os
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker

@consumer("seen")
def seen(session, event):
    session.execute(text("INSERT INTO seen VALUES (:position)"), {"position": event.global_position})

def make():
    return Worker(sessionmaker(create_engine(os.environ["DATABASE_URL"])), EventStore(), [seen])

worker = make()

class Group:
    worker = worker

number = 5
"""


@pytest.fixture
def store(database: Engine, tmp_path: Path) -> EventStore:
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "jobs.py").write_text(APPLICATION)
    (tmp_path / "myapp" / "broken.py").write_text("import nothing_of_that_name")
    store = EventStore(make_tables(database))
    WorkerTables(store.tables.metadata).metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE seen (position bigint)"))
    return store


def append(database: Engine, store: EventStore) -> None:
    with Session(database) as session:
        store.append(session, AnyVersion(), [make_event()])
        session.commit()


def seen(database: Engine) -> list[int]:
    with database.connect() as connection:
        return list(connection.scalars(text("SELECT position FROM seen ORDER BY position")))


@pytest.mark.parametrize("target", ["myapp.jobs:worker", "myapp.jobs:make", "myapp.jobs:Group.worker"])
def test_an_instance_or_a_factory(command: Command, database: Engine, store: EventStore, target: str):
    append(database, store)
    done = command("worker", target, "--drain")
    assert (done.returncode, seen(database)) == (0, [1])
    assert "worker started" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_a_signal(database: Engine, store: EventStore, tmp_path: Path, number: signal.Signals):
    environment = os.environ | {"DATABASE_URL": database.url.render_as_string(hide_password=False)}
    process = subprocess.Popen([COMMAND, "worker", "myapp.jobs:worker", "--quiet"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 30
    for expected in ([1], [1, 2]):
        append(database, store)
        while seen(database) != expected:
            assert time.monotonic() < deadline, "the worker did not see it"
            time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [
        ("myapp.jobs", 2, "must be a module and an attribute, such as myapp.worker:worker"),
        ("nowhere.jobs:worker", 2, "there is no module 'nowhere'"),
        ("myapp.nowhere:worker", 2, "there is no module 'myapp.nowhere'"),
        ("myapp.jobs:nothing", 2, "module 'myapp.jobs' has no attribute 'nothing'"),
        ("myapp.jobs:number", 2, "must be a Worker or a function that returns one, not int"),
        ("myapp.broken:worker", 1, "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ],
)
def test_what_is_wrong_is_said(command: Command, store: EventStore, target: str, status: int, message: str):
    done = command("worker", target)
    assert done.returncode == status
    assert message in done.stderr


def test_help_and_version(command: Command):
    for arguments in ([], ["worker"], ["import"], ["demo"]):
        done = command(*arguments, "--help")
        assert done.returncode == 0
        assert "usage: pupsourcing-sa" in done.stdout
    assert command("--version").stdout.startswith("pupsourcing-sa 0.")
    wrong = command("worker")
    assert wrong.returncode == 2
    assert "--help` tells more" in wrong.stderr
