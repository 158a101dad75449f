"""Measure the time until another node takes over: ``python -m tests.benchmarks.takeover [--rounds N]``.

Two nodes with the default settings share one partition, with some hundred events a second. The time is that from the
signal to the first event that the other node applies, by the clock of the database. The node

killed   gets SIGKILL at any moment;
stopped  gets SIGSTOP in the middle of a batch, whose transaction stays open on the server;
left     gets SIGTERM at any moment.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from pupsourcing_sa.worker import WorkerConfig
from tests.benchmarks.program import own_database
from tests.scenarios.application import Follows
from tests.scenarios.fleet import Fleet, Node
from tests.scenarios.scene import Scene

_ONE = {"one": Follows()}


class _Pair:
    """Two nodes, one of which has the partition."""

    def __init__(self, scene: Scene, fleet: Fleet) -> None:
        self._scene = scene
        self._fleet = fleet
        self._nodes = [fleet.start(_ONE) for _ in range(2)]

    def measure(self, hit: Callable[[Node], None]) -> float:
        """Hit the node that has the partition; return the seconds until the other node has applied an event."""
        scene, fleet = self._scene, self._fleet
        fleet.wait_until(lambda: scene.shares().keys() == {node.pid for node in self._nodes}, "both nodes")
        owner = scene.owner("one")
        self._nodes.sort(key=lambda node: node.pid != owner)
        victim, other = self._nodes
        fleet.wait_until(scene.progress(victim), f"{victim.name} at work")
        time.sleep(random.uniform(0, WorkerConfig().heartbeat_interval))  # at any time between two heartbeats
        is_at_work = scene.progress(other, by=1)
        since = scene.now()
        hit(victim)
        fleet.wait_until(is_at_work, f"{other.name} at work")
        victim.kill()
        self._nodes = [other, fleet.start(_ONE)]
        first = "SELECT min(at) FROM applied WHERE node = :node AND at > :since"
        return float((scene.scalar(first, node=other.name, since=since) - since).total_seconds())

    def kill(self, victim: Node) -> None:
        victim.kill()

    def pause_in_batch(self, victim: Node) -> None:
        with self._scene.closed_gate() as gate:
            self._scene.order("one", "wait", node=victim)
            self._fleet.wait_until(gate.is_reached, "the batch")
            victim.pause()
            gate.open()

    def terminate(self, victim: Node) -> None:
        victim.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.takeover", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind (default: 5)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds must be 1 or more")
    config = WorkerConfig()
    print(
        f"heartbeat_interval {config.heartbeat_interval:g} s, heartbeat_timeout {config.heartbeat_timeout:g} s, "
        f"rebalance_interval {config.rebalance_interval:g} s; {rounds} rounds of each"
    )
    with ExitStack() as stack:
        url = stack.enter_context(own_database())
        scene = Scene(url)
        stack.callback(scene.close)
        fleet = Fleet(url, Path(stack.enter_context(TemporaryDirectory())), config={})
        stack.callback(fleet.close)
        stack.enter_context(scene.load("one"))
        pair = _Pair(scene, fleet)
        for name, hit in (("killed", pair.kill), ("stopped", pair.pause_in_batch), ("left", pair.terminate)):
            seconds = [pair.measure(hit) for _ in range(rounds)]
            print(f"{name:8} median {median(seconds):5.2f} s   max {max(seconds):5.2f} s", flush=True)


if __name__ == "__main__":
    main()
