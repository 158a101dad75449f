"""The processor pool, with processors that only note what happens to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from pupsourcing_sa.telemetry import Hooks
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.partition import Partition, PartitionState
from pupsourcing_sa.worker.processing.pool import ProcessorPool

ONE, TWO = Partition("all", 0), Partition("all", 1)


class Idle(Service):
    """A processor that waits for its stop."""

    def __init__(self, partition: Partition) -> None:
        super().__init__(f"{partition.consumer}-{partition.number}")
        self.state = PartitionState(-1, is_waiting=False)

    async def _run(self) -> None:
        await self.stopping.wait()


class Pool(ProcessorPool):
    def __init__(self, *, is_aborted: Callable[[], bool] = lambda: False) -> None:
        self.created: list[Any] = []
        super().__init__("node", self._make, Hooks(), is_aborted)

    def _make(self, partition: Partition) -> Any:
        self.created.append(Idle(partition))
        return self.created[-1]

    def run(self, **positions: int) -> None:
        wanted = {ONE: positions.get("one"), TWO: positions.get("two")}
        found = {
            partition: PartitionState(position, is_waiting=False)
            for partition, position in wanted.items()
            if position is not None
        }
        self.adjust(found, self.states())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[Any, ...]]]:
    caplog.set_level(logging.INFO, "pupsourcing_sa.worker")

    def take() -> list[tuple[Any, ...]]:
        found = [
            (record.levelname, record.message, getattr(record, "partition", None), getattr(record, "position", None))
            for record in caplog.records
        ]
        caplog.clear()
        return found

    return take


def test_a_node_logs_which_partitions_it_has(lines: Callable[[], list[tuple[Any, ...]]]):
    async def main() -> None:
        pool = Pool()
        pool.run(one=5)
        assert lines() == [("INFO", "partition assigned", 0, 5)]
        pool.run(one=9)
        assert lines() == []
        pool.run(one=9, two=7)
        assert lines() == [("INFO", "took over partition", 1, 7)]
        pool.run(two=7)
        assert lines() == [("INFO", "partition revoked", 0, None)]
        pool.stop_all()
        await asyncio.gather(*pool.tasks)
        assert lines() == []
        assert len(pool.created) == 2

    asyncio.run(main())


def test_a_processor_that_has_ended_is_replaced(lines: Callable[[], list[tuple[Any, ...]]]):
    async def main() -> None:
        pool = Pool()
        pool.run(one=5)
        pool.created[0].stop()
        await asyncio.gather(*pool.tasks)
        lines()
        pool.run(one=6)
        assert lines() == [("INFO", "partition assigned", 0, 6)]
        assert len(pool.created) == 2
        pool.stop_all()
        await asyncio.gather(*pool.tasks)

    asyncio.run(main())


def test_a_checkpoint_that_an_operator_has_moved_back(lines: Callable[[], list[tuple[Any, ...]]]):
    async def main() -> None:
        pool = Pool()
        pool.run(one=5)
        lines()
        pool.created[0].state = PartitionState(8, is_waiting=False)
        pool.run(one=7)
        assert lines() == [("INFO", "checkpoint was moved back; restarting from there", 0, 7)]
        assert pool.created[0].stopping.is_set()
        pool.stop_all()
        await asyncio.gather(*pool.tasks)

    asyncio.run(main())


@pytest.mark.parametrize("is_aborted", [False, True])
def test_a_processor_that_the_worker_did_not_cancel(is_aborted: bool, lines: Callable[[], list[tuple[Any, ...]]]):
    async def main() -> None:
        pool = Pool(is_aborted=lambda: is_aborted)
        pool.run(one=5)
        (task,) = pool.tasks
        pool.stop_all()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        errors = [message for level, message, *_ in lines() if level == "ERROR"]
        assert errors == ([] if is_aborted else ["processor was cancelled, but not by the worker"])

    asyncio.run(main())
