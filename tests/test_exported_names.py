"""The names that users type are a contract."""

from __future__ import annotations

import importlib
import pkgutil

import pupsourcing_sa
from pupsourcing_sa import errors

NAMES = """
AnyVersion AppendResult AsyncEventStore Consumer DuplicateEventError Event EventRegistry EventStore EventTables Exact
ExpectedVersion NoEventsError NoStream OptimisticConcurrencyError PersistedEvent PupsourcingError Recorded Stream
TypedConsumer WorkerTables consumer event_context
"""


def test_the_root():
    assert pupsourcing_sa.__all__ == sorted(NAMES.split())


PROGRAMS = {"pupsourcing_sa.__main__", "pupsourcing_sa.testing._postgres_keeper"}
MODULES = {module.name for module in pkgutil.walk_packages(pupsourcing_sa.__path__, "pupsourcing_sa.")} - PROGRAMS


def test_every_module_can_be_imported():
    for name in sorted(MODULES):
        importlib.import_module(name)


def test_every_error_has_one_root_and_can_be_raised():
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, pupsourcing_sa.PupsourcingError)
        assert name in errors.__doc__, "the tree at the top of the file is complete"
    assert str(pupsourcing_sa.NoEventsError()) == "An append needs at least one event."
