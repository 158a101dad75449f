"""The time that one batch, or several in a row, may take before the turn of another partition."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.store.log_reader import LogReader
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.execution.factory import execution_for
from pupsourcing_sa.worker.processing import limits
from pupsourcing_sa.worker.processing.drain import DrainProcessor
from tests.fix_processing import assign, context_of
from tests.fix_worker import Fleet, Recorder


def test_consumers_take_turns(sync_fleet: Fleet):
    """Two consumers share one slot; each of their events takes 40 ms, by a clock that nothing else moves."""
    fleet, now = sync_fleet, [0.0]
    turns: list[str] = []

    def drain(name: str, execution: Any) -> DrainProcessor:
        @consumer(name, batch_size=1)
        def handle(session: Session, event: PersistedEvent) -> None:
            turns.append(name)
            now[0] += 0.04

        context = context_of(
            handle,
            execution=execution,
            store=fleet.store,
            tables=fleet.tables,
            config=WorkerConfig(concurrency=1),
            clock=lambda: now[0],
        )
        assign(fleet.engine, fleet.tables, name)
        return DrainProcessor(context, 30)

    async def main() -> None:
        execution = execution_for(sessionmaker(fleet.engine), 1)
        await asyncio.gather(*(drain(name, execution).start() for name in ("one", "two")))

    fleet.append(30)
    asyncio.run(main())
    assert sorted(turns) == ["one"] * 30 + ["two"] * 30
    lengths = [len(list(turn)) for _, turn in groupby(turns)]
    assert set(lengths) == {3}  # of 40 ms, until 100 ms are over; less often would cost a thread for each batch


def test_a_rare_scope_reads_one_window_per_transaction(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "_WINDOW", 10)
    recorder = Recorder()
    fleet.append(34)
    fleet.append(event_type="Rare")
    fleet.append(3)
    fleet.worker(fleet.see("rare", event_types={"Rare"}), telemetry=recorder).drain()
    spans = [(each["events"], each["position"]) for each in recorder.named("worker.batch")]
    assert spans == [(0, 10), (0, 20), (0, 30), (1, 38)]
    assert fleet.seen("rare") == [35]


def test_a_gap_of_any_size_is_passed_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """A log from another system may begin at any position, so far away that a day has not enough windows."""
    monkeypatch.setattr(limits, "_WINDOW", 10)
    recorder = Recorder()
    fleet.append(3)
    fleet.query("SELECT setval(pg_get_serial_sequence('events', 'global_position'), 5000)", commit=True)
    fleet.append(20)
    fleet.append(event_type="Rare")
    fleet.worker(fleet.see("rare", event_types={"Rare"}), telemetry=recorder).drain()
    spans = [(each["events"], each["position"]) for each in recorder.named("worker.batch")]
    assert spans == [(0, 5000), (0, 5010), (0, 5020), (1, 5021)]
    assert fleet.seen("rare") == [5021]


def test_a_processor_that_waits_for_its_turn_begins_nothing_after_a_stop(fleet: Fleet):
    names, recorder, begun = [f"c{number}" for number in range(5)], Recorder(), []

    def is_stopped() -> bool:
        return len(recorder.named("worker.revoked")) == len(names)

    def make(name: str) -> Any:
        @consumer(name)
        def handle(session: Session, event: PersistedEvent) -> None:
            begun.append(name)
            worker.stop()
            fleet.wait(is_stopped)

        @consumer(name)
        async def handle_async(session: AsyncSession, event: PersistedEvent) -> None:
            begun.append(name)
            worker.stop()
            while not is_stopped():
                await asyncio.sleep(0.01)

        return handle_async if fleet.is_async else handle

    fleet.append()
    worker = fleet.worker(*map(make, names), concurrency=1, telemetry=recorder)
    worker.run()
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("max_events", "max_positions", "is_draining"),
    [
        (3, 1000, True),
        (1000, 10, False),
        pytest.param(3, 1000, False, marks=pytest.mark.exhaustive),
        pytest.param(1000, 10, True, marks=pytest.mark.exhaustive),
    ],
)
def test_what_takes_too_long_to_read_is_read_in_smaller_pieces(
    every_fleet: Fleet, monkeypatch: pytest.MonkeyPatch, max_events: int, max_positions: int, *, is_draining: bool
):
    """Large events, or a rare scope, need that when the role has a ``statement_timeout``."""
    monkeypatch.setattr(limits, "_WINDOW", 64)
    fleet, read = every_fleet, LogReader.page

    def read_slowly(
        reader: LogReader, session: Session, scope: Any, after: int, up_to: int, limit: int, **limits: Any
    ) -> Any:
        if limit > max_events or up_to - after > max_positions:
            session.execute(text("SET LOCAL statement_timeout = 1"))
            session.execute(text("SELECT pg_sleep(10)"))
        return read(reader, session, scope, after, up_to, limit, **limits)

    fleet.append(30)
    monkeypatch.setattr(LogReader, "page", read_slowly)
    worker = fleet.worker(fleet.see("all"))
    if is_draining:
        worker.drain()
    else:
        fleet.start(worker)
        fleet.wait(lambda: len(fleet.seen("all")) == 30)
    assert fleet.seen("all") == list(range(1, 31))
