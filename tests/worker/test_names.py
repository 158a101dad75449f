"""Tables may have names that statements use for something else."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, MetaData
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, EventTables, NoStream, WorkerTables, consumer
from pupsourcing_sa.worker import Worker, read_status
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint
from pupsourcing_sa.worker.processing.lock_watch import HolderQuery
from tests.fix_store import make_event

STORE, WORKER = ("events", "aggregate_heads"), ("worker_nodes", "consumer_assignments", "consumer_checkpoints")
NAMES = ("held", "issued", "lag", "locks", "mark", "own", "page", "partitions", "wanted")


@pytest.mark.parametrize("turn", range(len(NAMES)))
def test_tables_called(engine: Engine, turn: int):
    """In all turns together, each table has each of the names."""
    names = {argument: NAMES[(turn + number) % len(NAMES)] for number, argument in enumerate(STORE + WORKER)}
    metadata = MetaData()
    events = EventTables(metadata, **{argument: names[argument] for argument in STORE})
    tables = WorkerTables(metadata, **{argument: names[argument] for argument in WORKER})
    metadata.create_all(engine)
    store, seen = EventStore(events), []

    @consumer("all")
    def see(session: Session, event: object) -> None:
        seen.append(event)

    with Session(engine) as session:
        store.append(session, NoStream(), [make_event("u1"), make_event("u1")])
        store.append_many(session, [(NoStream(), [make_event("u2")]), (AnyVersion(), [make_event("u1")])])
        session.commit()
        assert len(store.read_events(session, aggregate_types={"User"})) == 4
        assert len(store.read_aggregate_stream(session, "User", "u1")) == 3
    Worker(sessionmaker(engine), store, [see], tables=tables).drain()
    assert len(seen) == 4
    with Session(engine) as session:
        ((partition,),) = (each.partitions for each in read_status(session, store, tables).consumers)
        assert (partition.position, partition.lag_events, partition.locked_by) == (4, 0, None)
        assert HolderQuery(Checkpoint(tables, "all", 0)).find(session, terminate_dead=True) is None
