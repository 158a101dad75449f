"""Errors: their messages, and that they survive pickling, which ``multiprocessing`` and task queues need."""

from __future__ import annotations

import copy
import pickle
import uuid

import pytest

from pupsourcing_sa import errors
from pupsourcing_sa.expected import Exact, NoStream

_ID = uuid.UUID(int=1)
#: Errors with arguments of their own; the others take a message.
ARGUMENTS = {
    "OptimisticConcurrencyError": ("User", "ann", Exact(3), 4),
    "DuplicateEventError": ([_ID],),
    "UnreadableEventError": (4711, _ID, "created_at", "it is infinity"),
    "PayloadError": ("OrderPlaced", 2, "$.total", "Expected `int`, got `str`"),
    "EventDecodingError": (4711, _ID, "OrderPlaced", 2, None, "it is not JSON"),
    "UnknownEventTypeError": ("OrderViewed", True),
    "KeyTooLongError": ("User", "a" * 5000, "aggregate_id", 5000),
    "StaleHeadsError": ([("User", "ann")], "aggregate_heads"),
    "LogMismatchError": ("orders", "public.events", "shop.events"),
    "OperationRefusedError": ("remove", "orders", "running nodes have it"),
    "PartitionsError": ("orders", 4, 2),
    "PartitionParkedError": ("orders", 1, 4711),
    "ImportFailed": (7, 5, "not JSON"),
    "UnsupportedDriverError": ("postgresql+psycopg2",),
    "UnsupportedServerError": ("advisory locks", "pg_locks shows nothing"),
    "MissingExtraError": ("alembic", "alembic", "alembic 1.0 is too old"),
}


@pytest.mark.parametrize("name", errors.__all__)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_survives_pickling_and_copying(name, copied):
    error = getattr(errors, name)(*ARGUMENTS.get(name, ("a message",)))
    error.add_note("a note")
    other = copied(error)
    assert type(other) is type(error)
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
    assert getattr(other, "msg", None) == getattr(error, "msg", None)  # of an ImportError


def test_the_docstring_is_the_default_message():
    assert str(errors.NoEventsError()) == "An append needs at least one event."
    assert str(errors.TablesMissingError()) == "The tables do not exist in the database. Run the migrations."


def test_messages_end_with_the_remedy():
    conflict = errors.OptimisticConcurrencyError("User", "ann", NoStream(), 1)
    assert str(conflict) == "User 'ann': expected NoStream(), found version 1; read the aggregate again and retry"
    lost = errors.OptimisticConcurrencyError("User", "ann", NoStream(), None)
    assert str(lost).endswith("another transaction changed it first; roll back and retry the transaction")
    assert str(errors.DuplicateEventError([_ID] * 6)).count(str(_ID)) == 5
    assert "aaa…'" in str(errors.KeyTooLongError(*ARGUMENTS["KeyTooLongError"]))
