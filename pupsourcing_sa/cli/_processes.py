"""Runs several nodes, each a process of its own, under a supervisor.

The supervisor loads nothing of the application. It starts the command again in each node, with one more option: a
channel, which is one end of a pair of connected sockets. A node as the supervisor sees it::

               start             line received         10 s
    waiting ─────────► starting ───────────────► ready ─────► settled
       ▲                   │                       │             │
       └───── back-off ────┴───────────────────────┴── it ends ──┘

    and once a signal has asked for a stop:

                                 channel shut            it ends
    starting, ready, settled ───────────────► stopping ───────────► ended
                                                 └─ out of time, or a second signal: SIGKILL

Over the channel

- the node sends one line when it has loaded the application: its ``shutdown_timeout``, in seconds;
- the supervisor sends nothing. The end of its stream tells the node to stop, and comes also when the supervisor has
  died of ``kill -9``: to be told and to be orphaned are one case.

A signal that is passed on would be a race: Ctrl-C goes to all processes of a terminal's group, systemd's SIGTERM to
all of a control group, and a node that gets another copy from its supervisor takes it for the second signal, which ends
it at once. So signals are left to whoever sends them, and the channel can say "stop" any number of times.

The first node is started alone and the others once it is ready, so that a command that cannot work complains once. As
long as no node has settled, a node that ends by itself with status 1 or 2 while no other is running, ends the
supervisor too, with this status: what one process would do. Later, and after a crash, nodes are started again for ever,
with growing pauses.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from pupsourcing_sa.worker import Worker
from pupsourcing_sa.worker.backoff import delay_after
from pupsourcing_sa.worker.lifecycle.signals import leave, limit_exit

__all__ = ["Channel", "Pace", "Supervisor"]

_logger = logging.getLogger("pupsourcing_sa.supervisor")

#: What the command's own end after a signal looks like, before or beside the worker's handling of it.
_INTERRUPTED: Final = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM})

#: How long after its ``shutdown_timeout`` a node ends itself: the worker's rolling back and leaving takes a moment.
_GIVE_UP_SECONDS: Final = 5.0
#: How long after it would have killed its nodes the supervisor ends itself.
_LAST_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The supervisor's times, in seconds.

    Attributes:
        restart_delay: pause before a node that ended is started again; it doubles each time, with jitter.
        max_restart_delay: up to this.
        settled_after: a node that was ready for so long begins with the first pause again.
        margin: a node is killed when it has not stopped so long after its ``shutdown_timeout``; long enough for a
            worker whose event loop is blocked, or that leaves threads behind, to end its process itself.
    """

    restart_delay: float = 1.0
    max_restart_delay: float = 60.0
    settled_after: float = 10.0
    margin: float = 15.0


class Supervisor:
    """Runs one command in several processes until SIGINT or SIGTERM.

    Args:
        command: what each process runs; the file descriptor of its channel is appended to it.
        processes: how many.
        pace: the times.
    """

    def __init__(self, command: Sequence[str], processes: int, *, pace: Pace | None = None) -> None:
        self._command = command
        self._nodes = [_Node(number) for number in range(1, processes + 1)]
        self._pace = pace or Pace()
        self._selector = selectors.DefaultSelector()
        self._is_stopping = False
        self._has_settled = False
        self._status = 0
        self._watchdog: threading.Timer | None = None

    def run(self) -> int:
        """Run them; gives an exit status.

        Returns:
            0 when every node has stopped as asked; 1 when one had to be killed, or failed on its way out; 1 or 2 when
            none could start; 128 + the number of a second signal.
        """
        _logger.info("supervisor started", extra={"processes": len(self._nodes)})
        with self._selector, _received_signals(self._limit_end) as signals:
            self._selector.register(signals, selectors.EVENT_READ, lambda: self._take_signals(signals))
            self._start(self._nodes[0])
            while any(node.process is not None or node.due is not None for node in self._nodes):
                self._wait()
                for node in self._nodes:
                    self._look_after(node)
        if self._watchdog is not None:
            self._watchdog.cancel()
        _logger.info("supervisor stopped", extra={"status": self._status})
        return self._status

    def _limit_end(self) -> None:
        """A stop was asked for: end in any case, also if it cannot be seen to, as nobody reads what is logged.

        The nodes, whose channels end with this process, stop by themselves.
        """
        if self._watchdog is None:
            longest = max((node.process.shutdown_timeout for node in self._nodes if node.process), default=0.0)
            seconds = longest + self._pace.margin + _LAST_SECONDS
            self._watchdog = limit_exit(seconds, "the supervisor did not stop in time; leaving")

    def _wait(self) -> None:
        """Until there is a signal, which also a node's end is, a node's line, or something due."""
        due = [node.due for node in self._nodes if node.due is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            key.data()

    def _look_after(self, node: _Node) -> None:
        is_due = node.due is not None and node.due <= time.monotonic()
        if node.process is None:
            if is_due:
                self._start(node)
        elif (status := node.process.status) is not None:
            self._take_end(node, node.process, status)
        elif is_due:
            _logger.error("node did not stop in time; killing it", extra=node.details)
            node.due = None
            node.process.kill()

    def _start(self, node: _Node) -> None:
        node.due = None
        try:
            node.process = process = _Process(self._command)
        except OSError as error:  # no memory or descriptors left, or Python is being installed anew
            delay = self._delay(node)
            details = node.details | {"restart_in": delay}
            _logger.error("node cannot be started; will try again", exc_info=error, extra=details)
            return
        self._selector.register(process.channel, selectors.EVENT_READ, lambda: self._take_line(node, process))
        _logger.info("node started", extra=node.details)

    def _take_line(self, node: _Node, process: _Process) -> None:
        if not process.read_line():
            self._selector.unregister(process.channel)  # what remains to come is its end
            return
        _logger.info("node ready", extra=node.details)
        if self._is_stopping:
            return
        for each in self._nodes:
            if each.process is None and each.due is None:
                self._start(each)

    def _take_signals(self, signals: socket.socket) -> None:
        for number in signals.recv(4096):
            if number == signal.SIGCHLD:
                continue
            if not self._is_stopping:
                self._stop(number)
                continue
            _logger.warning("killing the nodes", extra={"signal": _name(number)})
            self._status = 128 + number
            for node in self._nodes:
                if node.process is not None:
                    node.process.kill()

    def _stop(self, number: int) -> None:
        self._is_stopping = True
        for node in self._nodes:
            node.due = None
            if node.process is not None:
                node.process.tell_to_stop()
                node.due = time.monotonic() + node.process.shutdown_timeout + self._pace.margin
        _logger.info("stopping", extra={"signal": _name(number)})

    def _take_end(self, node: _Node, process: _Process, status: int) -> None:
        details = node.details | ({"status": status} if status >= 0 else {"signal": _name(-status)})
        with suppress(KeyError):
            self._selector.unregister(process.channel)
        process.channel.close()
        node.process, node.due = None, None
        if self._is_stopping:
            is_well = status == 0 or status in _INTERRUPTED
            self._status = self._status or int(not is_well)
            _logger.log(logging.INFO if is_well else logging.ERROR, "node stopped", extra=details)
            return
        if process.ready_at is not None and time.monotonic() - process.ready_at >= self._pace.settled_after:
            self._has_settled, node.failures = True, 0
        if status in (1, 2) and not self._has_settled and all(each.process is None for each in self._nodes):
            _logger.error("node ended, and none has run for long; giving up", extra=details)
            self._status = status
            for each in self._nodes:
                each.due = None
            return
        details["restart_in"] = self._delay(node)
        _logger.warning("node ended; will start it again", extra=details)

    def _delay(self, node: _Node) -> float:
        """Have it started again; gives the pause until then, in seconds."""
        node.failures += 1
        delay = delay_after(
            node.failures, first=self._pace.restart_delay, most=self._pace.max_restart_delay, jitter=random.random()
        )
        node.due = time.monotonic() + delay
        return round(delay, 3)


class _Process:
    """A node's process, with the supervisor's end of its channel.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.shutdown_timeout = 0.0  # until it is ready, there is nothing to finish
        self.ready_at: float | None = None
        with theirs:
            try:
                self._process = subprocess.Popen([*command, str(theirs.fileno())], pass_fds=[theirs.fileno()])
            except BaseException:
                self.channel.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """As `subprocess.Popen.returncode`; ``None`` while it runs."""
        return self._process.poll()

    def read_line(self) -> bool:
        """Take notice of the node's line; gives whether there was one, and not the end of its stream."""
        try:
            line = self.channel.recv(64)  # a line that short arrives in one piece
        except ConnectionResetError:
            return False
        if line:
            self.shutdown_timeout, self.ready_at = float(line), time.monotonic()
        return bool(line)

    def tell_to_stop(self) -> None:
        with suppress(OSError):  # it has just ended
            self.channel.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        self._process.kill()


class _Node:
    """A node's place: the process in it, and when it is due to be started, or to be killed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: _Process | None = None
        self.due: float | None = None
        self.failures = 0  # in a row

    @property
    def details(self) -> dict[str, Any]:
        return {"node": self.number} | ({"pid": self.process.pid} if self.process is not None else {})


@contextmanager
def _received_signals(asked: Callable[[], None]) -> Iterator[socket.socket]:
    """A socket that has one byte for each signal that came: its number.

    Args:
        asked: called at once when a stop is asked for, whatever the process is in the middle of.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        other = signal.set_wakeup_fd(writer.fileno())

        def handle(number: int, _: object) -> None:  # it is Python that writes to the socket
            if number != signal.SIGCHLD:
                asked()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
        try:
            yield reader
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(other)


def _name(number: int) -> str:
    return next((each.name for each in signal.Signals if each == number), f"signal {number}")


class Channel:
    """A node's end of the channel to its supervisor.

    Args:
        descriptor: the inherited socket's.

    Raises:
        OSError: it is not a socket's.

    Until the node is `ready` there is nothing to finish, and its process is ended when it is told to stop. Later the
    worker is stopped, and its process ended if that takes too long, because a handler blocks its event loop.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)  # by what the application starts
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        threading.Thread(target=self._watch, name="pupsourcing-supervised", daemon=True).start()

    def ready(self, worker: Worker) -> None:
        """Report that this worker is about to run."""
        with self._lock:
            self._worker = worker
            with suppress(OSError):  # there is no supervisor any more, which the other thread finds out
                self._socket.sendall(b"%f\n" % worker.config.shutdown_timeout)

    def _watch(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)  # nothing is sent
        with self._lock:
            if self._worker is None:
                os._exit(0)
        self._worker.stop()
        time.sleep(self._worker.config.shutdown_timeout + _GIVE_UP_SECONDS)
        leave("the worker does not stop; its process ends without it")
