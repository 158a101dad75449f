"""Rows belong to one log and one number of partitions, and an assignment means that the partition should be running."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, func, select

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.errors import LogMismatchError, PartitionsError
from tests.fix_membership import Group


@pytest.fixture
def logs(engine: Engine) -> tuple[Group, Group]:
    """Two logs, whose nodes share the worker's tables and a clock."""
    tables, metadata = WorkerTables(MetaData()), MetaData()
    groups = [
        Group(engine, tables, EventTables(metadata, events=f"{name}_events", aggregate_heads=f"{name}_heads"))
        for name in ("sales", "stock")
    ]
    groups[1].clock = groups[0].clock
    return groups[0], groups[1]


def rows(group: Group, name: str, *columns: str) -> list[tuple[Any, ...]]:
    table = group.tables.metadata.tables[name]
    with group.engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(select(*(table.c[column] for column in columns))))


def change(group: Group, *statements: Any) -> None:
    with group.engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings and errors of the worker."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "pupsourcing_sa.worker" and record.levelno >= logging.WARNING
    ]


def test_a_consumer_of_another_log_is_refused(logs: tuple[Group, Group], engine: Engine):
    sales, stock = logs
    schema = sales.do(lambda session: session.scalar(select(func.current_schema())))
    _, membership = sales.node(audit=2)
    sales.do(membership.join)
    before = rows(sales, "consumer_checkpoints", "consumer_name", "partition", "log")
    _, other = stock.node(aaa=1, audit=2)
    for refused in (other.join, other.declare):
        with pytest.raises(LogMismatchError, match="adopt-log audit") as caught:
            stock.do(refused)
        assert (caught.value.consumer, caught.value.log, caught.value.existing) == (
            "audit",
            f"{schema}.stock_events",
            f"{schema}.sales_events",
        )
    assert rows(sales, "consumer_checkpoints", "consumer_name", "partition", "log") == before
    for table in (sales.tables.consumer_checkpoints, sales.tables.consumer_assignments):
        change(sales, table.delete())  # the other table also knows the log
        with pytest.raises(LogMismatchError):
            stock.do(other.join)
        sales.clock.seconds += 2
        sales.do(membership.tick)
        sales.do(membership.declare)


def test_nodes_of_different_logs_share_the_tables(logs: tuple[Group, Group]):
    sales, stock = logs
    _, orders = sales.node(orders=2)
    one, items = stock.node(items=2)
    two, others = stock.node(items=2)
    for group, membership in ((sales, orders), (stock, items), (stock, others)):
        group.do(membership.join)
    assigned = sales.assigned()
    assert {worker for (name, _), worker in assigned.items() if name == "items"} == {one, two}
    stock.age(one, 60)
    sales.clock.seconds += 2
    sales.do(orders.tick)  # the leader has another log
    assert set(stock.do(others.tick) or ()) == {("items", 0), ("items", 1)}
    assert set(sales.do(orders.tick) or ()) == {("orders", 0), ("orders", 1)}


def test_rows_without_a_log_are_adopted(logs: tuple[Group, Group]):
    sales, stock = logs
    change(
        sales,
        *(
            table.insert().values(consumer_name="a", partition=0)
            for table in (sales.tables.consumer_checkpoints, sales.tables.consumer_assignments)
        ),
    )
    _, membership = sales.node(a=1)
    sales.do(membership.join)
    ((log, count),) = rows(sales, "consumer_checkpoints", "log", "partitions")
    assert (log.endswith(".sales_events"), count) == (True, 1)
    assert rows(sales, "consumer_assignments", "log") == [(log,)]
    _, other = stock.node(a=1)
    with pytest.raises(LogMismatchError):
        stock.do(other.join)


def test_the_number_of_partitions_outlives_rows(logs: tuple[Group, Group]):
    group, _ = logs
    _, membership = group.node(a=3)
    group.do(membership.join)
    checkpoints = group.tables.consumer_checkpoints
    change(group, group.tables.consumer_assignments.delete(), checkpoints.delete().where(checkpoints.c.partition > 1))
    _, other = group.node(a=2)
    with pytest.raises(PartitionsError) as caught:
        group.do(other.join)
    assert caught.value.existing == 3


class TestReplacedWhileItRuns:
    """An operator deletes a consumer's rows, and another node begins it in another way. The old node lets go of it."""

    @pytest.fixture
    def old(self, logs: tuple[Group, Group]) -> Any:
        worker_id, membership = logs[0].node(a=2, b=1)
        logs[0].do(membership.join)
        tables = logs[0].tables
        change(
            logs[0],
            *(
                table.delete().where(table.c.consumer_name == "a")
                for table in (tables.consumer_assignments, tables.consumer_checkpoints)
            ),
        )
        return worker_id, membership

    @pytest.mark.parametrize(
        ("number", "count", "message"),
        [
            (1, 2, "the tables have the checkpoints of another log; the consumer is not run"),
            (0, 3, "the tables have another number of partitions; restart the node"),
            (0, 1, "the tables have another number of partitions; restart the node"),
        ],
    )
    def test_it_gets_none_of_the_partitions(
        self, logs: tuple[Group, Group], old: Any, caplog: Any, number: int, count: int, message: str
    ):
        worker_id, membership = old
        new_id, new = logs[number].node(a=count)
        logs[number].do(new.join)
        caplog.clear()
        for _ in range(2):
            logs[0].clock.seconds += 2
            assert set(logs[0].do(membership.tick) or ()) == {("b", 0)}
        assert {worker for (name, _), worker in logs[0].assigned().items() if name == "a"} == {new_id}
        assert warnings_of(caplog) == [message]
        assert rows(logs[0], "worker_nodes", "worker_id", "consumers") == sorted([(worker_id, ["b"]), (new_id, ["a"])])
        logs[number].do(new.leave)
        tables = logs[0].tables
        change(logs[0], tables.consumer_checkpoints.delete().where(tables.consumer_checkpoints.c.consumer_name == "a"))
        logs[0].clock.seconds += 2
        assert set(logs[0].do(membership.tick) or ()) == {("a", 0), ("a", 1), ("b", 0)}

    def test_nor_after_it_was_presumed_dead(self, logs: tuple[Group, Group], old: Any):
        _, membership = old
        _, new = logs[1].node(a=2)
        logs[1].do(new.join)
        change(logs[0], logs[0].tables.worker_nodes.delete())
        logs[0].clock.seconds += 2
        assert logs[0].do(membership.tick) is None
        assert set(logs[0].do(membership.join)) == {("b", 0)}
        logs[0].do(membership.leave)
        assert set(logs[0].assigned()) == {("a", 0), ("a", 1)}  # of the other log, whose node will join again


class TestStopping:
    def test_the_last_node_leaves_no_assignments(self, logs: tuple[Group, Group]):
        group, _ = logs
        _, first = group.node(a=2, b=1)
        _, second = group.node(a=2)
        group.do(first.join)
        group.do(second.join)
        group.do(first.hand_over)
        assert set(group.assigned()) == {("a", 0), ("a", 1)}
        group.clock.seconds += 2
        group.do(first.tick)  # while its batches end
        group.do(first.leave)
        assert set(group.assigned()) == {("a", 0), ("a", 1)}
        group.do(second.leave)
        assert group.assigned() == {}
        assert len(rows(group, "consumer_checkpoints", "consumer_name", "partition")) == 3

    def test_a_dead_node_leaves_its_assignments(self, logs: tuple[Group, Group]):
        group, _ = logs
        dead, first = group.node(a=1)
        _, second = group.node(b=1)
        group.do(first.join)
        group.do(second.join)
        group.age(dead, 60)
        group.clock.seconds += 2
        group.do(second.tick)
        group.do(second.leave)
        assert group.assigned() == {("a", 0): None}
        _, drain = group.node(a=1)
        group.do(drain.declare)
        group.do(drain.retire)
        assert group.assigned() == {}

    @pytest.mark.parametrize("joins_first", [True, False])
    def test_a_node_joins_while_another_stops(
        self, logs: tuple[Group, Group], caplog: pytest.LogCaptureFixture, joins_first: bool
    ):
        group, _ = logs
        _, old = group.node(a=2)
        new_id, new = group.node(a=2)
        group.do(old.join)
        steps = [lambda: group.do(new.join), lambda: group.do(old.hand_over)]
        for step in steps if joins_first else reversed(steps):
            step()
        group.do(old.leave)
        group.clock.seconds += 2
        assert set(group.do(new.tick) or ()) == {("a", 0), ("a", 1)}
        assert set(group.assigned().values()) == {new_id}
        assert warnings_of(caplog) == []
