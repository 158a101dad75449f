"""``pupsourcing-sa worker``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, WorkerTables
from pupsourcing_sa.worker import Worker
from tests.fix_command import COMMAND, Command
from tests.fix_distribution import write_distribution
from tests.fix_store import make_event, make_tables
from tests.waiting import patiently, wait_until

APPLICATION = """
import os
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig

@consumer("seen")
def seen(session, event):
    session.execute(text("INSERT INTO seen VALUES (:position)"), {"position": event.global_position})

@consumer("batches")
def batches(session, event): ...

def record_size(session, events):
    session.execute(text("INSERT INTO seen VALUES (:size)"), {"size": len(events)})

batches.handle_batch = record_size

def make(consumers=(seen,)):
    sessions = sessionmaker(create_engine(os.environ["DATABASE_URL"], poolclass=NullPool))
    return Worker(sessions, EventStore(), consumers, config=WorkerConfig(batch_size=3))

worker = make()
batch_worker = make([batches])
"""


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> EventStore:
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "jobs.py").write_text(APPLICATION)
    store = EventStore(make_tables(engine))
    WorkerTables(store.tables.metadata).metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE seen (position bigint)"))
    return store


def append(engine: Engine, store: EventStore, events: int = 1) -> None:
    with Session(engine) as session:
        store.append(session, AnyVersion(), [make_event() for _ in range(events)])
        session.commit()


def seen(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT position FROM seen ORDER BY position")))


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(engine: Engine, tmp_path: Path) -> Iterator[Start]:
    """Starts ``pupsourcing-sa worker`` and does not wait for its end."""
    environment = os.environ | {"DATABASE_URL": engine.url.render_as_string(hide_password=False)}
    started = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([COMMAND, "worker", *arguments], cwd=tmp_path, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("target", ["myapp.jobs:worker", "myapp.jobs:make"])
def test_an_instance_or_a_factory(command: Command, engine: Engine, store: EventStore, target: str):
    append(engine, store)
    done = command("worker", target, "--drain")
    assert (done.returncode, seen(engine)) == (0, [1]), done.stderr
    assert "worker started" in done.stderr


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive), signal.SIGTERM])
def test_it_runs_until_a_signal(engine: Engine, store: EventStore, start: Start, number: signal.Signals):
    process = start("myapp.jobs:worker", "--quiet")
    for expected in ([1], [1, 2]):
        append(engine, store)
        wait_until(lambda expected=expected: seen(engine) == expected)
    process.send_signal(number)
    assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("options", "variables", "sizes"),
    [
        ([], {}, [1, 3, 3]),
        ([], {"PUPSOURCING_BATCH_SIZE": "4"}, [3, 4]),
        (["--batch-size", "5"], {"PUPSOURCING_BATCH_SIZE": "4"}, [2, 5]),
    ],
)
def test_settings(command: Command, engine: Engine, store: EventStore, options, variables, sizes):
    append(engine, store, events=7)
    done = command("worker", "myapp.jobs:batch_worker", "--drain", *options, env=variables)
    assert (done.returncode, seen(engine)) == (0, sizes), done.stderr


FAILING = """
from sqlalchemy import text
from pupsourcing_sa import NoEventsError, consumer
from myapp.jobs import make

@consumer("asking")
def ask(session, event):
    session.execute(text("SELECT * FROM nothing"))

@consumer("appending")
def append(session, event):
    raise NoEventsError

asking, appending = make([ask]), make([append])
"""


@pytest.mark.parametrize(
    ("worker", "line"),
    [("asking", 'session.execute(text("SELECT * FROM nothing"))'), ("appending", "raise NoEventsError")],
)
def test_an_error_of_a_handler_in_a_drain_keeps_its_traceback_and_its_event(
    command: Command, engine: Engine, store: EventStore, tmp_path: Path, worker: str, line: str
):
    append(engine, store)
    (tmp_path / "failing.py").write_text(FAILING)
    done = command("worker", f"failing:{worker}", "--drain")
    assert done.returncode == 1
    assert line in done.stderr
    assert f"while consumer '{worker}' handled PersistedEvent(global_position=1" in done.stderr


ASYNC = """
import os
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker

@consumer("seen")
async def seen(session, event): ...

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg", database="no such database")
url = url.difference_update_query(["options"])
worker = Worker(async_sessionmaker(create_async_engine(url)), EventStore(), [seen])
"""


def test_the_refusal_of_a_server_is_one_line(command: Command, tmp_path: Path):
    (tmp_path / "refused.py").write_text(ASYNC)
    done = command("worker", "refused:worker")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ['pupsourcing-sa: database "no such database" does not exist, SQLSTATE 3D000']


ACME = """
from pupsourcing_sa import consumer
from sqlalchemy import text

@consumer("negated")
def negated(session, event):
    session.execute(text("INSERT INTO seen VALUES (:position)"), {"position": -event.global_position})

@consumer("seen")
def other_seen(session, event): ...

@consumer("other")
async def coroutine(session, event): ...
"""


@pytest.mark.parametrize(
    ("options", "variables", "positions"),
    [([], {}, [-1, 1]), (["--no-discover"], {}, [1]), ([], {"PUPSOURCING_DISCOVER": "0"}, [1])],
)
def test_consumers_of_other_distributions(
    command: Command, engine: Engine, store: EventStore, tmp_path: Path, monkeypatch, options, variables, positions
):
    monkeypatch.syspath_prepend(tmp_path / "site")
    write_distribution(tmp_path / "site", "acme", negated="acme:negated")
    (tmp_path / "site" / "acme.py").write_text(ACME)
    append(engine, store)
    done = command("worker", "myapp.jobs:worker", "--drain", *options, env=variables)
    assert (done.returncode, seen(engine)) == (0, positions), done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "other_seen",
            "two consumers have the name 'seen', and so the same checkpoint: one of myapp.jobs:worker and one of en",
        ),
        ("coroutine", "the handler of consumer 'other' is a coroutine function, which needs an async_sessionmaker"),
    ],
)
def test_consumers_that_the_worker_cannot_run(
    command: Command, store: EventStore, tmp_path: Path, monkeypatch, name: str, message: str
):
    monkeypatch.syspath_prepend(tmp_path)
    write_distribution(tmp_path, "acme", acme=f"acme:{name}")
    (tmp_path / "acme.py").write_text(ACME)
    done = command("worker", "myapp.jobs:worker")
    assert done.returncode == 2
    assert message in done.stderr


def test_json(command: Command, engine: Engine, store: EventStore):
    done = command("worker", "myapp.jobs:worker", "--drain", "--log-format", "json")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (started,) = [line for line in lines if line["message"] == "worker started"]
    assert started["consumers"] == ["seen"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["myapp.nowhere:worker"], "pupsourcing-sa: there is no module 'myapp.nowhere'"),
        (["myapp.jobs:worker", "--heartbeat-timeout", "1"], "pupsourcing-sa: heartbeat_timeout must be at least twice"),
        (["myapp.jobs:worker", "--supervised-by", "9999"], "pupsourcing-sa: --supervised-by is set by --processes"),
    ],
)
def test_the_message_names_the_mistake(command: Command, store: EventStore, arguments: list[str], message: str):
    done = command("worker", *arguments)
    assert done.returncode == 2
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


def test_a_mistake_in_the_command_is_reported_once_for_all_processes(process: Command):
    done = process("worker", "nowhere:worker", "--processes", "3")
    assert done.returncode == 2
    assert done.stderr.count("pupsourcing-sa: there is no module 'nowhere'") == 1
    assert "Traceback" not in done.stderr


def test_ctrl_c_before_the_worker_runs(command: Command, tmp_path: Path):
    (tmp_path / "slow.py").write_text("def make():\n    raise KeyboardInterrupt")
    assert command("worker", "slow:make") == (130, "", "pupsourcing-sa: interrupted\n")


def test_asyncio_without_greenlet(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    (tmp_path / "jobs.py").write_text(
        "from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine\n"
        "from pupsourcing_sa import EventStore, consumer\n"
        "from pupsourcing_sa.worker import Worker\n"
        "@consumer('seen')\n"
        "async def seen(session, event): ...\n"
        "worker = Worker(async_sessionmaker(create_async_engine('postgresql+psycopg://')), EventStore(), [seen])"
    )
    done = command("worker", "jobs:worker")
    assert done.returncode == 2
    assert "greenlet" in done.stderr.splitlines()[-1]


@pytest.fixture
def hang(engine: Engine, store: EventStore, start: Start, tmp_path: Path) -> Start:
    """Starts a worker with this handler, and returns when the handler hangs."""
    shutil.copy(Path(__file__).with_name("hanging.py"), tmp_path)
    append(engine, store)

    def hang(handler: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = start(f"hanging:{handler}", *arguments)
        wait_until((tmp_path / "entered").exists)
        return process

    return hang


def handlers(*daily: str) -> list[object]:
    names = ["asleep", "busy", "waiting", "blocking", "pooled", "threaded"]
    return [pytest.param(name, marks=() if name in daily else pytest.mark.exhaustive) for name in names]


@pytest.mark.parametrize("handler", handlers("asleep"))
def test_a_handler_that_hangs_does_not_keep_the_process(engine: Engine, hang: Start, handler: str):
    process = hang(handler, "--shutdown-timeout", "0.5")
    process.terminate()
    process.wait(timeout=patiently(15))
    assert seen(engine) == []


@pytest.mark.parametrize("handler", handlers("busy"))
def test_a_second_signal_ends_the_process_at_once(engine: Engine, hang: Start, handler: str):
    process = hang(handler, "--shutdown-timeout", "600")
    process.terminate()

    def has_ended() -> bool:
        # Two pending signals count as one, and a test cannot see when the process has handled the first.
        process.terminate()
        return process.poll() is not None

    wait_until(has_ended, seconds=10)
    assert process.returncode == -signal.SIGTERM
    assert seen(engine) == []


def test_a_handler_that_hangs_does_not_outlive_the_supervisor(engine: Engine, hang: Start):
    supervisor = hang("blocking", "--processes", "2", "--shutdown-timeout", "0.5")
    nodes = psutil.Process(supervisor.pid).children()
    supervisor.kill()
    _, alive = psutil.wait_procs(nodes, timeout=patiently(15))
    assert alive == []
    assert seen(engine) == []


def test_an_application_may_limit_the_log(command: Command, engine: Engine, store: EventStore):
    append(engine, store)
    assert "worker started" in command("worker", "myapp.jobs:worker", "--drain").stderr
    for options in (["--quiet"], ["--log-level", "error"]):
        assert command("worker", "myapp.jobs:worker", "--drain", *options) == (0, "", "")
    assert command("worker", "myapp.jobs:worker", "--drain", env={"PUPSOURCING_LOG_LEVEL": "warning"}).stderr == ""


def test_a_broken_connection_is_not_a_closed_pipe(monkeypatch: pytest.MonkeyPatch, store: EventStore, command: Command):
    """Drivers raise the same error as printing to a closed pipe, and the events are not processed then."""

    def drain(_: Worker) -> None:
        raise BrokenPipeError("of the connection")

    monkeypatch.setattr(Worker, "drain", drain)
    done = command("worker", "myapp.jobs:worker", "--drain")
    assert done.returncode == 1
    assert done.stderr.endswith("\npupsourcing-sa: BrokenPipeError: of the connection\n")
