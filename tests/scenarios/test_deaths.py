"""Nodes that die, are paused or hang. Other nodes take over, and nothing is applied twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tests.scenarios.application import Follows
from tests.scenarios.fleet import Fleet, Node
from tests.scenarios.scene import Scene
from tests.waiting import patiently

CONSUMERS = {"a": Follows(partitions=3), "b": Follows(), "c": Follows(partitions=2, by_batch=True)}
ONE = {"one": Follows()}
DRIVERS = ["psycopg", "async-psycopg", "asyncpg"]
#: Seconds without a heartbeat after which a node is presumed dead.
HEARTBEAT_TIMEOUT = patiently(2.0)


def are_all(scene: Scene, *nodes: Node) -> Callable[[], bool]:
    """Return True if these nodes, and no others, are registered."""
    return lambda: scene.shares().keys() == {node.pid for node in nodes}


def start_two(scene: Scene, fleet: Fleet, driver: str, **config: float) -> tuple[Node, Node]:
    """Start two nodes with one consumer. Return first the one that has it and has applied events."""
    nodes = [fleet.start(ONE, driver=driver, heartbeat_timeout=HEARTBEAT_TIMEOUT, **config) for _ in range(2)]
    fleet.wait_until(are_all(scene, *nodes), "both nodes")
    owner = scene.owner("one")
    nodes.sort(key=lambda node: node.pid != owner)
    scene.append("x", "y", "x")
    fleet.wait_until(lambda: not scene.backlog(ONE), "the first events applied")
    return nodes[0], nodes[1]


def print_takeover(scene: Scene, what: str, since: datetime, node: Node) -> None:
    """Print the duration for readers of the output. No test depends on it."""
    at = scene.scalar("SELECT min(at) FROM applied WHERE node = :node AND at > :since", node=node.name, since=since)
    print(f"{node.name} took over {(at - since).total_seconds():.2f} s after {what}")


def assert_found_at_the_first_search(scene: Scene, *, least: int = 1) -> None:
    """Check that the first tick after the timeout removed the silent nodes, by the clock of the database."""
    timeout = timedelta(seconds=HEARTBEAT_TIMEOUT)
    removals = scene.query(
        "SELECT worker_id, heartbeat_at, ended_at FROM searches WHERE worker_id IS NOT NULL AND NOT left_by_itself"
    )
    assert len(removals) >= least
    for worker_id, heartbeat_at, ended_at in removals:
        assert ended_at >= heartbeat_at + timeout
        missed = scene.query(
            "SELECT began_at FROM searches WHERE began_at > :due AND ended_at < :ended_at",
            due=heartbeat_at + timeout,
            ended_at=ended_at,
        )
        assert missed == [], f"{worker_id} was overlooked"


def test_kill_any_node_under_load(scene: Scene, fleet: Fleet):
    nodes = [
        fleet.start(CONSUMERS, driver=driver, heartbeat_timeout=HEARTBEAT_TIMEOUT) for driver in [*DRIVERS, "psycopg"]
    ]
    with scene.load(*CONSUMERS):
        fleet.wait_until(are_all(scene, *nodes), "all nodes")
        while len(nodes) > 1:
            victim, *nodes = nodes
            fleet.wait_until(scene.progress(victim), f"{victim.name} at work")
            victim.kill()
            fleet.wait_until(are_all(scene, *nodes), f"the removal of {victim.name}")
            fleet.wait_until(scene.progress(by=100), "the others at work")
    fleet.wait_until(lambda: not scene.backlog(CONSUMERS), "everything applied")
    assert_found_at_the_first_search(scene, least=3)
    fleet.stop()
    scene.assert_applied_exactly_once(*CONSUMERS)


def test_kill_in_the_middle_of_a_batch(scene: Scene, fleet: Fleet):
    victim, other = start_two(scene, fleet, "psycopg")
    with scene.closed_gate() as gate:
        position = scene.order("one", "wait", node=victim)
        fleet.wait_until(gate.is_reached, "the batch")
        since = scene.now()
        victim.kill()
        fleet.wait_until(lambda: position in scene.applied("one"), "the event applied by the other node")
    print_takeover(scene, "a kill", since, other)
    assert_found_at_the_first_search(scene)
    scene.append("x", "y")
    fleet.wait_until(lambda: not scene.backlog(ONE), "everything applied")
    fleet.stop()
    scene.assert_applied_exactly_once("one")
    assert scene.applied("one")[position] == other.name


@pytest.mark.parametrize("driver", ["psycopg", pytest.param("asyncpg", marks=pytest.mark.exhaustive)])
def test_stopped_in_the_middle_of_a_batch_and_continued(scene: Scene, fleet: Fleet, driver: str):
    sleeper, other = start_two(scene, fleet, driver)
    with scene.closed_gate() as gate:
        position = scene.order("one", "wait", node=sleeper)
        fleet.wait_until(gate.is_reached, "the batch")
        since = scene.now()
        sleeper.pause()
        gate.open()
        scene.append("x", "y")
        fleet.wait_until(lambda: not scene.backlog(ONE), "everything applied by the other node")
    print_takeover(scene, "a stop in a batch", since, other)
    assert set(scene.applied("one", after=position - 1).values()) == {other.name}
    assert_found_at_the_first_search(scene)
    sleeper.resume()
    fleet.wait_until(lambda: sleeper.pid in scene.shares(), "the first node among the others again")
    # If the node used an old position of the consumer, it would do so before it applies anything new.
    fleet.stop(other)
    last = scene.append("x", "y")
    fleet.wait_until(lambda: not scene.backlog(ONE), "everything applied")
    fleet.stop()
    scene.assert_applied_exactly_once("one")
    assert scene.applied("one")[last] == sleeper.name


@pytest.mark.exhaustive
def test_stopped_at_any_moment_under_load_and_continued(scene: Scene, fleet: Fleet):
    nodes = [fleet.start(CONSUMERS, driver=driver, heartbeat_timeout=HEARTBEAT_TIMEOUT) for driver in DRIVERS]
    with scene.load(*CONSUMERS):
        fleet.wait_until(are_all(scene, *nodes), "all nodes")
        for sleeper in nodes:
            fleet.wait_until(scene.progress(sleeper), f"{sleeper.name} at work")
            sleeper.pause()
            others = [node for node in nodes if node is not sleeper]
            fleet.wait_until(are_all(scene, *others), f"the removal of {sleeper.name}")
            fleet.wait_until(scene.progress(by=100), "the others at work")
            sleeper.resume()
            fleet.wait_until(are_all(scene, *nodes), f"{sleeper.name} among the others again")
    fleet.wait_until(lambda: not scene.backlog(CONSUMERS), "everything applied")
    fleet.stop()
    scene.assert_applied_exactly_once(*CONSUMERS)


@pytest.mark.parametrize("driver", ["psycopg", pytest.param("async-psycopg", marks=pytest.mark.exhaustive)])
def test_a_graceful_stop_in_the_middle_of_a_batch(scene: Scene, fleet: Fleet, driver: str):
    leaving, other = start_two(scene, fleet, driver)
    with scene.closed_gate() as gate:
        position = scene.order("one", "wait", node=leaving)
        fleet.wait_until(gate.is_reached, "the batch")
        leaving.terminate()
        fleet.wait_until(lambda: scene.owner("one") == other.pid, "the partition with the other node")
        assert leaving.pid in scene.shares(), "it stays alive for its batch"
        last = scene.append("x", "y")
        assert scene.applied("one", after=position - 1) == {}
        since = scene.now()
        gate.open()
    fleet.wait_until(lambda: not scene.backlog(ONE), "everything applied")
    print_takeover(scene, "the last batch of the node that left", since, other)
    fleet.wait_for_end(leaving)
    assert leaving.status == 0
    fleet.stop()
    scene.assert_applied_exactly_once("one")
    assert scene.applied("one")[position] == leaving.name, "its batch was committed"
    assert scene.applied("one")[last] == other.name


@pytest.mark.parametrize(
    ("driver", "what", "status"),
    [
        ("psycopg", "hang", 0),
        pytest.param("asyncpg", "hang", 0, marks=pytest.mark.exhaustive),
        pytest.param(
            "async-psycopg", "block", 1, marks=pytest.mark.exhaustive
        ),  # like a crash: the loop that would end the process is blocked
    ],
)
def test_a_handler_that_hangs_cannot_keep_the_process(scene: Scene, fleet: Fleet, driver: str, what: str, status: int):
    hanging, other = start_two(scene, fleet, driver, shutdown_timeout=0.5)
    position = scene.order("one", what, node=hanging)
    fleet.wait_until(scene.is_reached, "the handler")
    hanging.terminate()
    fleet.wait_for_end(hanging)
    assert hanging.status == status
    last = scene.append("x", "y")
    fleet.wait_until(lambda: not scene.backlog(ONE), "everything applied")
    fleet.stop()
    scene.assert_applied_exactly_once("one")
    assert {scene.applied("one")[position], scene.applied("one")[last]} == {other.name}
