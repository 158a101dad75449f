"""Positions of the log, and the transactions that hold back the stable position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pupsourcing_sa.postgres.lock_holders import LockHolder

__all__ = ["BlockingAppend", "LogPositions"]


@dataclass(frozen=True, slots=True)
class BlockingAppend(LockHolder):
    """An unfinished transaction that has appended. The stable position cannot pass its mark.

    Attributes:
        mark: the last position issued before the transaction's first append. `LockHolder` has the other attributes.
    """

    mark: int


class LogPositions(NamedTuple):
    """Positions of the log, read in one statement.

    Attributes:
        stable: the stable position.
        last: the last position in the log.
        server_identity: the server and database that they were read from. The positions mean nothing on another server,
            such as a promoted standby, which may have fewer events and other appends in flight.
    """

    stable: int
    last: int
    server_identity: str
