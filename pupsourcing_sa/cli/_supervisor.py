"""The supervisor of ``--processes``, which runs several nodes, each in a process of its own.

The supervisor does not load the application. Each node is the same command with one more option: the descriptor of a
pipe, which is one end of a pair of connected sockets (see `pupsourcing_sa.cli._supervised` for the other end)::

    start ──► starting ──────────────────────► ready ──────────────────────► settled
                  │   the node sends a line      │   after `settled_after`      │
                  └────────── ends ──────────────┴────────── ends ──────────────┘
                                back-off, then start again

- **The node sends one line** when it has joined the group: its ``shutdown_timeout`` in seconds. The first node starts
  alone. The others follow when it is ready, so that a command that cannot work fails once. During an outage of the
  database, a single node retries to connect.
- **The supervisor sends nothing.** The end of its stream stops the node. The stream also ends when the supervisor is
  killed, so no node outlives it.

**The supervisor does not pass signals on.** Ctrl-C goes to every process of a terminal's group, and systemd's SIGTERM
to every process of a unit. A node would mistake a copy for the second signal, which ends it at once.

**Mistakes that no restart can correct**, such as a wrong option or missing tables, end the command. The supervisor
recognizes them by the exit status: a node ends by itself with status 1 or 2 before any node has settled, and no other
node runs. This is so when the first node fails to start, because the others wait for it. The command then ends with
that status, as a single process would. The supervisor restarts any other node that ends. A node itself retries what may
succeed later, such as connecting during an outage.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from pupsourcing_sa.worker.backoff import delay_after
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.signals import limit_exit
from pupsourcing_sa.worker.lifecycle.tasks import cancel_all, wait_for_event

__all__ = ["Supervisor", "SupervisorTimings"]

_logger = logging.getLogger("pupsourcing_sa.supervisor")

#: Exit statuses of a node that a signal stopped, before or after it could install its handlers.
_STOPPED: Final = frozenset({0, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM})


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorTimings:
    """Times of the supervisor, in seconds.

    Attributes:
        restart_delay: delay before the first restart of a node. It doubles with each failure and has jitter.
        max_restart_delay: upper limit of that delay.
        settled_after: time after which a ready node counts as settled. Its next restart has the first delay again.
        margin: time after ``shutdown_timeout`` at which the supervisor kills a node. By then a worker whose event loop
            is blocked has ended its own process.
    """

    restart_delay: float = 1.0
    max_restart_delay: float = 60.0
    settled_after: float = 10.0
    margin: float = shutdown.NODE_KILL_SECONDS


class Supervisor:
    """Runner of one command in several processes, until SIGINT or SIGTERM.

    Args:
        command: returns the command of a node for the descriptor of its pipe.
        processes: number of nodes.
        timings: times, for tests.
    """

    def __init__(
        self, command: Callable[[int], Sequence[str]], processes: int, *, timings: SupervisorTimings | None = None
    ) -> None:
        self._command = command
        self._processes = processes
        self._timings = timings or SupervisorTimings()
        #: Running nodes by number.
        self._nodes: dict[int, _Node] = {}
        self._has_settled = False
        self._status = 0
        self._watchdog: threading.Timer | None = None

    def run(self) -> int:
        """Run the nodes and return the exit status of the command.

        Returns:
            0 if every node stopped as requested. 1 if a node had to be killed or failed while it stopped. 1 or 2 if no
            node could start. 128 + the number of a second signal.
        """
        return asyncio.run(self._run())

    async def _run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._ending, self._first_is_ready = asyncio.Event(), asyncio.Event()
        _logger.info("supervisor started", extra={"processes": self._processes})
        with _handled_signals(self._on_signal):
            async with asyncio.TaskGroup() as group:
                for number in range(1, self._processes + 1):
                    group.create_task(self._keep_running(number), name=f"pupsourcing-node-{number}")
        if self._watchdog is not None:
            self._watchdog.cancel()
        _logger.info("supervisor stopped", extra={"status": self._status})
        return self._status

    async def _keep_running(self, number: int) -> None:
        """Run a node, and restart it until the supervisor stops."""
        if number > 1:
            await self._first_is_ready.wait()
        failures = 0
        while not self._ending.is_set():
            has_settled = await self._run_once(number)
            if self._ending.is_set():
                return
            failures = 1 if has_settled else failures + 1
            delay = delay_after(
                failures,
                first=self._timings.restart_delay,
                max_delay=self._timings.max_restart_delay,
                jitter=random.random(),
            )
            _logger.info("will restart node", extra={"node": number, "restart_in": round(delay, 3)})
            await wait_for_event(self._ending, delay)

    async def _run_once(self, number: int) -> bool:
        """Run a process until it ends. Return True if it had settled."""
        try:
            node = self._nodes[number] = _Node(number, self._command)
        except OSError:  # no memory or no descriptors are left
            _logger.exception("cannot start node", extra={"node": number})
            return False
        _logger.info("node started", extra=node.details)
        ready = asyncio.create_task(self._read_ready(node), name=f"pupsourcing-node-{number}-ready")
        status = await node.wait()
        # A process that the node has forked may keep the stream open.
        await cancel_all({ready})
        del self._nodes[number]
        node.pipe.close()
        has_settled = node.ready_at is not None and self._loop.time() - node.ready_at >= self._timings.settled_after
        self._has_settled |= has_settled
        details = node.details | ({"status": status} if status >= 0 else {"signal": _name(-status)})
        if self._ending.is_set():
            is_stopped = status in _STOPPED
            self._status = self._status or int(not is_stopped)
            _logger.log(logging.INFO if is_stopped else logging.ERROR, "node stopped", extra=details)
        elif status in (1, 2) and not self._has_settled and not self._nodes:
            _logger.error("node failed, and no node has run for long; giving up", extra=details)
            self._status = status
            self._end()
        else:
            _logger.warning("node ended", extra=details)
        return has_settled

    async def _read_ready(self, node: _Node) -> None:
        line = await self._loop.sock_recv(node.pipe, 64)  # a line this short arrives in one piece
        if line:
            node.shutdown_timeout, node.ready_at = float(line), self._loop.time()
            ready = sum(running.ready_at is not None for running in self._nodes.values())
            _logger.info("node ready", extra=node.details | {"ready": ready, "processes": self._processes})
            self._first_is_ready.set()

    def _on_signal(self, number: int) -> None:
        """Handle a signal. It can interrupt this thread between any two instructions.

        The event loop may be blocked, because the reader of the log hangs and the pipe is full. A timer then ends the
        process. The nodes' pipes end with it, so the nodes stop.
        """
        if self._watchdog is None:
            longest = max((node.shutdown_timeout for node in self._nodes.values()), default=0.0)
            seconds = longest + self._timings.margin + shutdown.SUPERVISOR_EXIT_SECONDS
            self._watchdog = limit_exit(seconds, "supervisor did not stop in time; exiting")
        self._loop.call_soon_threadsafe(self._stop, number)

    def _stop(self, number: int) -> None:
        """Stop the nodes at the first signal, and kill them at the second."""
        nodes = list(self._nodes.values())
        if self._ending.is_set():
            _logger.warning("second signal; killing the nodes", extra={"signal": _name(number)})
            self._status = 128 + number
            for node in nodes:
                node.process.kill()
            return
        _logger.info("stopping the nodes", extra={"signal": _name(number)})
        self._end()
        for node in nodes:
            node.stop()
            self._loop.call_later(node.shutdown_timeout + self._timings.margin, self._kill_late, node)

    def _end(self) -> None:
        self._ending.set()
        self._first_is_ready.set()

    def _kill_late(self, node: _Node) -> None:
        if self._nodes.get(node.number) is node:
            _logger.error("node did not stop in time; killing it", extra=node.details)
            node.process.kill()


class _Node:
    """A process, with the supervisor's end of its pipe.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, number: int, command: Callable[[int], Sequence[str]]) -> None:
        self.number = number
        self.shutdown_timeout = 0.0  # a node that is not ready has nothing to finish
        self.ready_at: float | None = None
        self.pipe, theirs = socket.socketpair()
        self.pipe.setblocking(False)
        with theirs:
            try:
                self.process = subprocess.Popen(command(theirs.fileno()), pass_fds=[theirs.fileno()])
            except BaseException:
                self.pipe.close()
                raise

    @property
    def details(self) -> dict[str, Any]:
        return {"node": self.number, "pid": self.process.pid}

    async def wait(self) -> int:
        """Return the status as `subprocess.Popen.returncode`, after the process has ended."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def wait() -> None:
            status = self.process.wait()
            loop.call_soon_threadsafe(ended.set_result, status)

        # Not asyncio's pool, which has too few threads for many nodes.
        threading.Thread(target=wait, name=f"pupsourcing-node-{self.number}", daemon=True).start()
        return await ended

    def stop(self) -> None:
        with suppress(OSError):  # the node has just ended
            self.pipe.shutdown(socket.SHUT_WR)


@contextmanager
def _handled_signals(handle: Callable[[int], None]) -> Iterator[None]:
    before = {
        number: signal.signal(number, lambda number, _: handle(number)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")
