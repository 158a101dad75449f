from __future__ import annotations

import pytest
from sqlalchemy import Column, Index, Integer, MetaData, Table, inspect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.schema import BLANK_SCHEMA

from pupsourcing_sa import EventTables, WorkerTables
from pupsourcing_sa.errors import TableNameError


def names(table: Table) -> set[str]:
    return {str(each.name) for each in (*table.constraints, *table.indexes)}


def test_they_are_on_the_given_metadata():
    class Base(DeclarativeBase):
        pass

    events, worker = EventTables(Base.metadata), WorkerTables(Base.metadata)
    assert set(Base.metadata.tables) == {
        "events",
        "aggregate_heads",
        "worker_nodes",
        "consumer_assignments",
        "consumer_checkpoints",
        "consumer_parked_aggregates",
        "consumer_operations",
    }
    assert events.events is Base.metadata.tables["events"]
    assert worker.consumer_checkpoints is Base.metadata.tables["consumer_checkpoints"]


def test_constraints_have_the_names_of_the_originals():
    tables = EventTables()
    assert names(tables.events) == {
        "events_pkey",
        "events_event_id_key",
        "events_aggregate_type_aggregate_id_aggregate_version_key",
        "events_aggregate_type_global_position_idx",
        "events_correlation_id_global_position_idx",
    }
    assert names(tables.aggregate_heads) == {"aggregate_heads_pkey"}
    assert names(WorkerTables().consumer_assignments) == {
        "consumer_assignments_pkey",
        "consumer_assignments_worker_id_fkey",
    }


def test_a_naming_convention_names_them():
    metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"})
    assert names(EventTables(metadata).events) == {
        "pk_events",
        "uq_events_event_id",
        "uq_events_aggregate_type",
        "events_aggregate_type_global_position_idx",  # the convention does not say anything about indexes
        "events_correlation_id_global_position_idx",
    }


def test_the_recommended_naming_convention_names_indexes():
    metadata = MetaData(naming_convention={"ix": "ix_%(column_0_label)s", "pk": "pk_%(table_name)s"})
    assert {index.name for index in EventTables(metadata).events.indexes} == {
        "ix_events_aggregate_type",
        "ix_events_correlation_id",
    }
    by_class = MetaData(naming_convention={Index: "ix_%(column_0_label)s"})
    assert "ix_shop_events_aggregate_type" in names(EventTables(by_class, schema="shop").events)


def test_a_naming_convention_that_wants_a_name_gets_one():
    metadata = MetaData(naming_convention={"uq": "uq__%(constraint_name)s", "ix": "ix_%(column_0_N_name)s"})
    assert {"uq__events_event_id_key", "ix_aggregate_type_global_position"} <= names(EventTables(metadata).events)


def test_the_same_again_is_the_same():
    metadata = MetaData()
    assert EventTables(metadata).events is EventTables(metadata).events
    assert WorkerTables(metadata).worker_nodes is WorkerTables(metadata).worker_nodes
    assert EventTables(metadata, schema="a").events is not EventTables(metadata).events
    assert EventTables(metadata, events="b").aggregate_heads is EventTables(metadata).aggregate_heads


def test_the_schema_of_the_metadata():
    metadata = MetaData(schema="shop")
    assert EventTables(metadata).events.schema == "shop"
    assert EventTables(metadata).events is EventTables(metadata, schema="shop").events
    assert EventTables(metadata, schema="other").events.schema == "other"


@pytest.mark.parametrize("name", ["events", "aggregate_heads"])
def test_a_table_of_somebody_elses(name):
    metadata = MetaData()
    Table(name, metadata, Column("id", Integer))
    with pytest.raises(TableNameError, match=rf'EventTables\({name}="…"\), or another schema'):
        EventTables(metadata)


@pytest.mark.parametrize("name", ["aggregate_heads", "consumer_checkpoints"])
def test_where_one_cannot_be_none_is_added(name):
    metadata = MetaData()
    Table(name, metadata)
    with pytest.raises(TableNameError):
        (EventTables if name == "aggregate_heads" else WorkerTables)(metadata)
    assert list(metadata.tables) == [name]


def test_one_of_ours_is_not_another():
    metadata = MetaData()
    with pytest.raises(TableNameError, match="^events and aggregate_heads must be different tables, not both 'same'$"):
        EventTables(metadata, events="same", aggregate_heads="same")
    assert not metadata.tables
    with pytest.raises(TableNameError, match="already has another table 'events'"):
        WorkerTables(EventTables(metadata).metadata, worker_nodes="events")


def test_a_log_has_one_table_of_heads():
    metadata = EventTables(schema="shop").metadata
    with pytest.raises(TableNameError, match=r"already has 'shop.events' with aggregate_heads='aggregate_heads'; use"):
        EventTables(metadata, schema="shop", aggregate_heads="other")
    assert sorted(metadata.tables) == ["shop.aggregate_heads", "shop.events"]
    copied = MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(copied)
    with pytest.raises(TableNameError, match="aggregate_heads='aggregate_heads'"):
        EventTables(copied, schema="shop", aggregate_heads="other")


def test_all_of_them_in_order():
    tables, worker = EventTables(), WorkerTables()
    assert tables.tables == (tables.events, tables.aggregate_heads)
    assert worker.tables == (
        worker.worker_nodes,
        worker.consumer_assignments,
        worker.consumer_checkpoints,
        worker.consumer_parked_aggregates,
        worker.consumer_operations,
    )


@pytest.mark.parametrize("name", ["", "a" * 64, "ä" * 32, "a\0"])
def test_impossible_names(name):
    with pytest.raises(ValueError, match="^events must be a table name of 1 to 63 bytes"):
        EventTables(events=name)


@pytest.mark.parametrize("schema", ["", "a" * 64, "a\0"])
@pytest.mark.parametrize("declare", [EventTables, WorkerTables])
def test_impossible_schemas(declare, schema):
    with pytest.raises(ValueError, match="^schema must be a schema name of 1 to 63 bytes"):
        declare(schema=schema)


def test_no_schema_although_the_metadata_has_one():
    assert EventTables(MetaData(schema="shop"), schema=BLANK_SCHEMA).events.key == "events"


def test_wrong_types():
    with pytest.raises(TypeError, match="^schema must be a str, not int$"):
        EventTables(schema=5)
    with pytest.raises(TypeError, match=r"^metadata must be a MetaData, such as Base.metadata"):
        EventTables(DeclarativeBase)
    with pytest.raises(TypeError, match="^worker_nodes must be a str"):
        WorkerTables(worker_nodes=5)


@pytest.mark.parametrize("last", ["a", "b"])
def test_the_longest_names(engine, last):
    """63 bytes, alike up to the last: constraints and indexes share a namespace with everything in the schema."""
    metadata = MetaData()
    for end in ("a", last):
        EventTables(metadata, events="é" * 31 + end, aggregate_heads="h" * 62 + end)
        WorkerTables(
            metadata,
            worker_nodes="n" * 62 + end,
            consumer_assignments="c" * 62 + end,
            consumer_checkpoints="d" * 62 + end,
            consumer_parked_aggregates="p" * 62 + end,
            consumer_operations="o" * 62 + end,
        )
    metadata.create_all(engine)
    found = inspect(engine)
    for table in metadata.tables.values():
        assert found.get_pk_constraint(table.name)["name"] == table.primary_key.name
        assert {each["name"] for each in found.get_indexes(table.name)} >= {each.name for each in table.indexes}
        assert all(len(name.encode()) <= 63 for name in names(table))
