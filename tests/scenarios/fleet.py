"""Nodes as processes that a test kills, pauses and continues. None outlives the test."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.scenarios.application import VARIABLE, Follows, NodeSettings
from tests.waiting import patiently, wait_until

__all__ = ["QUICK", "Fleet", "Node"]

#: Times that a test can wait for. Heartbeats are so generous that a live node on a busy machine is not presumed dead.
QUICK: Final = {
    "batch_size": 20,
    "concurrency": 4,
    "poll_interval": 0.01,
    "max_poll_interval": 0.05,
    "heartbeat_interval": 0.2,
    "heartbeat_timeout": patiently(60.0),
    "rebalance_interval": 0.1,
    "retry_delay": 0.01,
    "max_retry_delay": 0.2,
    "shutdown_timeout": patiently(20.0),
}

_ROOT: Final = Path(__file__).parents[2]
_DEADLINE_SECONDS: Final = 60.0  # only a failure reaches it


class Node:
    """A process that runs a worker."""

    def __init__(self, settings: NodeSettings, log: Path) -> None:
        self.name = settings.name
        self.log = log
        self.is_expected_to_live = True
        command = [sys.executable, "-m", "pupsourcing_sa", "worker", "tests.scenarios.application:make_worker"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=os.environ | {VARIABLE: settings.to_json()},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; ``None`` while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Kill it like a crash, and wait for its end."""
        self._end_by(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to stop, without waiting."""
        self._end_by(signal.SIGTERM)

    def pause(self) -> None:
        """Pause it, like a machine that is out of memory, or a virtual machine that is moved."""
        self._process.send_signal(signal.SIGSTOP)
        # The kernel stops one thread after the other. Under load, a thread could commit a batch before it stops.
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, and close its files."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _end_by(self, number: signal.Signals) -> None:
        self.is_expected_to_live = False
        self._process.send_signal(number)


class Fleet:
    """The nodes of a test.

    Args:
        url: URL of the database, ``postgresql+psycopg://…``.
        directory: directory for the nodes' logs.
        config: default settings of the nodes.
        is_pooled: True if the URL is that of the pooler.
    """

    def __init__(
        self, url: str, directory: Path, config: Mapping[str, Any] = QUICK, *, is_pooled: bool = False
    ) -> None:
        self._url = url
        self._is_pooled = is_pooled
        self._directory = directory
        self._config = config
        self._nodes: list[Node] = []
        self._names = (f"n{number}" for number in itertools.count(1))

    def start(
        self,
        consumers: Mapping[str, Follows],
        *,
        driver: str = "psycopg",
        channel: str | None = None,
        **config: Any,
    ) -> Node:
        """Start a node, without waiting until it has joined the others."""
        name = next(self._names)
        settings = NodeSettings(
            name=name,
            url=self._url,
            driver=driver,
            consumers=consumers,
            config={**self._config, **config},
            channel=channel,
            is_pooled=self._is_pooled,
        )
        node = Node(settings, self._directory / f"{name}.log")
        self._nodes.append(node)
        return node

    def wait_until(self, is_so: Callable[[], Any], what: str) -> None:
        """Wait for a condition. Fail immediately if a node has ended without a request."""

        def is_so_yet() -> Any:
            found = is_so()
            ended = [each for each in self._nodes if each.is_expected_to_live and each.status is not None]
            assert found or not ended, f"{ended[0].name} has ended with status {ended[0].status}"
            return found

        try:
            wait_until(is_so_yet, seconds=_DEADLINE_SECONDS)
        except AssertionError as error:
            error.add_note(f"never seen: {what}")
            raise

    def wait_for_end(self, *nodes: Node) -> None:
        self.wait_until(
            lambda: all(node.status is not None for node in nodes), f"the end of {[node.name for node in nodes]}"
        )

    def stop(self, *nodes: Node) -> None:
        """Stop some nodes, or all running ones, and check that they end without an error."""
        stopped = nodes or [node for node in self._nodes if node.is_expected_to_live]
        for node in stopped:
            node.terminate()
        self.wait_for_end(*stopped)
        assert {node.name: node.status for node in stopped} == {node.name: 0 for node in stopped}

    def close(self) -> None:
        """End all nodes."""
        for node in self._nodes:
            node.close()

    def show_logs(self) -> None:
        """Print the nodes' logs. pytest shows them if the test has failed."""
        for node in self._nodes:
            log = node.log.read_text(errors="replace")
            print(f"----- {node.name}, process {node.pid}, status {node.status}\n{_shortened(log)}")


def _shortened(log: str, lines: int = 60) -> str:
    found = log.splitlines()
    if len(found) <= 2 * lines:
        return log
    return "\n".join([*found[:lines], f"[... {len(found) - 2 * lines} lines ...]", *found[-lines:]])
