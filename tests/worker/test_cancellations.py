"""Handlers on the event loop that are cancelled: by themselves, which is a failure, or by the worker, which is none."""

from __future__ import annotations

import asyncio
import logging

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from pupsourcing_sa import PersistedEvent, consumer
from tests.fix_worker import INSERT, Fleet, Recorder


async def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@consumer("cancelling", max_attempts=2)
async def cancel(session: AsyncSession, event: PersistedEvent) -> None:
    await session.execute(INSERT, {"consumer": "cancelling", "position": event.global_position})
    if event.global_position == 3:
        await cancel_own_task()


def test_a_handler_that_cancels_its_own_task_has_failed(async_fleet: Fleet):
    fleet, recorder = async_fleet, Recorder()
    fleet.append(5)
    fleet.start(fleet.worker(cancel, fleet.see("other"), telemetry=recorder))
    fleet.wait(lambda: fleet.attempts("cancelling") == 2)
    fleet.append()
    fleet.wait(lambda: fleet.seen("other") == [1, 2, 3, 4, 5, 6])
    found = fleet.checkpoint("cancelling")
    assert (found.last_position, found.failed_position, found.parked_at is None) == (2, 3, False)
    assert "CancelledError" in found.error
    assert [each["attempts"] for each in recorder.named("worker.event_failed")] == [1]


def test_nothing_is_left_of_it_for_the_next_attempt(async_fleet: Fleet):
    """Task groups and timeouts of a task that still counts as cancelled may end in the wrong error."""
    requests: list[int] = []

    @consumer("cancelling")
    async def handle(session: AsyncSession, event: PersistedEvent) -> None:
        task = asyncio.current_task()
        assert task is not None
        requests.append(task.cancelling())
        if len(requests) == 1:
            await cancel_own_task()

    async_fleet.append()
    async_fleet.start(async_fleet.worker(handle))
    async_fleet.wait(lambda: len(requests) == 2)
    assert requests == [0, 0]


def test_a_drain_raises_it(async_fleet: Fleet):
    async_fleet.append(5)
    with pytest.raises(RuntimeError, match="the handler of consumer 'cancelling' was cancelled") as caught:
        async_fleet.worker(cancel).drain()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert async_fleet.seen("cancelling") == [1, 2]
    assert async_fleet.attempts("cancelling") == 0


def test_one_that_the_worker_cancels_has_not(async_fleet: Fleet, caplog: pytest.LogCaptureFixture):
    fleet, recorder = async_fleet, Recorder()
    is_in_batch: list[bool] = []

    @consumer("lingering", max_attempts=1)
    async def linger(session: AsyncSession, event: PersistedEvent) -> None:
        await session.execute(INSERT, {"consumer": "lingering", "position": event.global_position})
        is_in_batch.append(True)
        await asyncio.Event().wait()

    fleet.append(2)
    worker = fleet.worker(linger, telemetry=recorder, shutdown_timeout=0.01)
    thread = fleet.start(worker)
    fleet.wait(lambda: bool(is_in_batch))
    worker.stop()
    thread.join()
    assert fleet.seen("lingering") == []
    found = fleet.checkpoint("lingering")
    assert (found.attempts, found.failed_position, found.parked_at) == (0, None, None)
    assert recorder.named("worker.event_failed") == recorder.named("worker.batch_retried") == []
    errors = {each.message for each in caplog.records if each.levelno >= logging.ERROR}
    assert errors == {"batches did not finish in time; rolling them back"}
