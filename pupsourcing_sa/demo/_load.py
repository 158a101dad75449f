"""The demo's load: writing processes, two worker nodes, one of which is killed, and a naive follower for comparison."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from pupsourcing_sa.demo.app import count_providers, store, worker_tables
from pupsourcing_sa.demo.follower import PARENT

__all__ = ["Load", "NaiveFollower", "run_load"]

_events = store.tables.events
_checkpoints = worker_tables.consumer_checkpoints

#: A node is presumed dead after a quarter of the default time, because a user watches.
_NODE: Final = (
    *("pupsourcing_sa", "worker", "pupsourcing_sa.demo.follower:worker", "--quiet"),
    *("--heartbeat-interval", "0.5", "--heartbeat-timeout", "2", "--rebalance-interval", "0.5"),
)


class NaiveFollower(threading.Thread):
    """A thread that reads ``global_position > last`` repeatedly. It misses events whose transactions commit late."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="naive-follower", daemon=True)
        self._engine = engine
        self._is_stopping = threading.Event()
        self.seen: set[int] = set()

    def run(self) -> None:
        last = 0
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._is_stopping.wait(0.005):
                position = _events.c.global_position
                positions = connection.scalars(select(position).where(position > last).order_by(position)).all()
                self.seen.update(positions)
                last = positions[-1] if positions else last

    def stop(self) -> None:
        self._is_stopping.set()
        self.join()


class Load:
    """Measurements of the load. Times are in seconds.

    Attributes:
        appended_in: time from the start until all events were appended.
        projected_in: time from the start until the worker had processed all events.
        killed_at: number of processed events when the node that ran the consumer was killed.
        taken_over_in: time from the kill until the other node had taken over the consumer.
    """

    def __init__(self) -> None:
        self.appended_in = 0.0
        self.projected_in = 0.0
        self.killed_at: int | None = None
        self.taken_over_in = 0.0


def run_load(console: Console, engine: Engine, url: str, *, events: int, writers: int) -> Load:
    """Append events in several processes while two nodes process them, and kill the node that runs the consumer.

    Args:
        console: shows the progress.
        engine: the database.
        url: URL of the database, for the processes.
        events: total number of events to commit.
        writers: number of writing processes.
    """
    shares = [events // writers + (number < events % writers) for number in range(writers)]
    commands = [["pupsourcing_sa.demo.writer", f"writer-{number}", str(share)] for number, share in enumerate(shares)]
    load, started_at = Load(), time.monotonic()
    columns = (TextColumn("   {task.description:<10}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with (
        # Keep the nodes' log off the console, because the surviving node reports the killed one.
        tempfile.TemporaryFile("w+") as log,
        _processes([_NODE, _NODE], url, stderr=log) as nodes,
        _processes(commands, url) as writing,
        Progress(*columns, console=console) as bars,
    ):
        events_before = _counts(engine)[0]
        appended, projected = (bars.add_task(name, total=events) for name in ("appended", "processed"))
        killed_pid: int | None = None
        killed_at = 0.0
        while not load.projected_in:
            time.sleep(0.2)
            is_written = _are_done(writing)
            in_log, in_read_model, is_caught_up = _counts(engine)
            bars.update(appended, completed=in_log - events_before)
            bars.update(projected, completed=max(in_read_model - events_before, 0))
            if is_written and not load.appended_in:
                load.appended_in = time.monotonic() - started_at
            if killed_pid is None:
                if in_read_model - events_before >= events // 3 and (killed_pid := _running_node(engine)):
                    os.kill(killed_pid, signal.SIGKILL)
                    load.killed_at, killed_at = in_read_model - events_before, time.monotonic()
            elif not load.taken_over_in and _running_node(engine) not in (None, killed_pid):
                load.taken_over_in = time.monotonic() - killed_at
            if is_written and is_caught_up and load.taken_over_in:
                load.projected_in = time.monotonic() - started_at
            for node in nodes:
                if node.poll() is not None and node.pid != killed_pid:
                    log.seek(0)
                    raise RuntimeError(f"a worker node ended with status {node.returncode}. Its log:\n{log.read()}")
    return load


def _counts(engine: Engine) -> tuple[int, int, bool]:
    """Return the number of events in the log and of processed ones, and True if the worker has caught up."""
    with Session(engine) as session:
        checkpoint = select(_checkpoints.c.last_position).where(_checkpoints.c.consumer_name == count_providers.name)
        position = session.scalar(checkpoint) or 0
        passed = func.count().filter(_events.c.global_position <= position)
        in_log, in_read_model = session.execute(select(func.count(), passed).select_from(_events)).one()
        return in_log, in_read_model, position == store.latest_global_position(session)


def _running_node(engine: Engine) -> int | None:
    """Return the id of the process that runs the consumer, or ``None`` if no node runs it."""
    nodes, assignments = worker_tables.worker_nodes, worker_tables.consumer_assignments
    with Session(engine) as session:
        return session.scalar(select(nodes.c.pid).join(assignments).where(assignments.c.worker_id.is_not(None)))


def _are_done(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    statuses = [process.poll() for process in processes]
    failed = next((status for status in statuses if status), None)
    if failed is not None:
        raise RuntimeError(f"a writing process failed with status {failed}. Its error is above")
    return None not in statuses


@contextmanager
def _processes(
    commands: Sequence[Sequence[str]], url: str, *, stderr: IO[str] | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run Python modules as processes. Terminate them after the block and wait for them."""
    started = []
    try:
        for command in commands:
            environment = os.environ | {"DATABASE_URL": url, PARENT: str(os.getpid())}
            started.append(subprocess.Popen([sys.executable, "-m", *command], env=environment, stderr=stderr))
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


class _Rate(ProgressColumn):
    """Events per second since the start."""

    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed
        return Text(f"{task.completed / seconds:,.0f} events/s" if seconds else "")
