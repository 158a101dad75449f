"""Nodes start and stop, and not all of them have the same consumers."""

from __future__ import annotations

from itertools import cycle

import pytest

from tests.scenarios.application import Follows
from tests.scenarios.fleet import Fleet, Node
from tests.scenarios.scene import Scene


def has_evenly(scene: Scene, *nodes: Node) -> bool:
    """Return True if exactly these nodes have all partitions, evenly."""
    shares = scene.shares()
    unassigned = scene.scalar("SELECT count(*) FROM consumer_assignments WHERE worker_id IS NULL")
    return (
        not unassigned
        and shares.keys() == {node.pid for node in nodes}
        and max(shares.values()) - min(shares.values()) < 2
    )


@pytest.mark.parametrize("others", [3, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_one_node_and_many_and_one_again(scene: Scene, fleet: Fleet, others: int):
    """Nodes with different drivers form one fleet: they see each other only as rows in tables."""
    consumers = {
        f"c{number:02}": Follows(partitions=3 if number % 5 == 0 else 1, by_batch=number % 2 == 0)
        for number in range(25)
    }
    drivers = cycle(["psycopg", "async-psycopg", "asyncpg"])
    nodes = [fleet.start(consumers, driver=next(drivers))]
    with scene.load(*consumers):
        fleet.wait_until(lambda: has_evenly(scene, nodes[0]), "everything on the only node")
        fleet.wait_until(scene.progress(by=500), "the first node at work")
        nodes += [fleet.start(consumers, driver=next(drivers)) for _ in range(others)]
        fleet.wait_until(lambda: has_evenly(scene, *nodes), "even shares")
        assert sum(scene.shares().values()) == 35
        for node in nodes:
            fleet.wait_until(scene.progress(node), f"{node.name} at work")
        fleet.stop(*nodes[::2])
        assert has_evenly(scene, *nodes[1::2])
        fleet.stop(*nodes[3::2])
        assert has_evenly(scene, nodes[1])
        fleet.wait_until(scene.progress(by=500), "the last node at work")
    fleet.wait_until(lambda: not scene.backlog(consumers), "everything applied")
    fleet.stop()
    assert scene.shares() == {}
    scene.assert_applied_exactly_once(*consumers)


@pytest.mark.exhaustive
def test_a_rolling_deploy_of_other_consumers(scene: Scene, fleet: Fleet):
    both = {"kept": Follows(partitions=3), "other": Follows()}
    before, after = both | {"dropped": Follows()}, both | {"added": Follows(partitions=2)}
    old = [fleet.start(before), fleet.start(before, driver="asyncpg")]
    with scene.load(*both):
        fleet.wait_until(lambda: has_evenly(scene, *old), "the old nodes")
        fleet.wait_until(lambda: scene.applied("dropped"), "the old consumer at work")
        new = [fleet.start(after)]
        fleet.wait_until(lambda: has_evenly(scene, *old, *new), "old and new nodes together")
        fleet.wait_until(lambda: scene.applied("added"), "the new consumer at work")
        fleet.stop(old[0])
        new.append(fleet.start(after, driver="async-psycopg"))
        fleet.wait_until(lambda: has_evenly(scene, old[1], *new), "half of it done")
        assert scene.owner("dropped") == old[1].pid
        fleet.stop(old[1])
        assert scene.owner("dropped") is None, "there is nobody to run it"
        assert sum(scene.shares().values()) == 6
        for node in new:
            fleet.wait_until(scene.progress(node), f"{node.name} at work")
    fleet.wait_until(lambda: not scene.backlog(["kept", "other", "added"]), "everything applied")
    position = scene.scalar("SELECT last_position FROM consumer_checkpoints WHERE consumer_name = 'dropped'")
    scene.assert_applied_exactly_once("dropped", up_to=position)
    assert scene.backlog(["dropped"]) > 0, "its checkpoint stays where it was"

    rolled_back = fleet.start(before)
    fleet.wait_until(lambda: not scene.backlog([*before, *after.keys() - both.keys()]), "what was left alone")
    fleet.stop()
    scene.assert_applied_exactly_once("kept", "other", "added", "dropped")
    ran = {(consumer, node) for consumer, node in scene.query("SELECT DISTINCT consumer, node FROM applied")}
    assert {node for consumer, node in ran if consumer == "added"} <= {node.name for node in new}
    assert {node for consumer, node in ran if consumer == "dropped"} <= {node.name for node in [*old, rolled_back]}
