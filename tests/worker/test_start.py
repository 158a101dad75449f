from uuid import uuid4

import pytest

from tests.fix_worker import Fleet
from tests.worker.test_holders import declare, holding, is_alive


@pytest.mark.parametrize("moves", [False, True])
def test_a_worker_that_starts_meets_a_dead_node(fleet: Fleet, moves: bool):
    checkpoint = declare(fleet)
    fleet.append(3)
    with holding(fleet.engine, checkpoint, uuid4(), moves=moves) as session:
        fleet.start(fleet.worker(fleet.see("all")))
        fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
        assert not is_alive(session)
