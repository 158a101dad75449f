"""Every exception that this library raises on purpose.

::

    PupsourcingError
     ├── AppendError                       no event was appended
     │    ├── NoEventsError                (also a ValueError) the append has no events
     │    ├── OptimisticConcurrencyError   the aggregate is not at the expected version
     │    ├── DuplicateEventError          an event id is in the log already, or twice in one append
     │    ├── KeyTooLongError              (also a ValueError) a type or id is too long for an index entry
     │    ├── StaleHeadsError              the log has events that are missing in aggregate_heads
     │    ├── SequenceBehindLogError       (also a StablePositionError) the sequence is behind the log
     │    └── TransactionRequiredError     the connection is in AUTOCOMMIT mode or read-only
     ├── UnreadableEventError              (also a ValueError) a value of an event in the log cannot be read
     ├── PayloadError                      (also a ValueError) a payload does not match the class of its event type
     │    └── EventDecodingError           the data of an event in the log cannot be decoded
     ├── UnknownEventTypeError             (also a LookupError) the registry has no class for a stored event type
     ├── StablePositionError               the stable position cannot be determined in this session
     │    ├── SequenceBehindLogError       (also an AppendError) the sequence is behind the log
     │    └── ReplicatedLogError           the log is filled by logical replication
     ├── TablesMissingError                the tables do not exist; run the migrations
     ├── TableNameError                    (also a ValueError) the metadata has another table of this name
     ├── PartitionsError                   (also a ValueError) code and tables differ in the number of partitions
     ├── LogMismatchError                  (also a ValueError) a consumer's checkpoints belong to another log
     ├── OperationRefusedError             an operation on a consumer is not safe, or there is no such consumer
     ├── PartitionParkedError              a drain reached a partition that is parked
     ├── HandlerTransactionError           a handler committed or rolled back its session
     ├── ImportFailed                      a line of an import is invalid
     ├── MissingExtraError                 (also an ImportError) an optional dependency is missing or too old
     ├── UnsupportedServerError            the server does not do what the stable position relies on
     ├── UnsupportedDriverError            (also a TypeError) the engine's driver is neither psycopg nor asyncpg
     └── TemplateError                     (also a LookupError) there is no such Alembic template

An argument of a wrong type or value raises the built-in ``TypeError`` or ``ValueError``, which names the argument.
Other database errors arrive as SQLAlchemy raises them.
"""

from __future__ import annotations

from pupsourcing_sa.errors.append import (
    AppendError,
    DuplicateEventError,
    KeyTooLongError,
    NoEventsError,
    OptimisticConcurrencyError,
    StaleHeadsError,
    TransactionRequiredError,
)
from pupsourcing_sa.errors.base import (
    PupsourcingError,
)
from pupsourcing_sa.errors.events import (
    EventDecodingError,
    PayloadError,
    UnknownEventTypeError,
    UnreadableEventError,
)
from pupsourcing_sa.errors.server import (
    ReplicatedLogError,
    SequenceBehindLogError,
    StablePositionError,
    TableNameError,
    TablesMissingError,
    UnsupportedDriverError,
    UnsupportedServerError,
)
from pupsourcing_sa.errors.tools import (
    ImportFailed,
    MissingExtraError,
    TemplateError,
)
from pupsourcing_sa.errors.workers import (
    HandlerTransactionError,
    LogMismatchError,
    OperationRefusedError,
    PartitionParkedError,
    PartitionsError,
)

__all__ = [
    "AppendError",
    "DuplicateEventError",
    "EventDecodingError",
    "HandlerTransactionError",
    "ImportFailed",
    "KeyTooLongError",
    "LogMismatchError",
    "MissingExtraError",
    "NoEventsError",
    "OperationRefusedError",
    "OptimisticConcurrencyError",
    "PartitionParkedError",
    "PartitionsError",
    "PayloadError",
    "PupsourcingError",
    "ReplicatedLogError",
    "SequenceBehindLogError",
    "StablePositionError",
    "StaleHeadsError",
    "TableNameError",
    "TablesMissingError",
    "TemplateError",
    "TransactionRequiredError",
    "UnknownEventTypeError",
    "UnreadableEventError",
    "UnsupportedDriverError",
    "UnsupportedServerError",
]
