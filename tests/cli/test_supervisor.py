"""The supervisor of ``--processes``. Small scripts replace the nodes; the last tests run the command itself."""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import URL, Engine, text

from pupsourcing_sa import EventStore, WorkerTables
from tests.fix_command import COMMAND
from tests.fix_store import make_tables
from tests.waiting import patiently, wait_until

SUPERVISOR = """
import sys
from pupsourcing_sa.cli._logging import configure_logging
from pupsourcing_sa.cli._supervisor import Supervisor, SupervisorTimings

processes, settled_after, *command = sys.argv[1:]
configure_logging("json", None)
timings = SupervisorTimings(
    restart_delay=0.05, max_restart_delay=0.2, settled_after=float(settled_after), margin=0.5
)
sys.exit(Supervisor(lambda descriptor: [*command, str(descriptor)], int(processes), timings=timings).run())
"""

# The beginning of each script. `attempt` is the number of nodes that were started before it.
NODE = """
import os, signal, socket, sys, time
from pathlib import Path

def ready(shutdown_timeout=0):
    pipe.sendall(b"%d\\n" % shutdown_timeout)

def wait_for_stop():
    pipe.recv(1)

pipe = socket.socket(fileno=int(sys.argv[-1]))
with open("attempts", "a+b") as attempts:
    attempts.write(b".")
    attempts.flush()
    attempt = attempts.tell() - 1
"""


class Supervised:
    """A supervisor in a process of its own, with its log."""

    def __init__(self, *command: str, **options: Any) -> None:
        self.log: list[dict[str, Any]] = []
        # A process group of its own, like the one of a terminal, so that a test can signal all of it.
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **options)
        # A failing test would wait for the next line without a limit.
        self._deadline = threading.Timer(patiently(60), self.kill)
        self._deadline.start()

    def until(self, message: str, **data: Any) -> dict[str, Any]:
        """Return the next line with this message and data."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.startswith(b"{"):
                pytest.fail(line.decode() + self.process.stderr.read().decode())
            self.log.append(entry := json.loads(line))
            if entry["message"] == message and entry.items() >= data.items():
                return entry
        pytest.fail(f"it ended without logging {message!r} {data}; it logged {self.messages}")

    @property
    def messages(self) -> list[str]:
        """The messages so far, each with the number of its node."""
        return [f"{entry['message']} {entry.get('node', '')}".rstrip() for entry in self.log]

    def nodes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def end(self) -> int:
        """Return the exit status, after the supervisor has ended by itself."""
        self.until("supervisor stopped")
        return self.process.wait(timeout=patiently(30))

    def kill(self) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._deadline.cancel()
        self.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Starts a supervisor of nodes that run this code."""
    started = []

    def start(code: str, *, processes: int = 3, settled_after: float = 0.3) -> Supervised:
        (tmp_path / "node.py").write_text(NODE + code)
        command = [
            sys.executable,
            "-c",
            SUPERVISOR,
            str(processes),
            str(settled_after),
            sys.executable,
            "-S",
            "node.py",
        ]
        started.append(Supervised(*command, cwd=tmp_path))
        return started[-1]

    yield start
    for supervisor in started:
        supervisor.close()


SIGNALS = [pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive), signal.SIGTERM]
TARGETS = [pytest.param(os.kill, id="supervisor", marks=pytest.mark.exhaustive), pytest.param(os.killpg, id="group")]


@pytest.mark.parametrize("number", SIGNALS)
def test_nodes_start_when_the_first_one_is_ready_and_stop_at_one_signal(supervise, number: signal.Signals):
    supervisor = supervise("ready(60); wait_for_stop()")
    for node in (1, 2, 3):
        supervisor.until("node ready", node=node) if node == 1 else supervisor.until("node started", node=node)
    assert supervisor.messages == [
        "supervisor started", "node started 1", "node ready 1", "node started 2", "node started 3",
    ]  # fmt: skip
    assert len(supervisor.nodes()) == 3
    supervisor.process.send_signal(number)
    assert supervisor.until("stopping the nodes")["signal"] == number.name
    assert supervisor.end() == 0
    assert sorted(entry["node"] for entry in supervisor.log if entry["message"] == "node stopped") == [1, 2, 3]


@pytest.mark.parametrize("send", TARGETS)
def test_a_stop_before_the_first_is_ready(supervise, send: Callable[[int, int], None]):
    """A signal to the group also ends a node that has not installed its handlers yet."""
    supervisor = supervise("wait_for_stop()")
    supervisor.until("node started")
    send(supervisor.process.pid, signal.SIGTERM)
    assert supervisor.end() == 0


def test_a_killed_node_is_restarted(supervise):
    supervisor = supervise("ready(); wait_for_stop()")
    killed = supervisor.until("node ready", node=2)["pid"]
    os.kill(killed, signal.SIGKILL)
    ended = supervisor.until("node ended")
    assert (ended["node"], ended["pid"], ended["signal"]) == (2, killed, "SIGKILL")
    assert supervisor.until("node ready", node=2)["pid"] != killed
    supervisor.process.terminate()
    assert supervisor.end() == 0


def test_delays_grow_with_each_crash_and_are_reset_when_a_node_has_settled(supervise):
    code = "if attempt < 4: os.kill(os.getpid(), signal.SIGSEGV)\nready(); time.sleep(0.4); os.abort()"
    supervisor = supervise(code, processes=1)
    delays = [supervisor.until("will restart node")["restart_in"] for _ in range(5)]
    for delay, longest in zip(delays, (0.05, 0.1, 0.2, 0.2, 0.05), strict=True):
        assert longest * 0.74 <= delay <= longest


@pytest.mark.parametrize("status", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_a_command_that_cannot_work_is_not_restarted(supervise, status: int):
    supervisor = supervise(f"sys.exit({status})")
    gave_up = supervisor.until("node failed, and no node has run for long; giving up")
    assert (gave_up["node"], gave_up["status"]) == (1, status)
    assert supervisor.end() == status
    assert [message for message in supervisor.messages if message.startswith("node started")] == ["node started 1"]


def test_it_gives_up_when_the_last_one_fails_after_it_was_ready(supervise):
    """If the tables are missing, for example, the first node is ready before it finds out."""
    code = "ready()\nwhile os.path.getsize('attempts') < 3: time.sleep(0.01)\nsys.exit(1)"
    supervisor = supervise(code, settled_after=60)
    assert supervisor.end() == 1
    assert len([message for message in supervisor.messages if message.startswith("node ended")]) >= 2
    (gave_up,) = [entry for entry in supervisor.log if "giving up" in entry["message"]]
    assert gave_up["status"] == 1


@pytest.mark.exhaustive
def test_it_does_not_give_up_once_a_node_has_settled(supervise):
    supervisor = supervise("if attempt: sys.exit(2)\nready(); time.sleep(0.4); sys.exit(2)", processes=1)
    for _ in range(3):
        assert supervisor.until("node ended")["status"] == 2


@pytest.mark.exhaustive
def test_a_node_that_ends_by_itself_with_status_0_is_restarted(supervise):
    supervisor = supervise("ready()\nif attempt: wait_for_stop()", processes=1)
    assert supervisor.until("node ended")["status"] == 0
    supervisor.until("node ready")
    supervisor.process.terminate()
    assert supervisor.end() == 0


def test_a_node_that_fails_while_it_stops(supervise):
    supervisor = supervise("ready(5); wait_for_stop(); sys.exit(attempt)", processes=2)
    supervisor.until("node ready", node=2)
    supervisor.process.terminate()
    assert supervisor.until("node stopped", node=2)["level"] == "ERROR"
    assert supervisor.end() == 1


def test_a_node_may_use_its_shutdown_timeout(supervise):
    supervisor = supervise("ready(60); wait_for_stop(); time.sleep(0.8)", processes=1)
    supervisor.until("node ready")
    supervisor.process.terminate()
    assert supervisor.end() == 0


def test_a_node_that_does_not_stop_is_killed(supervise):
    supervisor = supervise("ready(); time.sleep(600)", processes=2)
    supervisor.until("node ready", node=2)
    supervisor.process.terminate()
    supervisor.until("node did not stop in time; killing it")
    assert supervisor.until("node stopped")["signal"] == "SIGKILL"
    assert supervisor.end() == 1


@pytest.mark.exhaustive
def test_it_ends_when_its_log_is_a_full_pipe(supervise):
    """A process that logs to a full pipe, because a log collector hangs, waits without a limit."""
    fill = "threading.Thread(target=os.write, args=(2, bytes(2**20)), daemon=True).start()"
    supervisor = supervise(f"import threading; {fill}; ready(); wait_for_stop()", processes=2)
    wait_until(lambda: is_full(supervisor.process.stderr))
    supervisor.process.terminate()
    assert supervisor.process.wait(timeout=patiently(30)) == 1


def is_full(pipe: Any) -> bool:
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, waiting)
    return waiting[0] >= 2**16 - select.PIPE_BUF


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_kills(supervise, number: signal.Signals):
    supervisor = supervise("ready(600); time.sleep(600)", processes=2)
    supervisor.until("node ready", node=2)
    supervisor.process.terminate()
    supervisor.until("stopping the nodes")
    supervisor.process.send_signal(number)
    supervisor.until("second signal; killing the nodes")
    assert supervisor.end() == 128 + number


@pytest.mark.exhaustive
def test_a_program_that_cannot_be_started(tmp_path: Path):
    supervisor = Supervised(sys.executable, "-c", SUPERVISOR, "2", "0.3", "/nowhere/python")
    for _ in range(2):
        assert "FileNotFoundError" in supervisor.until("cannot start node")["exception"]
    supervisor.process.terminate()
    assert supervisor.end() == 0
    supervisor.close()


APPLICATION = """
import os
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from pupsourcing_sa import EventStore, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig

@consumer("nothing")
def nothing(session, event): ...

worker = Worker(sessionmaker(create_engine(os.environ["DATABASE_URL"])), EventStore(), [nothing])
"""


@pytest.fixture
def command(engine: Engine, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Starts the command with two nodes."""
    (tmp_path / "myapp.py").write_text(APPLICATION)
    started = []

    def start(url: URL = engine.url) -> Supervised:
        environment = os.environ | {"DATABASE_URL": url.render_as_string(hide_password=False)}
        command = [COMMAND, "worker", "myapp:worker", "--processes", "2", "--log-format", "json"]
        started.append(Supervised(*command, cwd=tmp_path, env=environment))
        return started[-1]

    yield start
    for supervisor in started:
        supervisor.close()


@pytest.fixture
def nodes(engine: Engine, command: Callable[..., Supervised]) -> Supervised:
    """The command, whose two nodes are ready."""
    store = EventStore(make_tables(engine))
    WorkerTables(store.tables.metadata).metadata.create_all(engine)
    supervisor = command()
    supervisor.until("node ready", ready=2, processes=2)
    assert joined(engine) == 2
    return supervisor


def joined(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM worker_nodes")) or 0


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("send", TARGETS)
def test_the_command_stops_at_one_signal(
    engine: Engine, nodes: Supervised, send: Callable[[int, int], None], number: signal.Signals
):
    """Ctrl-C and systemd send the signal to the nodes as well."""
    send(nodes.process.pid, number)
    assert nodes.end() == 0
    assert joined(engine) == 0


def test_no_node_outlives_the_supervisor(engine: Engine, nodes: Supervised):
    children = nodes.nodes()
    assert len(children) == 2
    nodes.process.kill()
    nodes.process.wait()
    _, alive = psutil.wait_procs(children, timeout=patiently(30))
    assert alive == []
    assert joined(engine) == 0  # they left, and were not killed


@pytest.mark.exhaustive
def test_a_node_that_crashes_is_replaced(engine: Engine, nodes: Supervised):
    nodes.nodes()[0].kill()
    nodes.until("node ready", ready=2)
    nodes.process.terminate()
    assert nodes.end() == 0


def test_the_command_ends_at_once_if_the_tables_are_missing(command: Callable[..., Supervised]):
    supervisor = command()
    assert supervisor.end() == 1
    of_nodes = [message for message in supervisor.messages if message.startswith("node ")]
    assert of_nodes == ["node started 1", "node failed, and no node has run for long; giving up 1"]
    assert "run your migrations" in json.dumps(supervisor.log)


def test_a_single_node_waits_for_the_database(engine: Engine, command: Callable[..., Supervised]):
    supervisor = command(engine.url.set(host="127.0.0.1", port=1, query={}))
    for _ in range(2):
        supervisor.until("cannot connect to the database; will retry")
    assert supervisor.messages.count("node started 1") == 1
    assert not any(message.startswith(("node ready", "node started 2")) for message in supervisor.messages)
    supervisor.process.terminate()
    assert supervisor.end() == 0
