"""An event whose handler fails, in one consumer of ten."""

from __future__ import annotations

import pytest

from tests.scenarios.application import Follows
from tests.scenarios.fleet import Fleet
from tests.scenarios.scene import Scene

CONSUMERS = {f"c{number}": Follows(by_batch=number > 5) for number in range(10)}


def failure(scene: Scene) -> tuple[int, int | None, bool]:
    """Return the attempts and the position of the failure of c3, and if its partition is parked."""
    return scene.query(
        "SELECT attempts, failed_position, parked_at IS NOT NULL FROM consumer_checkpoints WHERE consumer_name = 'c3'"
    )[0]


@pytest.mark.parametrize(("driver", "max_attempts"), [("psycopg", None), ("asyncpg", 3)])
def test_a_poison_event_in_one_of_ten_consumers(scene: Scene, fleet: Fleet, driver: str, max_attempts: int | None):
    """The event is retried, or its partition is parked, on any node. Other consumers continue."""
    consumers = CONSUMERS | {"c3": Follows(max_attempts=max_attempts)}
    others = sorted(consumers.keys() - {"c3"})
    nodes = [fleet.start(consumers, driver=driver) for _ in range(2)]
    with scene.load(*others):
        fleet.wait_until(lambda: scene.shares().keys() == {node.pid for node in nodes}, "both nodes")
        fleet.wait_until(lambda: scene.applied("c3"), "the consumer at work")
        scene.append("poisoned")
        poison = scene.order("c3", "fail", aggregate_id="poisoned")
        last = scene.append("poisoned", "after")
        fleet.wait_until(lambda: failure(scene)[1] == poison, "the failure in the table")
        if max_attempts:
            fleet.wait_until(lambda: failure(scene)[2], "the partition parked")
            assert failure(scene)[0] == max_attempts
        else:
            fleet.wait_until(lambda: failure(scene)[0] > 3, "some more attempts")
        # Another node has the same failure.
        owner = scene.owner("c3")
        leaving, staying = sorted(nodes, key=lambda node: node.pid != owner)
        fleet.stop(leaving)
        assert scene.owner("c3") == staying.pid
        if not max_attempts:
            attempts = failure(scene)[0]
            fleet.wait_until(lambda: failure(scene)[0] > attempts, "an attempt by the other node")
        fleet.wait_until(lambda: all(last in scene.applied(name) for name in others), "the others beyond it")
    fleet.wait_until(lambda: not scene.backlog(others), "everything applied by the others")
    assert "cannot digest" in scene.scalar("SELECT error FROM consumer_checkpoints WHERE consumer_name = 'c3'")
    assert scene.applied("c3", after=poison - 1) == {}
    scene.assert_applied_exactly_once("c3", up_to=poison - 1)

    scene.execute("INSERT INTO healed DEFAULT VALUES")
    if max_attempts:
        assert failure(scene)[2]
        scene.execute("UPDATE consumer_checkpoints SET parked_at = NULL WHERE consumer_name = 'c3'")
    fleet.wait_until(lambda: not scene.backlog(["c3"]), "everything applied by the healed one")
    assert failure(scene) == (0, None, False)
    fleet.stop()
    scene.assert_applied_exactly_once(*consumers)
