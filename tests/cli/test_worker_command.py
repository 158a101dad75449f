"""``pupsourcing-sa worker``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, WorkerTables
from tests.fix_command import COMMAND, Command
from tests.fix_distribution import write_distribution
from tests.fix_store import make_event, make_tables
from tests.waiting import wait_until

APPLICATION = """
import os
from sqlalchemy import create_engine, text
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
    sessions = sessionmaker(create_engine(os.environ["DATABASE_URL"]))
    return Worker(sessions, EventStore(), consumers, config=WorkerConfig(batch_size=3))

worker = make()
batch_worker = make([batches])
"""


@pytest.fixture
def store(database: Engine, tmp_path: Path) -> EventStore:
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "jobs.py").write_text(APPLICATION)
    store = EventStore(make_tables(database))
    WorkerTables(store.tables.metadata).metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE seen (position bigint)"))
    return store


def append(database: Engine, store: EventStore, events: int = 1) -> None:
    with Session(database) as session:
        store.append(session, AnyVersion(), [make_event() for _ in range(events)])
        session.commit()


def seen(database: Engine) -> list[int]:
    with database.connect() as connection:
        return list(connection.scalars(text("SELECT position FROM seen ORDER BY position")))


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(database: Engine, tmp_path: Path) -> Iterator[Start]:
    """Starts ``pupsourcing-sa worker`` and leaves it to run."""
    environment = os.environ | {"DATABASE_URL": database.url.render_as_string(hide_password=False)}
    started = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([COMMAND, "worker", *arguments], cwd=tmp_path, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("target", ["myapp.jobs:worker", "myapp.jobs:make"])
def test_an_instance_or_a_factory(command: Command, database: Engine, store: EventStore, target: str):
    append(database, store)
    done = command("worker", target, "--drain")
    assert (done.returncode, seen(database)) == (0, [1]), done.stderr
    assert "worker started" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_a_signal(database: Engine, store: EventStore, start: Start, number: signal.Signals):
    process = start("myapp.jobs:worker", "--quiet")
    for expected in ([1], [1, 2]):
        append(database, store)
        wait_until(lambda expected=expected: seen(database) == expected)
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
def test_settings(command: Command, database: Engine, store: EventStore, options, variables, sizes):
    append(database, store, events=7)
    done = command("worker", "myapp.jobs:batch_worker", "--drain", *options, env=variables)
    assert (done.returncode, seen(database)) == (0, sizes), done.stderr


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
def test_what_a_handler_raises_while_draining_is_shown_with_its_event_and_where_it_was_raised(
    command: Command, database: Engine, store: EventStore, tmp_path: Path, worker: str, line: str
):
    append(database, store)
    (tmp_path / "failing.py").write_text(FAILING)
    done = command("worker", f"failing:{worker}", "--drain")
    assert done.returncode == 1
    assert line in done.stderr, "the traceback"
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
worker = Worker(async_sessionmaker(create_async_engine(url)), EventStore(), [seen])
"""


def test_a_server_that_refuses_asyncpg_is_quoted_and_nothing_more(command: Command, tmp_path: Path):
    (tmp_path / "refused.py").write_text(ASYNC)
    done = command("worker", "refused:worker")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ['pupsourcing-sa: database "no such database" does not exist']


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
    command: Command, database: Engine, store: EventStore, tmp_path: Path, options, variables, positions
):
    write_distribution(tmp_path / "site", "acme", negated="acme:negated")
    (tmp_path / "site" / "acme.py").write_text(ACME)
    append(database, store)
    variables |= {"PYTHONPATH": str(tmp_path / "site")}
    done = command("worker", "myapp.jobs:worker", "--drain", *options, env=variables)
    assert (done.returncode, seen(database)) == (0, positions), done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "other_seen",
            "two consumers are called 'seen', one of myapp.jobs:worker and one of entry point acme = acme:o",
        ),
        ("coroutine", "the handler of consumer 'other' is a coroutine function, which needs an async_sessionmaker"),
    ],
)
def test_consumers_that_do_not_go_with_the_worker(
    command: Command, store: EventStore, tmp_path: Path, name: str, message: str
):
    write_distribution(tmp_path, "acme", acme=f"acme:{name}")
    (tmp_path / "acme.py").write_text(ACME)
    done = command("worker", "myapp.jobs:worker", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert message in done.stderr


def test_json(command: Command, database: Engine, store: EventStore):
    done = command("worker", "myapp.jobs:worker", "--drain", "--log-format", "json")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (started,) = [line for line in lines if line["message"] == "worker started"]
    assert started["consumers"] == ["seen"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["myapp.nowhere:worker"], "pupsourcing-sa: there is no module 'myapp.nowhere'"),
        (["myapp.jobs:worker", "--batch-size", "0"], "pupsourcing-sa: batch_size must be between 1"),
        (["myapp.jobs:worker", "--supervised-by", "99"], "pupsourcing-sa: --supervised-by is what the supervisor"),
        (["myapp.nowhere:worker", "--processes", "3"], "pupsourcing-sa: there is no module 'myapp.nowhere'"),
    ],
)
def test_what_is_wrong_is_said(command: Command, store: EventStore, arguments: list[str], message: str):
    done = command("worker", *arguments)
    assert done.returncode == 2
    assert done.stderr.count(message) == 1
    assert "Traceback" not in done.stderr


def test_asyncio_without_greenlet(command: Command, tmp_path: Path):
    (tmp_path / "greenlet.py").write_text("raise ImportError('No module named greenlet')")
    (tmp_path / "jobs.py").write_text(
        "from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine\n"
        "from pupsourcing_sa import EventStore, consumer\n"
        "from pupsourcing_sa.worker import Worker\n"
        "@consumer('seen')\n"
        "async def seen(session, event): ...\n"
        "worker = Worker(async_sessionmaker(create_async_engine('postgresql+psycopg://')), EventStore(), [seen])"
    )
    done = command("worker", "jobs:worker", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "greenlet" in done.stderr.splitlines()[-1]


HANGING = """
import asyncio, os, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker

url = os.environ["DATABASE_URL"]
sessions, async_sessions = sessionmaker(create_engine(url)), async_sessionmaker(create_async_engine(url))
insert = text("INSERT INTO seen VALUES (1)")

@consumer("hanging")
def asleep(session, event):
    session.execute(insert)
    Path("entered").touch()
    time.sleep(600)

@consumer("hanging")
def busy(session, event):
    session.execute(insert)
    Path("entered").touch()
    while True:
        pass

@consumer("hanging")
async def waiting(session, event):
    await session.execute(insert)
    Path("entered").touch()
    await asyncio.sleep(600)

@consumer("hanging")
async def blocking(session, event):
    await session.execute(insert)
    Path("entered").touch()
    time.sleep(600)

def hang():
    Path("entered").touch()
    time.sleep(600)

@consumer("hanging")
def pooled(session, event):
    session.execute(insert)
    ThreadPoolExecutor().submit(hang).result()

@consumer("hanging")
async def threaded(session, event):
    await session.execute(insert)
    await asyncio.to_thread(hang)

workers = {
    name: Worker(factory, EventStore(), [handler])
    for name, factory, handler in [
        ("asleep", sessions, asleep), ("busy", sessions, busy),
        ("waiting", async_sessions, waiting), ("blocking", async_sessions, blocking),
        ("pooled", sessions, pooled), ("threaded", async_sessions, threaded),
    ]
}
globals().update(workers)
"""


@pytest.fixture
def hang(database: Engine, store: EventStore, start: Start, tmp_path: Path) -> Start:
    """Starts a worker with this handler, and returns when it hangs in there."""
    (tmp_path / "hanging.py").write_text(HANGING)
    append(database, store)

    def hang(handler: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = start(f"hanging:{handler}", *arguments)
        wait_until((tmp_path / "entered").exists)
        return process

    return hang


HANDLERS = pytest.mark.parametrize("handler", ["asleep", "busy", "waiting", "blocking", "pooled", "threaded"])


@HANDLERS
def test_a_handler_that_hangs_does_not_keep_the_process(database: Engine, hang: Start, handler: str):
    process = hang(handler, "--shutdown-timeout", "0.5")
    process.terminate()
    process.wait(timeout=15)  # half of it is for the machine
    assert seen(database) == []


@HANDLERS
def test_a_second_signal_ends_the_process_at_once(database: Engine, hang: Start, handler: str):
    process = hang(handler, "--shutdown-timeout", "600")
    process.terminate()

    def has_ended() -> bool:
        # Two that come together are one; there is nothing to see from outside of the first one's having been taken.
        process.terminate()
        return process.poll() is not None

    wait_until(has_ended, seconds=10)
    assert process.returncode == -signal.SIGTERM
    assert seen(database) == []


def test_a_handler_that_hangs_does_not_outlive_the_supervisor(database: Engine, hang: Start):
    supervisor = hang("blocking", "--processes", "2", "--shutdown-timeout", "0.5")
    nodes = psutil.Process(supervisor.pid).children()
    supervisor.kill()
    _, alive = psutil.wait_procs(nodes, timeout=15)
    assert alive == []
    assert seen(database) == []


def test_help_and_version(command: Command):
    for arguments in ([], ["worker"], ["import"], ["demo"]):
        done = command(*arguments, "--help")
        assert done.returncode == 0
        assert "usage: pupsourcing-sa" in done.stdout
    assert command("--version").stdout.startswith("pupsourcing-sa 0.")
    worker = command("worker", "--help").stdout
    assert "PUPSOURCING_BATCH_SIZE" in worker
    assert "--processes 4 --log-format json" in worker, "the examples' lines are not wrapped"
    assert "supervised" not in worker, "an option that nobody types"
    wrong = command("worker")
    assert wrong.returncode == 2
    assert "--help` tells more" in wrong.stderr
