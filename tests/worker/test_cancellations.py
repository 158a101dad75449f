"""Cancelled handlers on the event loop: by themselves, which counts as a failure, or by the worker, which does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from tests.fix_worker import INSERT, Fleet, Recorder


def own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def and_awaits() -> None:
    own_task().cancel()
    await asyncio.sleep(0)


async def and_returns() -> None:
    own_task().cancel()


async def and_fails() -> None:
    own_task().cancel()
    raise ZeroDivisionError


async def after_it_has_returned() -> None:
    asyncio.get_running_loop().call_soon(own_task().cancel)


def cancelling(cancel: Callable[[], Awaitable[None]], name: str = "cancelling") -> Any:
    """Make a consumer that does it at the last of three events."""

    @consumer(name, max_attempts=2)
    async def handle(session: AsyncSession, event: PersistedEvent) -> None:
        await session.execute(INSERT, {"consumer": name, "position": event.global_position})
        if event.global_position == 3:
            await cancel()

    return handle


def by_a_function(name: str = "cancelling") -> Any:
    @consumer(name, max_attempts=2)
    def handle(session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": name, "position": event.global_position})
        if event.global_position == 3:
            own_task().cancel()

    return handle


def test_a_handler_that_cancels_its_own_task_has_failed(async_fleet: Fleet):
    fleet, recorder = async_fleet, Recorder()
    handlers = {cancel.__name__: cancelling(cancel, cancel.__name__) for cancel in (and_awaits, and_returns, and_fails)}
    handlers["function"] = by_a_function("function")
    fleet.append(3)
    fleet.start(fleet.worker(*handlers.values(), fleet.see("other"), telemetry=recorder))
    for name in handlers:
        fleet.wait(lambda name=name: fleet.attempts(name) == 2)
    fleet.append()
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4])
    for name in handlers:
        found = fleet.checkpoint(name)
        assert (found.last_position, found.failed_position, found.parked_at is None) == (2, 3, False), name
        assert "CancelledError" in found.error, name
    failed = [(data["consumer"], data["attempts"]) for data in recorder.named("worker.event_failed")]
    assert sorted(failed) == sorted((name, 1) for name in handlers)


def test_nothing_is_left_of_it_for_the_next_attempt(async_fleet: Fleet):
    """Task groups and timeouts of a task that still counts as cancelled may end in the wrong error."""
    requests: dict[str, list[int]] = {}

    def once(cancel: Callable[[], Awaitable[None]]) -> Any:
        mine = requests[cancel.__name__] = []

        @consumer(cancel.__name__)
        async def handle(session: AsyncSession, event: PersistedEvent) -> None:
            mine.append(own_task().cancelling())
            if len(mine) == 1:
                await cancel()

        return handle

    async_fleet.append()
    async_fleet.start(async_fleet.worker(*map(once, (and_awaits, and_returns, and_fails))))
    async_fleet.wait(lambda: all(len(mine) == 2 for mine in requests.values()))
    assert list(requests.values()) == [[0, 0]] * 3


@pytest.mark.parametrize(
    "handler",
    [
        cancelling(and_awaits),
        pytest.param(cancelling(and_returns), marks=pytest.mark.exhaustive),
        pytest.param(cancelling(and_fails), marks=pytest.mark.exhaustive),
        by_a_function(),
    ],
    ids=["and awaits", "and returns", "and fails", "in a function"],
)
def test_a_drain_raises_it(async_fleet: Fleet, handler: Any):
    async_fleet.append(3)
    with pytest.raises(RuntimeError, match="the handler of consumer 'cancelling' was cancelled") as caught:
        async_fleet.worker(handler).drain()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert async_fleet.seen("cancelling") == [1, 2]
    assert async_fleet.attempts("cancelling") == 0


def test_a_processor_that_is_cancelled_later_is_logged_and_replaced(
    async_fleet: Fleet, caplog: pytest.LogCaptureFixture
):
    """The event that caused it is unknown."""

    def told() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.message == "processor was cancelled, but not by the worker"]

    fleet = async_fleet
    fleet.append(3)
    fleet.start(fleet.worker(cancelling(after_it_has_returned)))
    fleet.wait(lambda: len(told()) >= 2)
    assert {(each.levelno, each.processor) for each in told()} == {(logging.ERROR, "pupsourcing-cancelling-0")}
    assert fleet.seen("cancelling") == []
    assert fleet.attempts("cancelling") == 0


def test_a_drain_does_not_hide_it(async_fleet: Fleet):
    async_fleet.append(3)
    with pytest.raises(RuntimeError, match="processor 'pupsourcing-cancelling-0' was cancelled before it finished"):
        async_fleet.worker(cancelling(after_it_has_returned)).drain()
    assert async_fleet.seen("cancelling") == []


@pytest.mark.parametrize("drain", [False, True], ids=["run", "drain"])
def test_one_that_the_worker_cancels_has_not(async_fleet: Fleet, caplog: pytest.LogCaptureFixture, drain: bool):
    fleet, recorder = async_fleet, Recorder()
    in_batch: set[str] = set()

    def lingering(name: str, *, is_caught: bool) -> Any:
        @consumer(name, max_attempts=1)
        async def linger(session: AsyncSession, event: PersistedEvent) -> None:
            await session.execute(INSERT, {"consumer": name, "position": event.global_position})
            in_batch.add(name)
            with suppress(asyncio.CancelledError) if is_caught else nullcontext():
                await asyncio.Event().wait()

        return linger

    fleet.append(2)
    consumers = lingering("lingering", is_caught=False), lingering("catching", is_caught=True)
    worker = fleet.worker(*consumers, telemetry=recorder, shutdown_timeout=0.01)
    thread = fleet.run(worker.drain) if drain else fleet.start(worker)
    fleet.wait(lambda: in_batch == {"lingering", "catching"})
    worker.stop()
    thread.join()
    for name in in_batch:
        assert fleet.seen(name) == []
        found = fleet.checkpoint(name)
        assert (found.attempts, found.failed_position, found.parked_at) == (0, None, None)
    assert recorder.named("worker.event_failed") == recorder.named("worker.batch_retried") == []
    errors = {each.message for each in caplog.records if each.levelno >= logging.ERROR}
    assert errors == {"batches did not finish in time; rolling them back"}


def by_timeout(session: AsyncSession) -> Awaitable[Any]:
    return asyncio.wait_for(session.execute(text("SELECT pg_sleep(60)")), 0.05)


async def by_a_timeout_around_it(session: AsyncSession) -> None:
    async with asyncio.timeout(0.05):
        await session.execute(text("SELECT pg_sleep(60)"))


def test_a_time_limit_of_the_handler_is_its_failure(async_drivers: Fleet):
    """The failure counts even though SQLAlchemy invalidates the connection, as if it were lost."""

    def slow(wait: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        @consumer(wait.__name__, max_attempts=2)
        async def handle(session: AsyncSession, event: PersistedEvent) -> None:
            await wait(session)

        return handle

    fleet, waits = async_drivers, (by_timeout, by_a_timeout_around_it)
    fleet.append()
    fleet.start(fleet.worker(*map(slow, waits)))
    for wait in waits:
        fleet.wait(lambda name=wait.__name__: (row := fleet.checkpoint(name)) is not None and row.parked_at is not None)
        assert fleet.attempts(wait.__name__) == 2
        assert "TimeoutError" in fleet.checkpoint(wait.__name__).error
