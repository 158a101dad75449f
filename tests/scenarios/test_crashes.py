"""A server that crashes with ``synchronous_commit = off`` and loses commits that nodes have already seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import create_engine

from pupsourcing_sa.testing import embedded_postgres
from tests.fix_postgres import open_database
from tests.fix_worker import KINDS, Fleet
from tests.scenarios.server import Server

CRASHES = {"of a backend": Server.kill_backend, "of the postmaster": Server.kill_postmaster}


@pytest.fixture(scope="module")
def forgetful_server() -> Iterator[Server]:
    # The background writer would flush the WAL of the pages that it writes.
    with embedded_postgres(settings={"synchronous_commit": "off", "bgwriter_lru_maxpages": "0"}) as url:
        server = Server(url)
        yield server
        server.close()


@pytest.fixture(params=["sync", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("async", "asyncpg"))])
def fleet(request: pytest.FixtureRequest, forgetful_server: Server) -> Iterator[Fleet]:
    driver, is_async = KINDS[request.param]
    engine = create_engine(forgetful_server.url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with open_database(engine, pool_pre_ping=True) as database:
        fleet = Fleet(database, is_async=is_async, driver=driver)
        yield fleet
        fleet.stop()
    engine.dispose()


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES)
def test_events_in_the_place_of_those_that_are_lost_are_not_skipped(
    fleet: Fleet, forgetful_server: Server, crash: Callable[[Server], None]
):
    """Their positions are issued again, below the stable position that the node has read before the crash."""
    fleet.append(3)
    fleet.start(fleet.worker(fleet.see("all"), fleet.see("rare", event_types={"Rare"})))
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
    forgetful_server.freeze_wal_writer()
    fleet.append(200)
    fleet.append(event_type="Rare")
    fleet.wait(lambda: len(fleet.seen("all")) == 204 and fleet.seen("rare") == [204])
    crash(forgetful_server)
    assert len(fleet.query("SELECT FROM events")) == 3, "the crash has lost nothing"
    for total in (4, 5, 6):
        fleet.append(event_type="Rare")
        fleet.wait(lambda total=total: len(fleet.seen("all")) == total and len(fleet.seen("rare")) == total - 3)
    positions = [position for (position,) in fleet.query("SELECT global_position FROM events ORDER BY 1")]
    assert positions[-1] < 204, "the lost positions were not issued again"
    assert fleet.seen("all") == positions
    assert fleet.seen("rare") == positions[3:]
