"""Batches of large events: the bytes of a batch have a limit, and no event is skipped."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from pupsourcing_sa import PersistedEvent
from pupsourcing_sa.store import log_reader
from tests.fix_worker import Fleet

MAX_BYTES = 20_000


def append(fleet: Fleet, seed: int) -> dict[str, list[int]]:
    """Append phases of small, large and mixed events of two types. Return the positions of each type."""
    random = Random(seed)
    positions: dict[str, list[int]] = {"A": [], "B": []}
    for phase in ([10], [10, 10, 10, 3_000], [9_000, 15_000, 40_000], [10]):
        for _ in range(random.randint(5, 25)):
            event_type = random.choice("AAB")
            fleet.append(event_type=event_type, payload=b"x" * random.choice(phase))
            positions[event_type].append(sum(map(len, positions.values())) + 1)
    return positions


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(2, 20))])
def test_each_batch_is_within_its_bytes_and_no_event_is_skipped(both_fleets: Fleet, seed: int):
    positions = append(both_fleets, seed)
    batches: list[list[int]] = []

    def look(events: list[PersistedEvent]) -> None:
        batches.append([len(event.payload) for event in events])

    both_fleets.worker(
        both_fleets.see("all"),
        both_fleets.see("some", event_types={"A"}, batch_bytes=10_000),
        both_fleets.see_batches("batches", check=look),
        batch_size=10,
        batch_bytes=MAX_BYTES,
    ).drain()
    everything = sorted(positions["A"] + positions["B"])
    assert both_fleets.seen("all") == both_fleets.seen("batches") == everything
    assert both_fleets.seen("some") == positions["A"]
    assert both_fleets.checkpoint("some").last_position == everything[-1]
    assert all(len(sizes) == 1 or sum(sizes) <= MAX_BYTES for sizes in batches)


def test_the_server_does_not_send_more_than_the_budget(sync_fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    received: list[int] = []
    driver_rows = log_reader.driver_rows

    def measured(*args: Any) -> list[Any]:
        rows = driver_rows(*args)
        received.append(sum(len(row[7] or b"") for row in rows))
        return rows

    sync_fleet.append(30, payload=b"small")
    sync_fleet.append(20, payload=b"x" * 9_000)
    monkeypatch.setattr(log_reader, "driver_rows", measured)
    sizes: list[int] = []
    batches = sync_fleet.see_batches("all", check=lambda events: sizes.append(len(events)))
    sync_fleet.worker(batches, batch_size=50, batch_bytes=MAX_BYTES).drain()
    assert sizes == [30, *[2] * 10]
    assert max(received) <= MAX_BYTES
    assert sum(received) == 30 * 5 + 20 * 9_000


def test_a_failing_event_among_large_ones_is_retried_and_none_is_skipped(fleet: Fleet):
    failures: list[int] = []

    def fail(event: PersistedEvent) -> None:
        if event.global_position in (4, 9) and failures.count(event.global_position) < 3:
            failures.append(event.global_position)
            raise ValueError("not yet")

    for size in (10, 9_000, 9_000, 40_000, 10, 9_000, 40_000, 10, 9_000, 9_000, 10):
        fleet.append(payload=b"x" * size)
    fleet.start(fleet.worker(fleet.see("all", check=fail), batch_bytes=MAX_BYTES))
    fleet.wait(lambda: len(fleet.seen("all")) == 11)
    assert fleet.seen("all") == list(range(1, 12))
    assert failures == [4, 4, 4, 9, 9, 9]
