"""Arguments that `read_status` refuses, and missing tables."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import EventStore, WorkerTables
from pupsourcing_sa.errors import TablesMissingError
from pupsourcing_sa.status import read_status, read_status_async
from tests.fix_store import make_tables


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heartbeat_timeout": 0}, "heartbeat_timeout must be greater than 0 and at most 1,000,000 seconds, not 0"),
            (
                {"heartbeat_timeout": float("inf")},
                "heartbeat_timeout must be greater than 0 and at most 1,000,000 seconds, not inf",
            ),
            ({"heartbeat_timeout": "8"}, "heartbeat_timeout must be a number of seconds, not str"),
            ({"lag_limit": 0}, "lag_limit must be between 1 and 9223372036854775806, not 0"),
            ({"lag_limit": 1.5}, "lag_limit must be an int, not float"),
            ({"lag_limit": True}, "lag_limit must be an int, not bool"),
        ],
    )
    def test_options(self, options, message: str):
        with pytest.raises((TypeError, ValueError)) as caught:
            read_status(Session(), EventStore(), WorkerTables(), **options)
        assert str(caught.value) == message

    def test_arguments(self):
        store, session = EventStore(), Session()
        with pytest.raises(TypeError, match="store must be an EventStore, not EventTables"):
            read_status(session, store.tables)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="tables must be WorkerTables, not EventTables"):
            read_status(session, store, store.tables)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="an AsyncConnection, not Session; use read_status for a Session"):
            read_status_async(session, store).send(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not AsyncSession; use read_status_async"):
            read_status(AsyncSession(), store)  # type: ignore[arg-type]

    def test_missing_tables(self, engine: Engine):
        with engine.connect() as connection, pytest.raises(TablesMissingError, match="events"):
            read_status(connection, EventStore())
        tables = make_tables(engine)
        with engine.connect() as connection, pytest.raises(TablesMissingError, match="worker_nodes or .*run your migr"):
            read_status(connection, EventStore(tables))
