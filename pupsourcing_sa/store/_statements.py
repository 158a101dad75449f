"""Every statement of the store, as Core expressions over its tables. Nothing here is executed.

The text of a statement depends on the tables and never on the data, so that SQLAlchemy compiles it once and the server
plans it once for each connection.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    DateTime,
    FromClause,
    Insert,
    Integer,
    LargeBinary,
    Select,
    String,
    Table,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, OID, REGCLASS, insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine

from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.expected import AnyVersion, ExpectedVersion
from pupsourcing_sa.tables import EventTables

__all__ = ["StoreStatements"]

#: A low-water mark is an int4 that carries the low 31 bits of a position.
_MARK_BITS: Final = literal_column(str(2**31 - 1), BigInteger)
#: The mark that lies below every position: the sign, which positions leave free.
_MARK_BELOW_ALL: Final = literal_column("-1", BigInteger)
#: How pg_locks shows that mark: as the unsigned oid with the same bits.
_MARK_BELOW_ALL_AS_OID: Final = literal_column(str(2**32 - 1), BigInteger)
#: Half of what the bits tell apart.
_HALF_OF_MARKS: Final = literal_column(str(2**30), BigInteger)
_EMPTY: Final = literal_column("''", Text)
_NO_SIGN: Final = literal_column(str(2**63 - 1), BigInteger)

_PG_LOCKS: Final = table(
    "pg_locks",
    column("locktype", Text),
    column("database", OID),
    column("classid", OID),
    column("objid", OID),
    column("objsubid", Integer),
    schema="pg_catalog",
)
_PG_DATABASE: Final = table("pg_database", column("oid", OID), column("datname", Text), schema="pg_catalog")


class _NameOf(ColumnElement[str]):
    """A table's quoted name as a string, under the ``schema_translate_map`` of the moment.

    ``'"My Shop".events'`` as PostgreSQL's ``regclass`` wants it: what it finds is what the same name in a FROM finds.
    """

    __visit_name__ = "pupsourcing_sa_name_of"
    _traverse_internals = [("table", InternalTraversal.dp_clauseelement)]  # the cache key must tell tables apart
    type = String()

    def __init__(self, table: Table) -> None:
        self.table = table


@compiles(_NameOf)
def _compile_name_of(element: _NameOf, compiler: Any, **kw: Any) -> str:
    # Dollar quotes, because a name may contain any other.
    return f"$name${compiler.preparer.format_table(element.table)}$name$"


def _oid(table: Table) -> ColumnElement[Any]:
    return cast(cast(_NameOf(table), REGCLASS), OID)


def _sequence(events: Table) -> ColumnElement[Any]:
    """The sequence that issues the positions, whatever its name: identity or BIGSERIAL, renamed or not."""
    return cast(func.pg_get_serial_sequence(_NameOf(events), literal_column("'global_position'", Text)), REGCLASS)


def _parameter(name: str, type_: TypeEngine[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=type_)


#: What each event of a batch brings, passed as one array for each column; the rest is the same for all of them.
_EVENT_COLUMNS: Final[dict[str, TypeEngine[Any]]] = {
    "event_id": Uuid(),
    "event_type": Text(),
    "event_version": Integer(),
    "payload": LargeBinary(),
    "trace_id": Text(),
    "correlation_id": Text(),
    "causation_id": Text(),
    "metadata": Text(),
    "created_at": DateTime(timezone=True),
}


class StoreStatements:
    """The statements of one store.

    Args:
        tables: the log.
        notify_channel: a channel that every append notifies, or ``None``.
    """

    def __init__(self, tables: EventTables, notify_channel: str | None) -> None:
        self._events = tables.events
        self._heads = tables.aggregate_heads
        self._notify_channel = notify_channel
        self._pages: dict[tuple[bool, bool, bool], Select[Any]] = {}

    # -- appending ---------------------------------------------------------------------------------------------

    def append(self, expected: ExpectedVersion) -> Insert:
        """Append a batch; gives (global_position, aggregate_version) of each event, or no row on a conflict.

        One statement in three steps, each reading from the one before it, which is what puts them in order: the
        low-water mark, the aggregate's head, the events. The head is found by its primary key, and a concurrent
        writer of the same aggregate is waited for there.
        """
        if isinstance(expected, AnyVersion):
            return self._append_to_any
        return self._append_to_exact if expected.version else self._append_to_none

    @cached_property
    def _append_to_none(self) -> Insert:
        return self._append(self._insert_head().on_conflict_do_nothing())

    @cached_property
    def _append_to_any(self) -> Insert:
        heads = self._heads
        return self._append(
            self._insert_head().on_conflict_do_update(
                index_elements=[heads.c.aggregate_type, heads.c.aggregate_id],
                set_={
                    "aggregate_version": heads.c.aggregate_version + _parameter("count", BigInteger()),
                    "updated_at": func.now(),
                },
            )
        )

    @cached_property
    def _append_to_exact(self) -> Insert:
        heads, mark = self._heads, self._mark
        return self._append(
            heads.update()
            .where(
                heads.c.aggregate_type == _parameter("stream_type", Text()),
                heads.c.aggregate_id == _parameter("stream_id", Text()),
                # The mark is always taken; saying so here is what joins it to the update.
                heads.c.aggregate_version == case((mark.c.is_taken, _parameter("expected_version", BigInteger()))),
            )
            .values(
                aggregate_version=heads.c.aggregate_version + _parameter("count", BigInteger()),
                updated_at=func.now(),
            )
        )

    def _insert_head(self) -> Any:
        mark = self._mark
        return insert(self._heads).from_select(
            ["aggregate_type", "aggregate_id", "aggregate_version"],
            select(
                _parameter("stream_type", Text()),
                _parameter("stream_id", Text()),
                _parameter("count", BigInteger()),
            ).where(mark.c.is_taken),
        )

    @cached_property
    def _mark(self) -> CTE:
        """Take the transaction's low-water mark, unless it has one for this log.

        The mark is the last position issued before the transaction's first, as a shared advisory lock (oid of the
        log, low 31 bits). A transaction-local setting remembers it, so that a transaction holds one lock however
        often it appends; a rollback to a savepoint undoes both. A sequence that has issued nothing yet, or nothing
        since it was restarted, has no such position: that is the negative mark, below every other.
        """
        name = literal_column("'pupsourcing_sa.mark_'", Text).concat(cast(_oid(self._events), Text))
        # After a transaction that had set it, a setting of ours reads as '' and no longer as NULL.
        is_held = func.coalesce(func.current_setting(name, true()), _EMPTY) != _EMPTY
        last = func.pg_sequence_last_value(_sequence(self._events), type_=BigInteger)
        # The volatile function in its output keeps this subquery one, so that both uses below see one value.
        issued = select(
            case((is_held, None), else_=func.coalesce(last.bitwise_and(_MARK_BITS), _MARK_BELOW_ALL)).label("mark")
        ).subquery("issued")
        lock = func.pg_advisory_xact_lock_shared(cast(_oid(self._events), Integer), cast(issued.c.mark, Integer))
        remember = func.set_config(name, cast(issued.c.mark, Text), true())
        is_taken = case((issued.c.mark.is_(None), true()), else_=lock.is_not(None) & remember.is_not(None))
        return select(is_taken.label("is_taken")).cte("mark")

    def _append(self, write_head: Any) -> Insert:
        events, heads = self._events, self._heads
        version = heads.c.aggregate_version
        if self._notify_channel is None:
            head = write_head.returning(version).cte("head")
        else:
            notify = func.pg_notify(self._notify_channel, "")
            head = write_head.returning(version, cast(notify, Text).label("notified")).cte("head")
        given = (
            func.unnest(*(_parameter(f"{name}s", ARRAY(type_)) for name, type_ in _EVENT_COLUMNS.items()))
            .table_valued(*map(column, _EVENT_COLUMNS), with_ordinality="ordinality", name="given")
            .render_derived()
        )
        number = given.c.ordinality
        values: dict[str, ColumnElement[Any]] = {
            "aggregate_type": _parameter("stream_type", Text()),
            "aggregate_id": _parameter("stream_id", Text()),
            "aggregate_version": head.c.aggregate_version - _parameter("count", BigInteger()) + number,
            **{name: given.c[name] for name in _EVENT_COLUMNS},
            "metadata": cast(given.c.metadata, JSONB),
        }
        return (
            events.insert()
            .from_select(list(values), select(*values.values()).select_from(head.join(given, true())).order_by(number))
            .returning(events.c.global_position, events.c.aggregate_version)
        )

    @cached_property
    def aggregate_version(self) -> Select[Any]:
        """The current version of an aggregate, by its head's primary key; no row when there is none."""
        heads = self._heads
        return select(heads.c.aggregate_version).where(
            heads.c.aggregate_type == _parameter("stream_type", Text()),
            heads.c.aggregate_id == _parameter("stream_id", Text()),
        )

    # -- reading -----------------------------------------------------------------------------------------------

    def _row(self, events: FromClause) -> list[ColumnElement[Any]]:
        """The columns of `PersistedEvent`'s row, in the forms that the drivers load at the least cost."""
        c = events.c
        return [
            c.global_position,
            c.aggregate_type,
            c.aggregate_id,
            c.aggregate_version,
            func.uuid_send(c.event_id),
            c.event_type,
            c.event_version,
            c.payload,
            c.trace_id,
            c.correlation_id,
            c.causation_id,
            cast(c.metadata, Text),
            func.timestamptz_send(c.created_at),
        ]

    @cached_property
    def aggregate_stream(self) -> Select[Any]:
        """A range of one aggregate's events in version order, by the unique index on the three columns."""
        c = self._events.c
        return (
            select(*self._row(self._events))
            .where(
                c.aggregate_type == _parameter("stream_type", Text()),
                c.aggregate_id == _parameter("stream_id", Text()),
                c.aggregate_version.between(
                    _parameter("from_version", BigInteger()), _parameter("to_version", BigInteger())
                ),
            )
            .order_by(c.aggregate_version)
        )

    @cached_property
    def latest_global_position(self) -> Select[Any]:
        """The highest position that this transaction sees, by the primary key; NULL in an empty log."""
        return select(func.max(self._events.c.global_position))

    def page(self, scope: Scope) -> Select[Any]:
        """Events of a scope with after < global_position <= up_to in the log's order, limited; at most one page."""
        kind = (scope.aggregate_types is not None, scope.event_types is not None, scope.partitions > 1)
        if kind not in self._pages:
            self._pages[kind] = self._page(*kind)
        return self._pages[kind]

    def _page(self, by_aggregate_type: bool, by_event_type: bool, by_partition: bool) -> Select[Any]:
        """Without aggregate types, a range of the primary key, filtered.

        With them, a page of positions of each type by the index (aggregate_type, global_position), merged, and then
        the rows of the page that is left: its cost is bounded by types times limit, whatever share of the log the
        types are, where `= ANY` would make the planner choose between filtering all of the log and sorting the types.
        """
        events = self._events
        limit = _parameter("limit", BigInteger())

        def matches(candidates: FromClause) -> list[ColumnElement[bool]]:
            c = candidates.c
            found = [
                c.global_position > _parameter("after", BigInteger()),
                c.global_position <= _parameter("up_to", BigInteger()),
            ]
            if by_event_type:
                found.append(c.event_type == func.any(_parameter("event_types", ARRAY(Text()))))
            if by_partition:
                # The sign is masked out rather than taken off by abs(), which fails on the smallest bigint.
                hashed = func.hashtextextended(c.aggregate_id, 0, type_=BigInteger).bitwise_and(_NO_SIGN)
                found.append(hashed % _parameter("partitions", BigInteger()) == _parameter("partition", BigInteger()))
            return found

        if not by_aggregate_type:
            position = events.c.global_position
            return select(*self._row(events)).where(*matches(events)).order_by(position).limit(limit)

        types = (
            func.unnest(_parameter("aggregate_types", ARRAY(Text())))
            .table_valued(column("aggregate_type", Text), name="scope")
            .render_derived()
        )
        candidates = events.alias("candidates")
        of_type = (
            select(candidates.c.global_position)
            .where(candidates.c.aggregate_type == types.c.aggregate_type, *matches(candidates))
            .order_by(candidates.c.global_position)
            .limit(limit)
            .lateral("of_type")
        )
        merged = select(of_type.c.global_position).select_from(types.join(of_type, true()))
        page = merged.order_by(of_type.c.global_position).limit(limit).subquery("page")
        return (
            select(*self._row(events))
            .select_from(page.join(events, events.c.global_position == page.c.global_position))
            .order_by(events.c.global_position)
        )

    # -- the stable position -----------------------------------------------------------------------------------

    @cached_property
    def stable_position(self) -> Select[Any]:
        """The last position issued and the stable position, with what decides whether they can be relied upon.

        H, the last position issued, must be read before the locks are: an append that took its mark between the two
        would otherwise be missed. It is a subquery that cannot be merged (its output is volatile), and the smallest
        mark is a correlated subquery on it, which PostgreSQL can only run once it has H. Both look at the server's
        memory and not at the transaction's snapshot.

        A mark carries 31 bits. It stands for the position nearest to H with those bits: at most 2**30 below H, or
        above it, which is a mark taken after H was read and does not count.

        A sequence that has issued nothing since it was created or restarted has no H. RESTART waits for the
        transactions that use the sequence, so everything in the log is finished then, and the log's last position
        stands in. Without the privilege to read the sequence H is NULL.
        """
        events = self._events
        sequence = _sequence(events)
        is_readable = func.has_sequence_privilege(sequence, "USAGE, SELECT")
        in_log = func.coalesce(select(func.max(events.c.global_position)).scalar_subquery(), 0)
        last = func.pg_sequence_last_value(sequence, type_=BigInteger)
        issued = select(func.coalesce(last, case((is_readable, in_log))).label("position")).subquery("issued")
        head = issued.c.position

        locks = _PG_LOCKS.c
        this_database = select(_PG_DATABASE.c.oid).where(_PG_DATABASE.c.datname == func.current_database())
        distance = (head - cast(locks.objid, BigInteger)).bitwise_and(_MARK_BITS)
        is_below_all = cast(locks.objid, BigInteger) == _MARK_BELOW_ALL_AS_OID
        smallest_mark = (
            select(func.min(case((is_below_all, 0), else_=head - distance)))
            .where(
                locks.locktype == "advisory",
                locks.database == this_database.scalar_subquery(),
                locks.classid == _oid(events),
                locks.objsubid == 2,  # a lock with two int4 keys
                is_below_all | (distance < _HALF_OF_MARKS),
            )
            .correlate(issued)
            .scalar_subquery()
        )
        return select(
            head.label("issued"),
            func.least(head, smallest_mark).label("stable"),
            func.current_setting(literal_column("'transaction_isolation'", Text)).label("isolation"),
            func.pg_is_in_recovery().label("is_in_recovery"),
        )
