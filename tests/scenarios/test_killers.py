"""Events that kill the process of their handler, with a node that is started again after each death."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.application import Follows
from tests.scenarios.fleet import Fleet
from tests.scenarios.scene import Scene

CHECKPOINTS = "SELECT consumer_name, last_position, attempts, parked_at IS NOT NULL FROM consumer_checkpoints"


def run_until_parked(
    scene: Scene, fleet: Fleet, consumers: dict[str, Follows], parked: set[str], **options: Any
) -> int:
    """Restart one node until these consumers are parked and the others are done. Return the number of deaths."""
    deaths = 0

    def is_over() -> bool:
        found = {name: is_parked for name, _, _, is_parked in scene.query(CHECKPOINTS)}
        return {name for name in found if found[name]} == parked and not scene.backlog(found.keys() - parked)

    while True:
        node = fleet.start(consumers, **options)
        node.is_expected_to_live = False
        fleet.wait_until(lambda node=node: node.status is not None or is_over(), "a death, or the partitions parked")
        if node.status is None:
            fleet.stop(node)
            return deaths
        deaths += 1
        assert deaths < 20, "the event is never found"


@pytest.mark.parametrize(
    "driver",
    ["psycopg", *(pytest.param(driver, marks=pytest.mark.exhaustive) for driver in ("async-psycopg", "asyncpg"))],
)
def test_killers_in_two_consumers_are_found_and_parked(scene: Scene, fleet: Fleet, driver: str):
    """Both are in the middle of a batch, one consumer handles whole batches, and a third consumer is innocent."""
    consumers = {"bad": Follows(max_attempts=2), "worse": Follows(max_attempts=1, by_batch=True), "good": Follows()}
    scene.append(*"abcdefg" * 4)
    bad = scene.order("bad", "die")
    scene.append(*"abcdefg" * 4)
    worse = scene.order("worse", "die")
    scene.append(*"abcdefg")
    deaths = run_until_parked(scene, fleet, consumers, {"bad", "worse"}, driver=driver, batch_size=100)
    assert deaths == 6, "two before the search, and two attempts at each event"
    assert {row[0]: row[1:] for row in scene.query(CHECKPOINTS)} == {
        "bad": (bad - 1, 2, True),
        "worse": (worse - 1, 2, True),
        "good": (scene.scalar("SELECT max(global_position) FROM events"), 0, False),
    }
    for name, last in (("bad", bad - 1), ("worse", worse - 1), ("good", None)):
        scene.assert_applied_exactly_once(name, up_to=last)


@pytest.mark.exhaustive
def test_each_killer_of_a_partition_is_found(scene: Scene, fleet: Fleet):
    """An operator releases the partition after the first one has been corrected."""
    consumers = {"bad": Follows(max_attempts=3)}
    scene.append(*"abcdefg")
    first = scene.order("bad", "die")
    scene.append(*"abcdefg")
    second = scene.order("bad", "die")
    assert run_until_parked(scene, fleet, consumers, {"bad"}) == 5
    assert scene.query(CHECKPOINTS) == [("bad", first - 1, 3, True)]
    scene.execute("UPDATE events SET event_type = 'Happened' WHERE global_position = :first", first=first)
    scene.execute("UPDATE consumer_checkpoints SET parked_at = NULL")
    deaths = run_until_parked(scene, fleet, consumers, {"bad"})
    assert deaths == 3, "the search has not ended in between"
    assert scene.query(CHECKPOINTS) == [("bad", second - 1, 3, True)]
    scene.assert_applied_exactly_once("bad", up_to=second - 1)
