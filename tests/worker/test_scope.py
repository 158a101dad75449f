"""The events that a consumer gets."""

from __future__ import annotations

from typing import Any

from tests.fix_worker import Fleet

SCOPES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "everything": ({}, [1, 2, 3, 4]),
    "one aggregate type": ({"aggregate_types": {"User"}}, [1, 3]),
    "two aggregate types": ({"aggregate_types": {"User", "Order"}}, [1, 2, 3, 4]),
    "one event type": ({"event_types": ["B"]}, [3, 4]),
    "one of each": ({"aggregate_types": {"Order"}, "event_types": {"B"}}, [4]),
    "nothing": ({"aggregate_types": {"Nothing"}}, []),
    "an empty set": ({"aggregate_types": set()}, [1, 2, 3, 4]),
}


def test_only_what_is_wanted(fleet: Fleet):
    for event_type in ("A", "B"):
        for aggregate_type in ("User", "Order"):
            fleet.append(aggregate_type=aggregate_type, event_type=event_type)
    fleet.worker(*(fleet.see(name, **scope) for name, (scope, _) in SCOPES.items())).drain()
    for name, (_, expected) in SCOPES.items():
        assert fleet.seen(name) == expected, name
        assert fleet.checkpoint(name).last_position == 4, name


def test_partitions_share_the_events(fleet: Fleet):
    fleet.append(60)
    fleet.worker(fleet.see("shared", partitions=3)).drain()
    assert sorted(fleet.seen("shared")) == list(range(1, 61))
    rows = fleet.query("SELECT partition, last_position FROM consumer_checkpoints ORDER BY partition")
    assert [tuple(row) for row in rows] == [(0, 60), (1, 60), (2, 60)]


def test_a_batch_handler(fleet: Fleet):
    sizes: list[int] = []
    fleet.append(25)
    fleet.worker(fleet.see_batches("batches", check=lambda events: sizes.append(len(events))), batch_size=10).drain()
    assert sizes == [10, 10, 5]
    assert fleet.seen("batches") == list(range(1, 26))
