"""The byte budget of a batch, on a log that is a list of sizes."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupsourcing_sa import PersistedEvent
from pupsourcing_sa.store.pages import ByteLimit, Page
from pupsourcing_sa.worker.processing.byte_budget import BoundedPages, ByteBudget
from tests.fix_store import make_event


class FakeLog:
    """A log that returns pages as the database does."""

    def __init__(self, sizes: list[int]) -> None:
        self.rows: list[Any] = [
            PersistedEvent._from_event(make_event(payload=b"x" * size), number, number)._row
            for number, size in enumerate(sizes, 1)
        ]
        self.after = 0
        self.measured: list[int] = []

    def page(self, limit: int, *, max_bytes: int, byte_limit: ByteLimit = ByteLimit.TOTAL) -> Page:
        rows = self.rows[self.after : self.after + limit]
        sizes = [len(row[7]) for row in rows]
        if byte_limit is ByteLimit.EACH:
            fits = [size <= max_bytes for size in sizes]
        else:
            self.measured.append(len(rows))
            totals = accumulate(sizes)
            fits = [total <= max(max_bytes, size) for total, size in zip(totals, sizes, strict=True)]
        rows = [row if fit else (*row[:7], None, *row[8:]) for row, fit in zip(rows, fits, strict=True)]
        return Page.of(rows, limit, is_limited=True)


@given(
    sizes=st.lists(st.sampled_from([0, 1, 9, 10, 11, 50, 99, 100, 101, 500]), max_size=40),
    limits=st.lists(st.integers(1, 10), min_size=1, max_size=40),
)
def test_every_event_is_read_once_and_each_page_is_within_the_budget(sizes: list[int], limits: list[int]):
    log, pages, read = FakeLog(sizes), BoundedPages(max_bytes=100, batch_size=10), []
    has_more = True
    while has_more:
        page = pages.read(log.page, limits[len(read) % len(limits)])
        found = [len(event.payload) for event in page.events if event.payload]
        assert len(found) == 1 or sum(found) <= 100
        assert page.events or not page.has_more
        has_more = page.has_more
        read += [event.global_position for event in page.events]
        log.after = len(read)
    assert read == list(range(1, len(sizes) + 1))


def test_small_events_are_not_measured():
    log, pages = FakeLog([10] * 95), BoundedPages(max_bytes=100, batch_size=10)
    for _ in range(10):
        log.after += len(pages.read(log.page, 10).events)
    assert (log.after, log.measured) == (95, [])


def test_few_more_events_are_measured_than_fit():
    log, pages = FakeLog([50] * 20), BoundedPages(max_bytes=100, batch_size=10)
    for _ in range(10):
        log.after += len(pages.read(log.page, 10).events)
    assert (log.after, log.measured) == (20, [10, *[4] * 8, 2])


@pytest.mark.parametrize(
    ("max_measured", "sizes", "is_cut", "expected"),
    [
        (10, [60, 30], True, 4),
        (10, [10] * 8, True, 10),
        (4, [10] * 4, False, None),  # all of them are small
        (4, [10, 11], False, 8),
        (8, [11], False, 10),
        (4, [], False, 8),
    ],
)
def test_the_budget_after_measuring(max_measured: int, sizes: list[int], is_cut: bool, expected: int | None):
    budget = ByteBudget(max_bytes=100, batch_size=10, max_measured=max_measured)
    assert budget.after_measuring(sizes, is_cut=is_cut).max_measured == expected


def test_the_budget_after_a_page_by_share():
    budget = ByteBudget(max_bytes=100, batch_size=10)
    assert budget.after_share(is_cut=False) is budget
    assert budget.after_share(is_cut=True).max_measured == 10
