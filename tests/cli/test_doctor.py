"""``pupsourcing-sa doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, MetaData, text

from pupsourcing_sa import EventTables, WorkerTables
from tests.fix_command import Command

NAMES = [
    "server version",
    "primary server",
    "tables",
    "replication",
    "sequence",
    "advisory locks",
    "transaction settings",
    "worker tables",
]

WORKER = """
import os
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import AsyncEventStore, EventStore, EventTables, consumer
from pupsourcing_sa.worker import Worker

@consumer("all")
def see(session, event): ...

url = os.environ["DATABASE_URL"]
sync = Worker(sessionmaker(create_engine(url, poolclass=NullPool)), EventStore(EventTables(events="log")), [see])
asynchronous = Worker(
    async_sessionmaker(create_async_engine(url)), AsyncEventStore(EventTables(events="log")), [see]
)
"""


def create(engine: Engine, events: str = "events") -> None:
    metadata = MetaData()
    EventTables(metadata, events=events)
    WorkerTables(metadata)
    metadata.create_all(engine)


def test_everything_is_well(command: Command, engine: Engine):
    create(engine)
    done = command("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"ok      {name}\n" for name in NAMES)
    checks = json.loads(command("doctor", "--json").stdout)["checks"]
    assert checks == [{"name": name, "status": "ok", "message": None} for name in NAMES]


def test_what_is_wrong_and_what_to_do(command: Command, engine: Engine):
    missing = command("doctor", "--worker-nodes", "nodes")
    assert (missing.returncode, missing.stderr) == (1, "")
    assert "failed  tables: there is no table events " in missing.stdout
    assert "skipped sequence\n" in missing.stdout
    create(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE events ALTER global_position SET CACHE 10"))
    done = command("doctor", "--json")
    assert done.returncode == 1
    failed = [check for check in json.loads(done.stdout)["checks"] if check["status"] == "failed"]
    assert [check["name"] for check in failed] == ["sequence"]
    assert failed[0]["message"].endswith("run ALTER SEQUENCE … CACHE 1 INCREMENT BY 1 NO CYCLE")


@pytest.mark.parametrize("worker", ["sync", "asynchronous"])
def test_a_worker_checks_its_own_database(command: Command, engine: Engine, tmp_path: Path, worker: str):
    (tmp_path / "application.py").write_text(WORKER)
    assert "failed  tables: there is no table log " in command("doctor", f"application:{worker}").stdout
    create(engine, events="log")
    done = command("doctor", f"application:{worker}")
    assert (done.returncode, done.stderr) == (0, "")
    refused = command("doctor", f"application:{worker}", "--events", "log")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--events does not apply to MODULE:ATTRIBUTE, which has its own database" in refused.stderr


def test_no_database(command: Command):
    done = command("doctor", "--database-url", "postgresql://localhost:1/none")
    assert (done.returncode, done.stdout) == (1, "")
