"""No line on standard error can be forged, and with ``--log-format json`` each one is JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, WorkerTables
from tests.fix_command import COMMAND, Command
from tests.fix_store import make_event, make_tables
from tests.waiting import wait_until

FORGED = "2026-01-01 00:00:00.000 INFO    all is well"
#: Clears the screen, sets the title, reverses the text, and adds lines.
HOSTILE = f"\x1b[2J\x1b]0;title\x07\u202e\x9b31m\r{FORGED}\n{FORGED}\u2028{FORGED}\x85{FORGED}"

APPLICATION = """
import logging, logging.config, os, sys, threading, warnings
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig

engine = create_engine(os.environ["DATABASE_URL"], poolclass=NullPool)
async_engine = create_async_engine(os.environ["DATABASE_URL"], poolclass=NullPool)
config = WorkerConfig(retry_delay=0.01, poll_interval=0.01)

def fail(event):
    logging.getLogger("myapp").warning(event.aggregate_id, extra={"event": event.event_type})
    raise ValueError(event.aggregate_id)

@consumer("failing")
def failing(session, event):
    fail(event)

@consumer("failing")
async def async_failing(session, event):
    fail(event)

@consumer("writing")
def writing(session, event):
    session.execute(text("SELECT CAST(CAST(:id AS text) AS integer)"), {"id": event.aggregate_id})

worker = Worker(sessionmaker(engine), EventStore(), [failing], config=config)
async_worker = Worker(async_sessionmaker(async_engine), EventStore(), [async_failing], config=config)
writer = Worker(sessionmaker(engine), EventStore(), [writing], config=config)

class Unraisable:
    def __del__(self):
        raise ValueError("unraisable")

def noisy():
    warnings.warn("a warning\\nof two lines")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    Unraisable()
    return worker

def interrupt():
    raise KeyboardInterrupt

def configure_and_fail():
    logging.basicConfig(force=True)
    raise RuntimeError("two\\nlines")
"""


@pytest.fixture
def application(engine: Engine, tmp_path: Path) -> EventStore:
    (tmp_path / "hostile.py").write_text(APPLICATION)
    store = EventStore(make_tables(engine))
    WorkerTables(store.tables.metadata).metadata.create_all(engine)
    with Session(engine) as session:
        store.append(session, AnyVersion(), [make_event(HOSTILE, event_type=HOSTILE)])
        session.commit()
    return store


@pytest.mark.parametrize("worker", ["worker", "async_worker", "writer"])
def test_a_hostile_event_cannot_forge_a_line(command: Command, application: EventStore, worker: str):
    done = command("worker", f"hostile:{worker}", "--drain")
    assert done.returncode == 1
    assert_harmless(done.stderr)
    assert "all is well" in done.stderr
    assert r"\x1b[2J" in done.stderr


def assert_harmless(shown: str) -> None:
    assert all(line.isprintable() for line in shown.split("\n"))
    assert FORGED not in [line[: len(FORGED)] for line in shown.splitlines()]


def test_status_and_import_of_hostile_data(command: Command, engine: Engine, application: EventStore):
    error = f"Traceback (most recent call last):\n  File x\nValueError: {HOSTILE}"
    row = {"consumer_name": f"a{HOSTILE}", "partition": 0, "failed_position": 1, "error": error}
    with engine.begin() as connection:
        connection.execute(WorkerTables().consumer_checkpoints.insert(), row)
    done = command("status")
    assert done.returncode == 3
    assert_harmless(done.stdout)
    event = {"aggregate_type": "A", "aggregate_id": "a", "event_type": "E", "payload": {}}
    for line in ({HOSTILE: 1}, {"event_id": HOSTILE} | event, {"created_at": HOSTILE} | event):
        done = command("import", "-", input=json.dumps(line))
        assert done.returncode == 1
        assert_harmless(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["nowhere:worker"], 2, "there is no module 'nowhere'"),
        (["hostile:worker", "--batch-size", "0"], 2, "--batch-size: must be from 1"),
        (["hostile:worker", "--batchsize", "0"], 2, "there is no option --batchsize"),
        (["hostile:interrupt"], 130, "interrupted"),
        (["hostile:configure_and_fail"], 2, "hostile:configure_and_fail() failed: RuntimeError: two"),
        (["hostile:worker", "--drain"], 1, "ValueError: "),
        (["hostile:async_worker", "--drain"], 1, "ValueError: "),
        (["hostile:writer", "--drain"], 1, "sqlalchemy.exc.DataError: "),
    ],
)
def test_the_last_line_is_json(
    command: Command, application: EventStore, arguments: list[str], status: int, error: str
):
    done = command("worker", *arguments, "--log-format", "json")
    assert done.returncode == status
    lines = parsed(done.stderr)
    assert lines[-1]["message"] == "command failed"
    assert lines[-1]["status"] == status
    assert lines[-1]["error"].startswith(error)
    has_traceback = status == 1 or "RuntimeError" in error
    assert ("exception" in lines[-1]) is has_traceback
    if "writer" in arguments[0]:
        assert "invalid input syntax" not in lines[-1]["exception"]


def test_a_variable_makes_the_last_line_json(command: Command):
    done = command("worker", "a:b", "--no-such-option", env={"PUPSOURCING_LOG_FORMAT": "json"})
    assert [line["error"] for line in parsed(done.stderr)] == ["there is no option --no-such-option"]


def parsed(shown: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown.splitlines()]


def test_every_line_of_processes_is_json(engine: Engine, application: EventStore, tmp_path: Path):
    """Warnings, and exceptions of threads and destructors, which Python prints by itself."""
    environment = os.environ | {"DATABASE_URL": engine.url.render_as_string(hide_password=False)}
    command = [COMMAND, "worker", "hostile:noisy", "--processes", "2", "--log-format=json"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log)
        try:
            wait_until(lambda: "handler failed again" in (tmp_path / "log").read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    lines = parsed((tmp_path / "log").read_text())
    messages = [line["message"] for line in lines]
    assert messages[-1] == "supervisor stopped"
    assert {"thread failed", "exception was ignored", "handler failed; will retry"} <= set(messages)
    assert any(line["logger"] == "py.warnings" and "of two lines" in line["message"] for line in lines)
