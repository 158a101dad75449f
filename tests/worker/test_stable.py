from __future__ import annotations

import asyncio

from pupsourcing_sa.worker.lifecycle.tasks import wait_for_event
from pupsourcing_sa.worker.stable_position import StablePosition
from tests.waiting import patiently


async def started(*waits: object) -> list[asyncio.Task[int]]:
    tasks = [asyncio.ensure_future(each) for each in waits]
    await asyncio.sleep(0)  # they wait now
    return tasks


def test_it_only_grows():
    stable = StablePosition()
    assert stable.publish(5)
    assert not stable.publish(5)
    assert not stable.publish(3)
    assert stable.value == 5


def test_a_waiter_gets_the_position_beyond_its_own():
    async def main() -> None:
        stable = StablePosition()
        one, five, nine = await started(stable.beyond(0), stable.beyond(4), stable.beyond(9))
        stable.publish(5)
        assert await one == 5
        assert await five == 5
        assert not nine.done()
        stable.publish(10)
        assert await nine == 10

    asyncio.run(main())


def test_a_position_that_has_moved_before_is_not_waited_for():
    async def main() -> None:
        stable = StablePosition()
        stable.publish(5)
        assert await asyncio.wait_for(stable.beyond(4), patiently(20)) == 5

    asyncio.run(main())


def test_one_of_them_can_be_told_to_go():
    async def main() -> None:
        stable, stopping = StablePosition(), asyncio.Event()
        one, other = await started(stable.beyond(0, stopping), stable.beyond(0))
        stopping.set()
        stable.wake()
        assert await asyncio.wait_for(one, patiently(20)) == 0
        assert not other.done()
        other.cancel()

    asyncio.run(main())


def test_an_event_is_waited_for_no_longer_than_asked_for():
    async def main() -> None:
        event = asyncio.Event()
        assert not await wait_for_event(event, 0.001)
        event.set()
        assert await wait_for_event(event, 60)

    asyncio.run(main())
