"""The supervisor of ``--processes``: small scripts instead of nodes, and at the end the command itself."""

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
from sqlalchemy import Engine, text

from pupsourcing_sa import EventStore, WorkerTables
from tests.fix_command import COMMAND
from tests.fix_store import make_tables
from tests.waiting import wait_until

SUPERVISOR = """
import sys
from pupsourcing_sa.cli._logs import configure_logging
from pupsourcing_sa.cli._processes import Pace, Supervisor

configure_logging("json", is_quiet=False)
pace = Pace(restart_delay=0.05, max_restart_delay=0.2, settled_after=float(sys.argv[2]), margin=0.5)
sys.exit(Supervisor(sys.argv[3:], int(sys.argv[1]), pace=pace).run())
"""

# What a script does in the place of a node; `attempt` is how often one was started before.
NODE = """
import os, signal, socket, sys, time
from pathlib import Path

def ready(shutdown_timeout=0):
    channel.sendall(b"%d" % shutdown_timeout)

def until_told_to_stop():
    channel.recv(1)

channel = socket.socket(fileno=int(sys.argv[-1]))
with open("attempts", "a+b") as attempts:
    attempts.write(b".")
    attempts.flush()
    attempt = attempts.tell() - 1
"""


class Supervised:
    """A supervisor in a process of its own, and what it says."""

    def __init__(self, *command: str, **options: Any) -> None:
        self.said: list[dict[str, Any]] = []
        # A group of its own, as that of a terminal, to be signalled as a whole.
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **options)
        self._deadline = threading.Timer(60, self.kill)  # only a failure comes to it: it ends the waiting below
        self._deadline.start()

    def until(self, message: str, **data: Any) -> dict[str, Any]:
        """The next line with this message and data."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.startswith(b"{"):
                pytest.fail(line.decode() + self.process.stderr.read().decode())
            self.said.append(said := json.loads(line))
            if said["message"] == message and said.items() >= data.items():
                return said
        pytest.fail(f"it ended without saying {message!r} {data}; it said {self.messages}")

    @property
    def messages(self) -> list[str]:
        """What it said so far, with the node's number."""
        return [f"{said['message']} {said.get('node', '')}".rstrip() for said in self.said]

    def nodes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        self.until("supervisor stopped")
        return self.process.wait(timeout=30)

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
    for each in started:
        each.close()


def test_the_others_are_started_once_the_first_is_ready(supervise):
    supervisor = supervise("ready(); until_told_to_stop()")
    for node in (1, 2, 3):
        supervisor.until("node ready", node=node) if node == 1 else supervisor.until("node started", node=node)
    assert supervisor.messages == [
        "supervisor started", "node started 1", "node ready 1", "node started 2", "node started 3",
    ]  # fmt: skip
    assert len(supervisor.nodes()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_all(supervise, number: signal.Signals):
    supervisor = supervise("ready(60); until_told_to_stop()")
    for _ in range(3):
        supervisor.until("node ready")
    supervisor.process.send_signal(number)
    assert supervisor.until("stopping")["signal"] == number.name
    assert supervisor.end() == 0
    assert sorted(said["node"] for said in supervisor.said if said["message"] == "node stopped") == [1, 2, 3]


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["supervisor", "group"])
def test_a_stop_before_the_first_is_ready(supervise, send: Callable[[int, int], None]):
    """A node that has not installed its handlers is ended by a signal to the group: that is as good."""
    supervisor = supervise("until_told_to_stop()")
    supervisor.until("node started")
    send(supervisor.process.pid, signal.SIGTERM)
    assert supervisor.end() == 0


def test_a_node_that_is_killed_is_started_again(supervise):
    supervisor = supervise("ready(); until_told_to_stop()")
    killed = supervisor.until("node ready", node=2)["pid"]
    os.kill(killed, signal.SIGKILL)
    ended = supervisor.until("node ended; will start it again")
    assert (ended["node"], ended["pid"], ended["signal"]) == (2, killed, "SIGKILL")
    assert supervisor.until("node ready", node=2)["pid"] != killed
    supervisor.process.terminate()
    assert supervisor.end() == 0


def test_a_crash_at_the_start_is_tried_again_with_growing_pauses(supervise):
    supervisor = supervise("if attempt < 4: os.kill(os.getpid(), signal.SIGSEGV)\nready(); until_told_to_stop()")
    pauses = [supervisor.until("node ended; will start it again")["restart_in"] for _ in range(4)]
    for pause, most in zip(pauses, (0.05, 0.1, 0.2, 0.2), strict=True):
        assert most * 0.74 <= pause <= most
    supervisor.until("node started", node=3)
    supervisor.process.terminate()
    assert supervisor.end() == 0


def test_the_pause_begins_anew_once_a_node_has_settled(supervise):
    supervisor = supervise(
        "if attempt < 3: os.kill(os.getpid(), signal.SIGSEGV)\nready(); time.sleep(0.4); os.abort()", processes=1
    )
    pauses = [supervisor.until("node ended; will start it again")["restart_in"] for _ in range(4)]
    assert pauses[2] >= 0.15
    assert pauses[3] <= 0.05


@pytest.mark.parametrize("status", [1, 2])
def test_a_command_that_cannot_work_is_tried_once(supervise, status: int):
    supervisor = supervise(f"sys.exit({status})")
    gave_up = supervisor.until("node ended, and none has run for long; giving up")
    assert (gave_up["node"], gave_up["status"]) == (1, status)
    assert supervisor.end() == status
    assert [message for message in supervisor.messages if message.startswith("node started")] == ["node started 1"]


def test_it_gives_up_when_the_last_one_fails_after_it_was_ready(supervise):
    """The tables may be missing, for example: the first node does not find out before the others are started."""
    code = "ready()\nwhile os.path.getsize('attempts') < 3: time.sleep(0.01)\nsys.exit(1)"
    supervisor = supervise(code, settled_after=60)
    assert supervisor.end() == 1
    assert len([message for message in supervisor.messages if "will start it again" in message]) >= 2
    (gave_up,) = [said for said in supervisor.said if "giving up" in said["message"]]
    assert gave_up["status"] == 1


def test_it_does_not_give_up_once_a_node_has_settled(supervise):
    supervisor = supervise("if attempt: sys.exit(2)\nready(); time.sleep(0.4); sys.exit(2)", processes=1)
    for _ in range(3):
        assert supervisor.until("node ended; will start it again")["status"] == 2


def test_a_node_that_ends_well_by_itself_is_started_again(supervise):
    supervisor = supervise("ready()\nif attempt: until_told_to_stop()", processes=1)
    assert supervisor.until("node ended; will start it again")["status"] == 0
    supervisor.until("node ready")
    supervisor.process.terminate()
    assert supervisor.end() == 0


def test_a_node_that_fails_on_its_way_out(supervise):
    supervisor = supervise("ready(5); until_told_to_stop(); sys.exit(attempt)", processes=2)
    supervisor.until("node ready", node=2)
    supervisor.process.terminate()
    assert supervisor.until("node stopped", node=2)["level"] == "ERROR"
    assert supervisor.end() == 1


def test_a_node_has_its_shutdown_timeout_to_stop(supervise):
    supervisor = supervise("ready(60); until_told_to_stop(); time.sleep(0.8)", processes=1)
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


def test_it_ends_although_nobody_reads_its_log(supervise):
    """As when a log collector hangs: whoever logs waits for ever once the pipe is full."""
    fill = "threading.Thread(target=os.write, args=(2, bytes(2**20)), daemon=True).start()"
    supervisor = supervise(f"import threading; {fill}; ready(); until_told_to_stop()", processes=2)
    wait_until(lambda: is_full(supervisor.process.stderr))
    supervisor.process.terminate()
    assert supervisor.process.wait(timeout=30) == 1


def is_full(pipe: Any) -> bool:
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, waiting)
    return waiting[0] >= 2**16 - select.PIPE_BUF


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_kills(supervise, number: signal.Signals):
    supervisor = supervise("ready(600); time.sleep(600)", processes=2)
    supervisor.until("node ready", node=2)
    supervisor.process.terminate()
    supervisor.until("stopping")
    supervisor.process.send_signal(number)
    supervisor.until("killing the nodes")
    assert supervisor.end() == 128 + number


def test_no_program_to_start(tmp_path: Path):
    supervisor = Supervised(sys.executable, "-c", SUPERVISOR, "2", "0.3", "/nowhere/python")
    for _ in range(2):
        assert "FileNotFoundError" in supervisor.until("node cannot be started; will try again")["exception"]
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
def nodes(database: Engine, tmp_path: Path) -> Iterator[Supervised]:
    """The command with two nodes, which have joined."""
    (tmp_path / "myapp.py").write_text(APPLICATION)
    store = EventStore(make_tables(database))
    WorkerTables(store.tables.metadata).metadata.create_all(database)
    environment = os.environ | {"DATABASE_URL": database.url.render_as_string(hide_password=False)}
    command = [COMMAND, "worker", "myapp:worker", "--processes", "2", "--log-format", "json"]
    supervisor = Supervised(*command, cwd=tmp_path, env=environment)
    for _ in range(2):
        supervisor.until("worker started")
    assert joined(database) == 2
    yield supervisor
    supervisor.close()


def joined(database: Engine) -> int:
    with database.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM worker_nodes")) or 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["supervisor", "group"])
def test_the_command_stops_at_one_signal(
    database: Engine, nodes: Supervised, send: Callable[[int, int], None], number: signal.Signals
):
    """Also when it goes to the nodes as well, as Ctrl-C and systemd's do."""
    send(nodes.process.pid, number)
    assert nodes.end() == 0
    assert joined(database) == 0


def test_no_node_outlives_the_supervisor(database: Engine, nodes: Supervised):
    left = nodes.nodes()
    assert len(left) == 2
    nodes.process.kill()
    nodes.process.wait()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert alive == []
    assert joined(database) == 0  # they stopped as they should


def test_a_node_that_crashes_is_replaced(database: Engine, nodes: Supervised):
    nodes.nodes()[0].kill()
    nodes.until("worker started")
    nodes.process.terminate()
    assert nodes.end() == 0
