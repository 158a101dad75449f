"""The privileges that docs/howto/migrate.md lists are sufficient for each role."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import Exact, NoStream, PersistedEvent, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig, diagnose, read_status
from tests.fix_store import make_event
from tests.fix_worker import QUICK, Fleet

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "migrate.md"


@contextmanager
def granted_roles(database: Engine) -> Iterator[Callable[[str], Engine]]:
    """Create the roles of the page with their privileges; yield a function that returns the engine of a role."""
    (grants,) = re.findall(r"^## Grant privileges\n.*?^```sql\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    roles = {role: f"{role}_{uuid4().hex}" for role in re.findall(r"TO (\w+);", grants)}
    with database.begin() as connection:
        for role in roles.values():
            connection.execute(text(f"CREATE ROLE {role}"))
        connection.exec_driver_sql(re.sub(r"TO (\w+);", lambda found: f"TO {roles[found[1]]};", grants))
    engines = {
        role: create_engine(database.url.update_query_dict({"options": f"-c role={name}"}))
        for role, name in roles.items()
    }
    try:
        yield engines.__getitem__
    finally:
        for engine in engines.values():
            engine.dispose()
        with database.begin() as connection:
            for role in roles.values():
                connection.execute(text(f"DROP OWNED BY {role}"))
                connection.execute(text(f"DROP ROLE {role}"))


def test_the_privileges_are_sufficient(database: Engine):
    fleet, seen = Fleet(database, is_async=False), list[int]()
    store, tables = fleet.store, fleet.tables

    @consumer("all", partitions=2)
    def see(session: Session, event: PersistedEvent) -> None:
        seen.append(event.global_position)

    with granted_roles(database) as engine_of:
        with Session(engine_of("writer")) as session:
            store.append(session, NoStream(), [make_event("u1")])
            store.append(session, Exact(1), [make_event("u1")])
            assert len(store.read_aggregate_stream(session, "User", "u1")) == 2
            session.commit()
            assert len(store.read_events(session)) == 2
            assert store.blocking_appends(session) == []

        factory = sessionmaker(engine_of("worker"))
        nodes = [Worker(factory, store, [see], tables=tables, config=WorkerConfig(**QUICK)) for _ in range(2)]
        nodes[0].drain()
        assert seen == [1, 2]

        def owners() -> set[object]:
            with Session(engine_of("monitoring")) as session:
                status = read_status(session, store, tables)
            return {part.worker_id for consumer_status in status.consumers for part in consumer_status.partitions}

        for node in nodes:
            fleet.start(node)
        try:
            fleet.wait(lambda: owners() == {node.id for node in nodes})
            fleet.append()
            fleet.wait(lambda: seen == [1, 2, 3])
            with Session(engine_of("monitoring")) as session:
                assert diagnose(read_status(session, store, tables)) == []
        finally:
            fleet.stop()
        assert owners() == {None}
