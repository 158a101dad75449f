"""The plan, by its properties."""

from __future__ import annotations

from itertools import product
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from pupsourcing_sa.worker.coordination.plan import plan
from pupsourcing_sa.worker.partition import Partition

NAMES = ("a", "b", "c", "d")
NODES = [UUID(int=number) for number in range(1, 9)]

consumers = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 6), min_size=1)
capabilities = st.dictionaries(st.sampled_from(NODES), st.sets(st.sampled_from(NAMES)))


@st.composite
def assignments(draw: st.DrawFn) -> dict[Partition, UUID | None]:
    counts = draw(consumers)
    nodes = st.none() | st.sampled_from(NODES)
    return {Partition(name, number): draw(nodes) for name, count in counts.items() for number in range(count)}


def loads(planned: dict[Partition, UUID | None], nodes: dict[UUID, set[str]]) -> list[int]:
    held = list(planned.values())
    return sorted(held.count(node) for node in nodes)


@given(assignments(), capabilities)
def test_every_partition_is_on_a_node_that_knows_it_if_there_is_one(current, nodes):
    planned = plan(current, nodes)
    assert planned.keys() == current.keys()
    for (name, _), node in planned.items():
        if node is None:
            assert not any(name in known for known in nodes.values())
        else:
            assert name in nodes[node]


@given(assignments(), st.sets(st.sampled_from(NODES), min_size=1))
def test_equal_nodes_differ_by_one_at_most(current, alive):
    nodes = {node: set(NAMES) for node in alive}
    found = loads(plan(current, nodes), nodes)
    assert found[-1] - found[0] <= 1


@given(
    st.dictionaries(st.sampled_from(NAMES[:3]), st.integers(1, 2), min_size=1),
    st.dictionaries(st.sampled_from(NODES[:3]), st.sets(st.sampled_from(NAMES[:3])), min_size=1),
)
def test_different_nodes_are_as_even_as_can_be(counts, nodes):
    current = {Partition(name, number): None for name, count in counts.items() for number in range(count)}
    able = [[node for node in nodes if name in nodes[node]] or [None] for name, _ in current]
    everything = (dict(zip(current, chosen, strict=True)) for chosen in product(*able))
    best = min(sum(load**2 for load in loads(each, nodes)) for each in everything)
    assert sum(load**2 for load in loads(plan(current, nodes), nodes)) == best


@given(assignments(), capabilities)
def test_a_plan_is_stable(current, nodes):
    planned = plan(current, nodes)
    assert plan(planned, nodes) == planned


@given(assignments(), st.sets(st.sampled_from(NODES), min_size=1))
def test_no_more_partitions_are_moved_than_evenness_needs(current, alive):
    nodes = {node: set(NAMES) for node in alive}
    planned = plan(current, nodes)
    held = [node for node in current.values() if node in alive]
    least, more = divmod(len(current), len(alive))
    too_many = sorted((held.count(node) - least for node in alive), reverse=True)
    # `more` nodes may have one partition more. The fullest nodes do, so that most partitions stay where they are.
    needed = sum(max(0, excess - (number < more)) for number, excess in enumerate(too_many))
    moved = sum(node in alive and planned[partition] != node for partition, node in current.items())
    assert moved == needed


def test_a_node_that_joins_gets_partitions_of_every_consumer():
    current = {Partition(name, number): NODES[0] for name in NAMES for number in range(4)}
    planned = plan(current, {node: set(NAMES) for node in NODES[:2]})
    for name in NAMES:
        assert [planned[name, number] for number in range(4)].count(NODES[1]) == 2


def test_a_chain_of_moves_where_no_single_one_would_do():
    """The fullest node shares nothing with the empty one, but with one that does."""
    current = {Partition("a", 0): NODES[0], Partition("a", 1): NODES[0], Partition("b", 0): NODES[1]}
    nodes = {NODES[0]: {"a"}, NODES[1]: {"a", "b"}, NODES[2]: {"b"}}
    assert loads(plan(current, nodes), nodes) == [1, 1, 1]
