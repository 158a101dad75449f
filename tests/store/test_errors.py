"""The meaning of database errors, from every driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from pupsourcing_sa import EventTables, NoStream
from pupsourcing_sa.errors import TablesMissingError, TransactionRequiredError
from pupsourcing_sa.postgres.errors import is_lost_race, is_outage, raise_translated
from tests.fix_store import Log, make_event

#: A trigger of the application that needs a missing table.
_BODIES = {
    "statement": "INSERT INTO audit_log SELECT 1;",
    "schema": "INSERT INTO audit.log SELECT 1;",
    "dynamic": "EXECUTE 'INSERT INTO audit_log SELECT 1';",
    "value": "PERFORM CAST(TG_ARGV[0] AS regclass);",
}


@pytest.mark.parametrize("body", _BODIES)
def test_what_a_trigger_of_the_applications_lacks_is_not_our_tables(log: Log, body: str) -> None:
    events = log.engine.dialect.identifier_preparer.format_table(log.tables.events)
    with log.engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {_BODIES[body]} RETURN NULL; END$$"
        )
        connection.exec_driver_sql(
            f"CREATE TRIGGER audit AFTER INSERT ON {events} FOR EACH STATEMENT EXECUTE FUNCTION audit('audit_log')"
        )
    with pytest.raises(ProgrammingError, match="audit"):
        log.begin().append(NoStream(), [make_event()])


def test_our_own_tables_are(log: Log) -> None:
    log.tables.metadata.drop_all(log.engine)
    with pytest.raises(TablesMissingError):
        log.begin().append(NoStream(), [make_event()])


def error_of(driver: str, sqlstate: str) -> DBAPIError:
    original: Any = RuntimeError("no")
    original.diag = SimpleNamespace(context=None, internal_query=None)
    setattr(original, {"psycopg": "sqlstate", "psycopg2": "pgcode"}[driver], sqlstate)
    return OperationalError("SELECT 1", {}, original)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_each_driver_has_its_own_name_for_the_sqlstate(driver: str) -> None:
    assert is_lost_race(error_of(driver, "40001"))
    assert is_outage(error_of(driver, "57P01"))
    assert not is_outage(error_of(driver, "23505"))
    events = EventTables().events
    with pytest.raises(TablesMissingError, match="no table events"):
        raise_translated(error_of(driver, "42P01"), events)
    with pytest.raises(TransactionRequiredError):
        raise_translated(error_of(driver, "25006"), events)
