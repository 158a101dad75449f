"""Strong references to the ORM instances of a batch.

A session refers to its instances weakly. A handler that gets a row, changes it and returns would lose the instance as
soon as the change is flushed, and each event would cost a SELECT and an UPDATE. `KeptInstances` keeps the instances
until the batch ends, so that ``session.get()`` finds them.

Instances that are expunged, expired or deleted are released. All are released when a statement may change rows that the
session does not synchronise, such as an upsert, SQL text, or any change that is executed on ``session.connection()``:
the next ``session.get()`` then reads the row again, as it does without this module.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from types import TracebackType
from typing import Final, Self, TypeVar

from sqlalchemy import Connection, Delete, Insert, Update, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, object_session

from pupsourcing_sa.worker.execution.protocol import BindHandler, Work

__all__ = ["KeptInstances", "keeping_instances"]

_T = TypeVar("_T")

#: Maximum number of instances that are kept. A handler may iterate over any number of rows.
_MAX_INSTANCES: Final = 10_000
#: The sessions of running turns.
_kept: Final[dict[Session, KeptInstances]] = {}


def keeping_instances(work: Work[_T]) -> Work[_T]:
    """Return the work in a session that keeps its instances."""

    def work_and_keep(session: Session, bind: BindHandler) -> _T:
        with KeptInstances(session):
            return work(session, bind)

    return work_and_keep


class KeptInstances:
    """Context manager that keeps the instances of a session. From a maximum number on, it releases the oldest one.

    Args:
        session: a session that is closed at the end of the context.
    """

    __slots__ = ("_connections", "_instances", "_is_flushing", "_is_judged", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        #: The instances by their id(), because a class may define equality.
        self._instances: OrderedDict[int, object] = OrderedDict()
        #: The connections of the current transaction that are not watched yet.
        self._connections: list[Connection] = []
        self._is_flushing = False
        #: The session has announced the next statement that does not belong to a flush.
        self._is_judged = False

    def __enter__(self) -> Self:
        _listen_for_expiry()
        for name in ("loaded_as_persistent", "pending_to_persistent"):
            event.listen(self._session, name, self._keep)
        for name in ("persistent_to_detached", "persistent_to_deleted", "persistent_to_transient"):
            event.listen(self._session, name, self._release)
        event.listen(self._session, "before_flush", self._begin_flush)
        for name in ("after_flush", "after_soft_rollback"):
            event.listen(self._session, name, self._end_flush)
        event.listen(self._session, "do_orm_execute", self._release_stale)
        event.listen(self._session, "after_begin", self._begin)
        _kept[self._session] = self
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        del _kept[self._session]
        self._instances.clear()

    def _keep(self, session: Session, instance: object) -> None:
        if self._connections:
            self._watch()
        self._instances[id(instance)] = instance
        if len(self._instances) > _MAX_INSTANCES:
            self._instances.popitem(last=False)

    def _release(self, session: Session, instance: object) -> None:
        self._instances.pop(id(instance), None)

    def _begin_flush(self, *_: object) -> None:
        self._is_flushing = True

    def _end_flush(self, *_: object) -> None:
        self._is_flushing = False

    def _begin(self, session: Session, transaction: object, connection: Connection) -> None:
        self._connections = [known for known in self._connections if known.in_transaction()]
        self._connections.append(connection)
        if self._instances:
            self._watch()

    def _watch(self) -> None:
        """Watch the connections. An event of a connection slows its statements, so wait for the first instance."""
        # Their last statement was not watched.
        self._is_judged = False
        for connection in self._connections:
            event.listen(connection, "before_execute", self._release_unannounced)
        self._connections.clear()

    def _release_unannounced(
        self, connection: Connection, statement: object, multiparams: object, params: object, execution_options: object
    ) -> None:
        """Release all instances if a statement may change rows, and neither the session nor its flush executes it."""
        if self._is_flushing:
            return
        is_judged, self._is_judged = self._is_judged, False
        if self._instances and not is_judged and not getattr(statement, "is_select", False):
            self._instances.clear()

    def _release_stale(self, state: ORMExecuteState) -> None:
        self._is_judged = True
        if self._instances and not _leaves_instances_valid(state):
            self._instances.clear()


def _leaves_instances_valid(state: ORMExecuteState) -> bool:
    """Return True if a statement changes no rows that are loaded, or if the session applies the change to them."""
    if state.is_select:
        return True
    if isinstance(state.statement, Insert):
        # An INSERT of PostgreSQL's dialect may have ON CONFLICT DO UPDATE.
        return not isinstance(state.statement, postgresql.Insert)
    is_synchronised = state.execution_options.get("synchronize_session", "auto") is not False
    return isinstance(state.statement, (Update, Delete)) and state.is_orm_statement and is_synchronised


@cache
def _listen_for_expiry() -> None:
    """Listen for expired instances. SQLAlchemy has this event for classes, and not for a session."""
    event.listen(Mapper, "expire", _release_expired)


def _release_expired(instance: object, attributes: object) -> None:
    if _kept and attributes is None:
        session = object_session(instance)
        if session in _kept:
            _kept[session]._release(session, instance)
