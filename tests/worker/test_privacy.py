"""Values of a failing statement: they reach neither the table, nor the log, nor telemetry, unless a setting says so."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table, Text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.cli._logging import TextFormatter
from tests.fix_worker import Fleet

EMAIL = "ann@" + "example.org"
VIEW = Table("view", MetaData(), Column("email", Text, primary_key=True))


class Spans:
    """Telemetry that keeps the exceptions of its spans as text, as a tracer does, and then fails."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def span(self, _: str, __: dict[str, Any]) -> Spans:
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.errors.append(f"{error!r} from {error.__cause__!r}")
            raise ConnectionError("cannot export")  # the log gets this, with its context

    def event(self, _: str, data: dict[str, Any]) -> None: ...


def insert_twice(session: Session) -> None:
    for _ in range(2):
        session.execute(VIEW.insert().values(email=EMAIL))


def wrap(session: Session) -> None:
    try:
        insert_twice(session)
    except IntegrityError as error:
        raise RuntimeError(f"cannot write: {error}") from error


@consumer("view", max_attempts=2)
def view(session: Session, event: PersistedEvent) -> None:
    wrap(session)


@consumer("view", max_attempts=2)
async def async_view(session: AsyncSession, event: PersistedEvent) -> None:
    await session.run_sync(wrap)


@pytest.mark.parametrize("hide_parameters", [True, False])
def test_a_failing_handler(drivers: Fleet, hide_parameters: bool, caplog: pytest.LogCaptureFixture):
    fleet, telemetry = drivers, Spans()
    VIEW.create(fleet.engine)
    fleet.append(1)
    handler = async_view if fleet.is_async else view
    fleet.start(fleet.worker(handler, telemetry=telemetry, hide_parameters=hide_parameters))
    fleet.wait(lambda: any(record.message == "handler failed; partition is parked" for record in caplog.records))
    log = "\n".join(TextFormatter().format(record) for record in caplog.records if record.levelno > logging.INFO)
    for found in (fleet.checkpoint("view").error, log, "\n".join(telemetry.errors)):
        assert "RuntimeError" in found
        assert "view_pkey" in found
        assert (EMAIL in found) is not hide_parameters
