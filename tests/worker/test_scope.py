"""Which events a consumer gets."""

from __future__ import annotations

import pytest

from tests.fix_worker import Fleet


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"aggregate_types": {"User"}}, [1, 3]),
        ({"aggregate_types": {"User", "Order"}}, [1, 2, 3, 4]),
        ({"event_types": ["B"]}, [3, 4]),
        ({"aggregate_types": {"Order"}, "event_types": {"B"}}, [4]),
        ({"aggregate_types": {"Nothing"}}, []),
        ({"aggregate_types": set()}, [1, 2, 3, 4]),
    ],
)
def test_only_what_is_wanted(fleet: Fleet, scope, expected):
    for event_type in ("A", "B"):
        for aggregate_type in ("User", "Order"):
            fleet.append(aggregate_type=aggregate_type, event_type=event_type)
    fleet.worker(fleet.see("scoped", **scope)).drain()
    assert fleet.seen("scoped") == expected
    assert fleet.checkpoint("scoped").last_position == 4


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
