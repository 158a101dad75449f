"""The demo's load: writing processes, two nodes of a worker of which one dies, and a naive follower for comparison."""

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

#: A node is taken for dead after a quarter of the default, for those who watch.
_NODE: Final = (
    *("pupsourcing_sa", "worker", "pupsourcing_sa.demo.follower:worker", "--quiet"),
    *("--heartbeat-interval", "0.5", "--heartbeat-timeout", "2", "--rebalance-interval", "0.5"),
)


class NaiveFollower(threading.Thread):
    """Follows ``global_position > last``, as one would; misses what commits late."""

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
                found = connection.scalars(select(position).where(position > last).order_by(position)).all()
                self.seen.update(found)
                last = found[-1] if found else last

    def stop(self) -> None:
        self._is_stopping.set()
        self.join()


class Load:
    """What the load amounted to, in seconds: until everything was appended, until it was projected; and the takeover.

    Attributes:
        appended_in: from the beginning.
        projected_in: from the beginning.
        killed_at: how many events had been projected when the node was killed that ran the consumer.
        taken_over_in: how long it took from there until it was the other node's.
    """

    def __init__(self) -> None:
        self.appended_in = 0.0
        self.projected_in = 0.0
        self.killed_at: int | None = None
        self.taken_over_in = 0.0


def run_load(console: Console, engine: Engine, url: str, *, events: int, writers: int) -> Load:
    """Have several processes append while two nodes follow, and kill the one that is at work; show it.

    Args:
        console: where the progress is shown.
        engine: the database.
        url: its URL, for the processes.
        events: so many are to be committed, in all.
        writers: by so many processes.
    """
    shares = [events // writers + (number < events % writers) for number in range(writers)]
    commands = [["pupsourcing_sa.demo.writer", f"writer-{number}", str(share)] for number, share in enumerate(shares)]
    load, began = Load(), time.monotonic()
    columns = (TextColumn("   {task.description:<10}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with (
        tempfile.TemporaryFile("w+") as log,  # of the nodes, which complain of the one that dies
        _processes([_NODE, _NODE], url, stderr=log) as nodes,
        _processes(commands, url) as writing,
        Progress(*columns, console=console) as bars,
    ):
        start = _counts(engine)[0]
        appended, projected = (bars.add_task(name, total=events) for name in ("appended", "projected"))
        killed: int | None = None
        killed_at = 0.0
        while not load.projected_in:
            time.sleep(0.2)
            is_written = _are_done(writing)
            in_log, in_read_model, is_level = _counts(engine)
            bars.update(appended, completed=in_log - start)
            bars.update(projected, completed=max(in_read_model - start, 0))
            if is_written and not load.appended_in:
                load.appended_in = time.monotonic() - began
            if killed is None:
                if in_read_model - start >= events // 3 and (killed := _node_at_work(engine)):
                    os.kill(killed, signal.SIGKILL)
                    load.killed_at, killed_at = in_read_model - start, time.monotonic()
            elif not load.taken_over_in and _node_at_work(engine) not in (None, killed):
                load.taken_over_in = time.monotonic() - killed_at
            if is_written and is_level and load.taken_over_in:
                load.projected_in = time.monotonic() - began
            for node in nodes:
                if node.poll() is not None and node.pid != killed:
                    log.seek(0)
                    raise RuntimeError(f"a node of the worker ended with status {node.returncode}\n{log.read()}")
    return load


def _counts(engine: Engine) -> tuple[int, int, bool]:
    """Events in the log; those that the checkpoint has passed; whether the worker has nothing left to do."""
    with Session(engine) as session:
        checkpoint = select(_checkpoints.c.last_position).where(_checkpoints.c.consumer_name == count_providers.name)
        position = session.scalar(checkpoint) or 0
        passed = func.count().filter(_events.c.global_position <= position)
        in_log, in_read_model = session.execute(select(func.count(), passed).select_from(_events)).one()
        return in_log, in_read_model, position == store.latest_global_position(session)


def _node_at_work(engine: Engine) -> int | None:
    """The process that runs the consumer; ``None`` while there is none."""
    nodes, assignments = worker_tables.worker_nodes, worker_tables.consumer_assignments
    with Session(engine) as session:
        return session.scalar(select(nodes.c.pid).join(assignments).where(assignments.c.worker_id.is_not(None)))


def _are_done(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    statuses = [process.poll() for process in processes]
    failed = next((status for status in statuses if status), None)
    if failed is not None:
        raise RuntimeError(f"a writing process ended with status {failed}")
    return None not in statuses


@contextmanager
def _processes(
    commands: Sequence[Sequence[str]], url: str, *, stderr: IO[str] | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Python modules as processes; asked to stop at the end, and waited for."""
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
    """Events per second since the beginning."""

    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed
        return Text(f"{task.completed / seconds:,.0f} events/s" if seconds else "")
